"""The commands that deal with checkpoints: ``convert``, ``quantize``, ``inspect``, ``check``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moshi_pipe.config_files import choice_names
from moshi_pipe.errors import CheckpointError, ConfigError, closest
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moshi_pipe.config import RunConfig
    from moshi_pipe.model_check import Result
    from moshi_pipe.nn.weight_quantizer import LayerQuality

    Compose = Callable[[Sequence[str]], RunConfig]

CONVERT_USAGE: Final = "[SRC | model=NAME] DST --to FORMAT [dtype=auto] [group=N]"
QUANTIZE_USAGE: Final = "[SRC | model=NAME] DST [quant=int8] [quant_group=32]"
INSPECT_USAGE: Final = "PATH [--json]"
QUANTIZED_FORMATS: Final = {"int8": "torch-q8", "int4": "mlx-q4"}
"""Format that a quantized checkpoint is written in, by the ``quant`` that keeps it."""

CHECK_USAGE: Final = "[model=NAME] [key=value ...] [clip=FILE] [--json FILE]"


def convert_command(
    words: Sequence[str], compose: Compose, progress: Callable[[int, int], None] | None
) -> int:
    """Write a checkpoint in another format."""
    options, rest = _take(words, {"to": "--to", "dtype": None, "group": None})
    places = _places(rest)
    if places is None or "to" not in options:
        raise ConfigError(
            "convert needs a source, a folder to write and a format",
            got=" ".join(words) or "nothing",
            wanted=f"moshi-pipe convert {CONVERT_USAGE}",
            fix="see `moshi-pipe convert --help` for the formats" if "to" not in options else None,
        )
    if not options.get("group", "32").isdigit():
        raise ConfigError("group has the wrong type", got=options["group"], wanted="a whole number")
    from moshi_pipe.models.checkpoint import open_checkpoint
    from moshi_pipe.nn.convert import convert

    overrides, folder = places
    checkpoint = open_checkpoint(_local(compose(overrides)).model)
    made = convert(
        checkpoint,
        folder,
        to=options["to"],
        dtype=options.get("dtype", "auto"),
        group=int(options["group"]) if "group" in options else None,
        progress=progress,
    )
    for name, num_bytes in made.files.items():
        sys.stdout.write(f"{format_bytes(num_bytes):>10}  {made.folder / name}\n")
    actions = ", ".join(f"{count} {action}" for action, count in made.actions.items())
    merged = "; LoRA merged" if made.merged else ""
    kept = "no number changed" if made.lossless else "numbers changed"
    sys.stdout.write(f"{made.source} to {made.to}, tensors: {actions}{merged}; {kept}\n")
    sys.stdout.write(f"use it with: model=local model.path={made.folder}\n")
    return 0


def quantize_command(
    words: Sequence[str], compose: Compose, progress: Callable[[int, int], None] | None
) -> int:
    """Write a quantized checkpoint and what that cost each tensor."""
    options, rest = _take(words, {"quant": None})
    places = _places(rest)
    if places is None:
        raise ConfigError(
            "quantize needs a source and a folder to write",
            got=" ".join(words) or "nothing",
            wanted=f"moshi-pipe quantize {QUANTIZE_USAGE}",
        )
    quant = options.get("quant", "int8")
    if quant not in QUANTIZED_FORMATS:
        raise ConfigError(
            f"quantize cannot make '{quant}'", wanted=closest(quant, QUANTIZED_FORMATS)
        )
    from moshi_pipe.models.checkpoint import LM, ModelOptions, open_checkpoint
    from moshi_pipe.nn.convert import convert
    from moshi_pipe.nn.quant_errors import tensor_errors

    overrides, folder = places
    config = _local(compose(overrides))
    group = config.backend.quant_group if quant == "int4" else None
    checkpoint = open_checkpoint(config.model)
    made = convert(checkpoint, folder, to=QUANTIZED_FORMATS[quant], group=group, progress=progress)
    written = open_checkpoint(ModelOptions(path=str(made.folder)), parts=[LM])
    sys.stdout.write(quality_text(list(tensor_errors(checkpoint, written))))
    use = f"model=local model.path={made.folder} quant={quant}"
    if group is not None and group != BackendOptions().quant_group:
        use += f" quant_group={group}"
    sys.stdout.write(f"use it with: {use}\n")
    return 0


def quality_text(rows: Sequence[LayerQuality]) -> str:
    """A table of what quantization did to every tensor, all of them last."""
    width = max((len(row.name) for row in rows), default=6)
    lines = [f"{'tensor':<{width}}  bits      before       after   error"]
    for row in rows:
        sizes = f"{format_bytes(row.plain_bytes):>12}{format_bytes(row.num_bytes):>12}"
        lines.append(f"{row.name:<{width}}  {row.num_bits:>4}{sizes}  {row.error or 0.0:>6.2%}")
    before, after = sum(r.plain_bytes for r in rows), sum(r.num_bytes for r in rows)
    worst = max((row.error or 0.0 for row in rows), default=0.0)
    sizes = f"{format_bytes(before):>12}{format_bytes(after):>12}"
    lines.append(f"{'all; largest error':<{width}}      {sizes}  {worst:>6.2%}")
    return "\n".join(lines) + "\n"


def convert_details() -> str:
    """The formats that ``convert`` writes."""
    summaries = {
        "torch": "PyTorch, the source's float type",
        "torch-q8": "PyTorch int8, one scale per row",
        "mlx": "MLX, the source's float type",
        "mlx-q8": "MLX int8 in groups of 64",
        "mlx-q4": "MLX int4 in groups of 32",
        "candle": "candle safetensors, the source's float type",
        "gguf": "GGUF Q8_0: int8 in blocks of 32",
    }
    lines = [f"  --to {name:<9} {text}" for name, text in summaries.items()]
    return "\n".join(["", *lines, ""])


def inspect_command(words: Sequence[str]) -> int:
    """Say what a checkpoint is."""
    paths = [word for word in words if word != "--json"]
    flags = [path for path in paths if path.startswith("-")]
    if flags:
        raise ConfigError(f"there is no flag '{flags[0]}'", wanted="--json")
    if len(paths) != 1:
        raise ConfigError(
            "inspect needs one folder or file",
            got=" ".join(words) or "nothing",
            wanted=f"moshi-pipe inspect {INSPECT_USAGE}",
        )
    from moshi_pipe.models.inspection import inspect_checkpoint, inspection_text

    found = inspect_checkpoint(paths[0])
    as_json = "--json" in words
    text = json.dumps(found.to_dict(), indent=2) + "\n" if as_json else inspection_text(found)
    sys.stdout.write(text)
    return CheckpointError.exit_code if found.problems else 0


def check_command(words: Sequence[str], compose: Compose) -> int:
    """Check a model and print its figures."""
    options, rest = _take(words, {"json": "--json", "clip": None})
    from moshi_pipe.model_check import check_model, check_text, clip_path
    from moshi_pipe.report import write_atomically

    if not any(word.startswith("graph=") for word in rest):
        rest = [*rest, f"graph={_graph_for(_local(compose(rest)))}"]
    config = _local(compose(rest))
    clip = Path(options["clip"]).expanduser() if "clip" in options else clip_path()
    check = check_model(config, clip, tell=_show)
    sys.stdout.write(check_text(check))
    if "json" in options:
        path = Path(options["json"]).expanduser().absolute()
        write_atomically(path, json.dumps(check.to_dict(), indent=2) + "\n")
        sys.stdout.write(f"{path}\n")
    return 0 if check.passed else CheckpointError.exit_code


def _local(config: RunConfig) -> RunConfig:
    """The same, if its model has files here.

    Raises:
        ConfigError: It runs elsewhere.
    """
    if config.remote is not None:
        raise ConfigError(
            f"model '{config.remote.name}' runs elsewhere: it has no files here",
            got=config.remote.place,
            fix="choose a model by name or folder; `moshi-pipe doctor` asks a server",
        )
    return config


def _graph_for(config: RunConfig) -> str:
    """The graph that uses all of a model."""
    from moshi_pipe.models.checkpoint import read_specs

    specs, _ = read_specs(config.model)
    if specs.lm is None:
        return "codec"
    return "transcribe" if specs.lm.num_generated == 0 else "dialogue"


def _show(result: Result) -> None:
    sys.stdout.write(f"{result.status:<6}{result.title:<16}{result.found}\n")
    sys.stdout.flush()


def _take(words: Sequence[str], known: dict[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """Take ``name=value``, ``--name value`` and ``--name=value`` out of a command's words.

    Args:
        words: All of them.
        known: Names, and the flag of those that have one.

    Returns:
        Values by name, and the other words.
    """
    flags = {flag: name for name, flag in known.items() if flag is not None}
    found: dict[str, str] = {}
    rest: list[str] = []
    pending: str | None = None
    for word in words:
        key, equals, value = word.partition("=")
        name = flags.get(key) or (key if key in known else None)
        if pending is not None:
            found[pending], pending = word, None
        elif name is not None and equals:
            found[name] = value
        elif key in flags and not equals:
            pending = name
        else:
            rest.append(word)
    if pending is not None:
        flag = known[pending]
        wanted = f"{flag} {'FILE' if pending == 'json' else 'FORMAT'}"
        raise ConfigError(f"{flag} needs a value", got=" ".join(words), wanted=wanted)
    unknown = [word for word in rest if word.startswith("--") and "config-dir" not in word]
    if unknown:
        listed = ", ".join(flag for flag in flags)
        raise ConfigError(f"there is no flag '{unknown[0]}'", wanted=listed)
    return found, rest


def _places(words: Sequence[str]) -> tuple[list[str], str] | None:
    """The words that choose a source, and the folder to write; None where one is missing."""
    overrides = [word for word in words if _is_override(word)]
    places = [word for word in words if word not in overrides]
    named = any(word.startswith(("model=", "model.path=")) for word in overrides)
    if len(places) != (1 if named else 2):
        return None
    return (overrides if named else [*overrides, *_model_words(places[0])]), places[-1]


def _is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and key.replace(".", "_").lstrip("+~").isidentifier()


def _model_words(source: str) -> list[str]:
    """A folder, or the name of a model."""
    if not Path(source).is_dir() and source in choice_names("model"):
        return [f"model={source}"]
    return ["model=local", f"model.path={source}"]
