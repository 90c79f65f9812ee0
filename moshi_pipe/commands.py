"""The commands that come with ``moshi-pipe``. What each needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import BackendError, ConfigError, closest
from moshi_pipe.hooks import Command
from moshi_pipe.overrides import split_words
from moshi_pipe.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.config import RunConfig
    from moshi_pipe.models.plan import Plan

_CHECKPOINT_KEYS: Final = ("size", "kind", "seed", "dtype")


def _plugins(words: Sequence[str]) -> int:
    """List plugins, show one, or check all."""
    from moshi_pipe.plugins_command import plugins_command

    return plugins_command(words, reserved=tuple(BUILTIN))


def _plugins_details() -> str:
    from moshi_pipe.plugins_command import details

    return details()


def _plugin(words: Sequence[str]) -> int:
    """Write a new plugin."""
    from moshi_pipe.plugin_new import plugin_command

    return plugin_command(words)


def _plugin_details() -> str:
    from moshi_pipe.plugin_new import details

    return details()


def _plan(words: Sequence[str]) -> int:
    """Predict the memory of a run from its configuration alone."""
    from moshi_pipe.assembly import plan_run

    config = _config(words)
    if config.remote is not None:
        sys.stdout.write(
            f"{config.model.name} runs at {config.remote.place}: nothing is loaded here\n"
        )
        return 0
    plan = plan_run(config)
    sys.stdout.write(plan_text(plan))
    return BackendError.exit_code if plan.fits is False else 0


def _graph(words: Sequence[str]) -> int:
    """Draw the composed graph in the terminal, or as SVG into a file."""
    svg = [word.partition("=")[2] for word in words if word.startswith("svg=")]
    config = _config([word for word in words if not word.startswith("svg=")])
    from moshi_pipe.assembly import wire
    from moshi_pipe.graph.draw import draw_svg, draw_text
    from moshi_pipe.plugins import load_plugins

    if config.remote is not None:
        from moshi_pipe.remote.assembly import remote_graph

        graph = remote_graph(config.graph, config.model.name)
    else:
        graph, _, _ = wire(config.model, config.graph, load_plugins())
    if not svg:
        sys.stdout.write(draw_text(graph) + "\n")
        return 0
    from moshi_pipe.report import write_atomically

    path = Path(svg[-1]).absolute()
    write_atomically(path, draw_svg(graph))
    sys.stdout.write(f"{path}\n")
    return 0


def _make_checkpoint(words: Sequence[str]) -> int:
    """Write a random-weight checkpoint in the released layout."""
    folders = [word for word in words if word.partition("=")[0] not in _CHECKPOINT_KEYS]
    values = dict(word.split("=", 1) for word in words if word not in folders)
    wrong = [w for w in folders if "=" in w and w.partition("=")[0].isidentifier()]
    if wrong and len(folders) > 1:
        key = wrong[0].partition("=")[0]
        raise ConfigError(f"there is no key '{key}'", wanted=closest(key, _CHECKPOINT_KEYS))
    if len(folders) != 1:
        raise ConfigError(
            "make-checkpoint needs one folder",
            got=" ".join(words) or "nothing",
            wanted=f"moshi-pipe make-checkpoint {BUILTIN['make-checkpoint'].usage}",
        )
    if not values.get("seed", "0").isdigit():
        raise ConfigError("seed has the wrong type", got=values["seed"], wanted="a whole number")
    from moshi_pipe.models.make_checkpoint import make_checkpoint

    made = make_checkpoint(
        folders[0],
        preset=values.get("size", "tiny"),
        kind=values.get("kind", "moshi"),
        seed=int(values.get("seed", "0")),
        dtype=values.get("dtype", "bfloat16"),
        progress=_show_bytes if sys.stderr.isatty() else None,
    )
    for name, num_bytes in made.files.items():
        sys.stdout.write(f"{format_bytes(num_bytes):>10}  {made.folder / name}\n")
    sys.stdout.write(f"random weights; use them with: model=local model.path={made.folder}\n")
    return 0


def _convert(words: Sequence[str]) -> int:
    """Write a checkpoint in another released format."""
    from moshi_pipe.checkpoint_commands import convert_command

    return convert_command(words, _config, _show_bytes if sys.stderr.isatty() else None)


def _convert_details() -> str:
    from moshi_pipe.checkpoint_commands import convert_details

    return convert_details()


def _quantize(words: Sequence[str]) -> int:
    """Write a quantized checkpoint and what that cost each tensor."""
    from moshi_pipe.checkpoint_commands import quantize_command

    return quantize_command(words, _config, _show_bytes if sys.stderr.isatty() else None)


def _inspect(words: Sequence[str]) -> int:
    """Say what a checkpoint is."""
    from moshi_pipe.checkpoint_commands import inspect_command

    return inspect_command(words)


def _check(words: Sequence[str]) -> int:
    """Check a model and print its figures."""
    from moshi_pipe.checkpoint_commands import check_command

    return check_command(words, _config)


def _repeat(words: Sequence[str]) -> int:
    """Run again what a ``config.yaml`` of an earlier run describes."""
    overrides, others = split_words(words)
    if len(others) != 1:
        raise ConfigError(
            "repeat needs one config.yaml, as a run writes it beside its results",
            got=" ".join(words) or "nothing",
            wanted=f"moshi-pipe repeat {BUILTIN['repeat'].usage}",
        )
    from moshi_pipe.compose import load_written, resolve
    from moshi_pipe.plugins import load_plugins
    from moshi_pipe.terminal_run import run_in_terminal
    from moshi_pipe.urls import local_path

    plugins = load_plugins()
    written = local_path(others[0], "repeat")
    written = written / "config.yaml" if written.is_dir() else written
    return run_in_terminal(
        resolve(load_written(written, plugins.nodes, overrides), plugins.nodes), plugins
    )


def _report(words: Sequence[str]) -> int:
    """Write a page and a table about runs."""
    from moshi_pipe.report_page.command import report_command

    return report_command(words)


def _report_details() -> str:
    from moshi_pipe.report_page.command import details

    return details()


def _client(words: Sequence[str]) -> int:
    """Talk to a server: microphone and speaker, or what the words choose."""
    overrides, others = split_words(words)
    if len(others) != 1:
        raise ConfigError(
            "client needs the address of one server",
            got=" ".join(others) or "none",
            wanted=f"moshi-pipe client {BUILTIN['client'].usage}",
        )
    from moshi_pipe.compose import load_run
    from moshi_pipe.overrides import prepare
    from moshi_pipe.plugins import load_plugins
    from moshi_pipe.terminal_run import run_in_terminal

    given = {word.lstrip("+~").partition("=")[0] for word in overrides}
    chosen = ["model=remote"]
    if not given & {"source", "source.path"}:
        chosen += ["source=mic"] if "sink" in given else ["source=mic", "sink=speaker"]
    plugins = load_plugins()
    words = prepare([*chosen, *overrides, f"model.url={others[0]}"])
    return run_in_terminal(load_run(words, plugins.nodes), plugins)


def _client_details() -> str:
    return (
        "\n  moshi-pipe client ws://host:8998                          microphone and speaker\n"
        "  moshi-pipe client ws://host:8998 source.path=talk.wav     a recording, or a folder\n"
        "  moshi-pipe client wss://host:8998 model.verify=false      moshi-backend makes its own "
        "certificate\n"
        "  moshi-pipe client wss://host:8998 model.token_env=NAME    the token is in a variable\n"
        "  moshi-pipe doctor model=remote model.url=ws://host:8998   is it there, and which is it\n"
        "  moshi-pipe --help model                                   keys of model=remote\n"
    )


def _devices(words: Sequence[str]) -> int:
    """List the sound devices."""
    from moshi_pipe.device_table import devices

    return devices(words)


def _doctor(words: Sequence[str]) -> int:
    """Check this machine for a configuration."""
    from moshi_pipe.doctor import doctor

    return doctor(words, _config)


def plan_text(plan: Plan) -> str:
    """A plan as a table, with its verdict last."""
    lines = [
        f"{plan.model} on {plan.device}, {plan.dtype}, {format_count(plan.slots, 'slot')}, "
        f"{plan.num_parameters / 1e6:,.1f} M parameters",
        "",
        f"{'part':<10}{'what':<34}{'bytes':>12}{'per slot':>12}",
    ]
    for row in plan.rows:
        about = "" if row.exact else "about "
        per_slot = format_bytes(row.per_slot) if row.per_slot else ""
        size = about + format_bytes(row.num_bytes)
        lines.append(f"{row.part:<10}{row.what:<30}{size:>16}{per_slot:>12}")
    lines.append(f"{'all':<40}{format_bytes(plan.total_bytes):>16}")
    lines += ["", *(f"warning: {warning}" for warning in plan.warnings), plan.verdict]
    return "\n".join(lines) + "\n"


def _config(words: Sequence[str]) -> RunConfig:
    """Compose what a command's words describe; no source is needed, ``--config-dir`` is known."""
    from moshi_pipe.compose import load_run
    from moshi_pipe.overrides import prepare, quote_literal
    from moshi_pipe.plugins import load_plugins

    overrides, others = split_words(words)
    flag, *rest = "=".join(others).split("=", 1) if others else [""]
    if flag in ("--config-dir", "-cd") and rest:
        folder = Path(rest[0]).absolute()
        if not folder.is_dir():
            raise ConfigError("--config-dir names no folder", got=str(folder))
        overrides.append(f"hydra.searchpath=[{quote_literal(f'file://{folder}')}]")
    elif others:
        raise ConfigError(
            f"cannot read the word '{others[0]}'", wanted="key=value, or --config-dir FOLDER"
        )
    return load_run(prepare(overrides), load_plugins().nodes, need_source=False)


