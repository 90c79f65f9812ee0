"""The guide, the help and the version, from metadata alone: no Hydra, no torch.

Also the table of flags and commands, which the command line checks words against.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from moshi_pipe.config_files import (
    OptionLine,
    choice_names,
    default_choices,
    group_names,
    read_choice,
    root_options,
)
from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.hooks import Command, NodeRegistry, option_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH: Final = 100  # columns of the help
_KEY_WIDTH: Final = 34  # columns of a key and its default before its comment

_WITHOUT_FILES: Final = {
    "node": "kinds of nodes that plugins give to graphs",
    "backend": "backends with options of their own",
}
"""What ``--help`` shows like a group, though it is none."""

FLAGS: Final = {
    "--help": "this page; `--help GROUP` shows the choices and keys of a group",
    "--version": "version of moshi-pipe",
    "--verbose": "show the traceback of an error; those of sessions are in their .session.json",
    "--cfg": "`--cfg job` prints the configuration and runs nothing",
    "--info": "what Hydra knows: defaults, searchpath, plugins",
    "--multirun": "-m: run once per combination: `-m seed=1,2`, into output_dir/0, 1 ...; the same "
    "words again go on with a sweep that was cut",
    "-p": "`-p no:NAME` leaves a plugin out; see `moshi-pipe plugins`",
    "--plugins-dir": "a folder whose .py files are plugins",
    "--config-dir": "a folder of your own configs, in the shape of ours",
    "--shell-completion": '-sc: `eval "$(moshi-pipe -sc install=bash)"`',
}
"""Flags and what they do."""

EXIT_CODES: Final = (
    (0, "all sessions are done, or were done before"),
    (1, "an error that should not happen, or a check of `doctor` that failed"),
    (2, "the configuration: a key, group, value or graph"),
    (3, "an input cannot be read"),
    (4, "an output cannot be written"),
    (5, "a model's files are missing or damaged"),
    (6, "a device, driver or library is missing, failed, or too small for the plan"),
    (7, "a session failed while it ran; others may have finished"),
    (130, "Ctrl-C or SIGTERM; what was written is kept"),
)
"""Exit codes and what they mean."""


def guide_text() -> str:
    """One screen: what it is and five commands to try."""
    return """\
moshi-pipe runs full-duplex speech models as a streaming graph that a config file describes:
a person speaks, into a microphone or a file; Moshi's spoken answer and its transcript come out.

Five commands to try:

  moshi-pipe source.path=question.wav            answer a recording, into moshi-out/
  moshi-pipe source.path=question.wav --cfg job  the whole configuration of that run
  moshi-pipe source=mic sink=speaker             talk to it; Ctrl-C ends
  moshi-pipe doctor model=moshiko                what works here, and whether the model keeps up
  moshi-pipe --help                              every group, key and command