def _checkpoint_details() -> str:
    """Sizes and kinds of random checkpoints."""
    from moshi_pipe.models.presets import KINDS, PRESETS

    sizes = [f"  size={preset.name:<8} {preset.summary}" for preset in PRESETS.values()]
    return "\n".join(["", *sizes, "", f"  kind={', '.join(KINDS)}", ""])


def _show_bytes(done: int, total: int) -> None:
    """A line on standard error that says how many bytes are written."""
    end = "\n" if done >= total else ""
    sys.stderr.write(f"\r{format_bytes(done)} of {format_bytes(total)}   {end}")
    sys.stderr.flush()


def _no_words(command: str, words: Sequence[str]) -> None:
    if words:
        raise ConfigError(f"`moshi-pipe {command}` takes no words", got=" ".join(words))


BUILTIN: Final = {
    command.name: command
    for command in (
        Command("devices", "list microphones and speakers; * marks the defaults", _devices),
        Command(
            "doctor",
            "check that everything works here, and whether the model keeps up",
            _doctor,
            "[key=value ...]",
        ),
        Command(
            "plugins",
            "list plugins, what they offer, and why one was left out; check them",
            _plugins,
            "[list|show NAME|doctor] [--json|--requirements]",
            _plugins_details,
        ),
        Command(
            "plugin",
            "write a new plugin: a small distribution that passes its own tests",
            _plugin,
            "new NAME [--kind source|sink|transform|backend] [--dir DIR]",
            _plugin_details,
        ),
        Command("plan", "memory that a run needs, and whether it fits", _plan, "[key=value ...]"),
        Command("graph", "draw the graph of a run", _graph, "[svg=FILE] [key=value ...]"),
        Command(
            "repeat",
            "run again what an earlier run's config.yaml says, into a folder `repeat` beside it",
            _repeat,
            "FILE [key=value ...]",
        ),
        Command(
            "report",
            "a page and a table about runs and sweeps: metrics, plots, timelines, audio",
            _report,
            "DIR ... [out=report.html] [audio=opus] [key=value ...]",
            _report_details,
        ),
        Command(
            "client",
            "talk to a server of Moshi's protocol, with microphone and speaker or with recordings",
            _client,
            "URL [key=value ...]",
            _client_details,
        ),
        Command(
            "make-checkpoint",
            "write a model of random weights in the released layout",
            _make_checkpoint,
            "FOLDER [size=tiny] [kind=moshi] [seed=0] [dtype=bfloat16]",
            _checkpoint_details,
        ),
        Command(
            "convert",
            "write a model in another released format",
            _convert,
            "[SRC | model=NAME] DST --to FORMAT [dtype=auto] [group=N]",
            _convert_details,
        ),
        Command(
            "quantize",
            "write a model with weights of 8 or 4 bits, and the error of every tensor",
            _quantize,
            "[SRC | model=NAME] DST [quant=int8] [quant_group=32]",
        ),
        Command(
            "inspect", "what a checkpoint is, and what is wrong with it", _inspect, "PATH [--json]"
        ),
        Command(
            "check",
            "whether a model works here, with the figures to compare",
            _check,
            "[model=NAME] [key=value ...] [clip=FILE] [--json FILE]",
        ),
    )
}
"""The package's own commands by name."""