The model in the package is a toy: in English it answers sums of digits, what comes after a number
or a day, colours, names and greetings ("what is three plus four"), and nothing else. Choose a
large one by name, such as model=moshiko; model=embedded is tiny and random, for trying things.
"""


def help_text(commands: Sequence[Command], registry: NodeRegistry) -> str:
    """The help: groups with their choices, keys of no group, commands, flags, exit codes."""
    lines = ["moshi-pipe [COMMAND] [GROUP=CHOICE ...] [KEY=VALUE ...] [FLAGS]", ""]
    lines += ["Groups (* is chosen unless you choose another; `--help GROUP` shows its keys)"]
    for group in group_names():
        chosen = default_choices().get(group, "").strip("[]").replace(" ", "").split(",")
        names = [f"{n}*" if n in chosen else n for n in _all_choices(group, registry)]
        lines += _row(f"  {group}=", ", ".join(names), 16)
    for group, what in _WITHOUT_FILES.items():
        names = _all_choices(group, registry)
        lines += _row(f"  {group}", f"{what}: {', '.join(names)}", 16) if names else []
    lines += ["", "Keys that belong to no group"]
    for option in root_options():
        lines += _option_row(option)
    lines += ["", "Commands"]
    for command in commands:
        lines += _row(f"  {command.name}", f"{command.summary}  {command.usage}".rstrip(), 20)
    lines += ["", "Flags"]
    for flag, what in FLAGS.items():
        lines += _row(f"  {flag}", what, 22)
    lines += ["", "Exit codes"]
    lines += [f"  {code:<6}{what}" for code, what in EXIT_CODES]
    lines += ["", "In zsh, quote brackets: moshi-pipe source.path=a.wav 'sink=[file,transcript]'"]
    return "\n".join(lines) + "\n"


def group_help_text(group: str, registry: NodeRegistry) -> str:
    """The help of one group: its choices, what they are, their keys with defaults and units.

    Args:
        group: Name of the group; ``source=file`` shows one choice.
        registry: Nodes of plugins.

    Raises:
        ConfigError: There is no such group or choice; gives the closest.
    """
    group, _, only = group.partition("=")
    known = [*group_names(), *_WITHOUT_FILES]
    if group not in known:
        raise ConfigError(f"there is no group '{group}'", wanted=closest(group, known))
    names = _all_choices(group, registry)
    if only and only not in names:
        raise ConfigError(f"there is no {group} '{only}'", wanted=closest(only, names))
    lines: list[str] = []
    for name in [only] if only else names:
        summary, options = _describe(group, name, registry)
        lines += [f"{group}={name}", *(f"  {line}" for line in textwrap.wrap(summary, _WIDTH - 2))]
        for option in options:
            lines += _option_row(option)
        lines.append("")
    return "\n".join(lines)


def _describe(group: str, name: str, registry: NodeRegistry) -> tuple[str, tuple[OptionLine, ...]]:
    """Summary and options of a choice: from its file, or from a plugin's dataclass."""
    if name in choice_names(group):
        choice = read_choice(group, name)
        return choice.summary, choice.options
    if group == "graph":
        graph = next(graph for graph in registry.graphs() if graph.name == name)
        return f"{graph.summary} From the plugin {graph.owner}.".strip(), ()
    options: type | None
    if group == "backend":
        backend = next(backend for backend in registry.backends() if backend.name == name)
        options, owner = backend.load_options(), backend.owner
        summary, prefix = _first_line(options), f"backend_options.{name}."
    else:
        entry = registry.get(group, name)
        options, owner = entry.load_options(), entry.owner
        prefixes = {"sink": f"sink.{name}.", "node": "graph.nodes.NAME.options."}
        summary, prefix = _first_line(entry.load()), prefixes.get(group, f"{group}.")
    lines = () if options is None else option_lines(options)
    return (
        f"{summary} From the plugin {owner}.".strip(),
        tuple(
            OptionLine(prefix + key, default, said)
            for key, default, said in lines
            if (group, key) != ("engine", "node")  # it is what the choice sets
        ),
    )


def _first_line(described: type) -> str:
    return (described.__doc__ or "").strip().partition("\n")[0]


def _all_choices(group: str, registry: NodeRegistry) -> list[str]:
    """Choices of a group, those of plugins included."""
    foreign = {
        "graph": [graph.name for graph in registry.graphs()],
        "backend": [backend.name for backend in registry.backends()],
    }.get(group, registry.names(group))
    return sorted({*choice_names(group), *foreign})


def _option_row(option: OptionLine) -> list[str]:
    return _row(f"  {option.key}={option.default}", option.comment, _KEY_WIDTH)


def _row(head: str, text: str, width: int) -> list[str]:
    """Two columns; the right one is wrapped, and starts a line of its own after a long head."""
    wrapped = textwrap.wrap(text, _WIDTH - width) or [""]
    if len(head) >= width:
        return [head, *(" " * width + line for line in wrapped if line)]
    first = f"{head:<{width}}{wrapped[0]}".rstrip()
    return [first, *(" " * width + line for line in wrapped[1:])]
