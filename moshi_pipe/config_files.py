"""The folder of configs, read as text: what choices there are and what they say of themselves.

The help, the guide and the reference page come from the comments in the YAML files, so they need
neither Hydra nor a YAML parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moshi_pipe.errors import ConfigError

_HIDDEN_KEYS: Final = ("defaults", "node", "hydra")
_PACKAGE: Final = re.compile(r"# @package (\S+)")
_LINE: Final = re.compile(r"^(?P<key>[A-Za-z_]\w*):(?:\s+(?P<rest>.*))?$")


@dataclass(frozen=True, slots=True)
class OptionLine:
    """One key of a config file.

    Attributes:
        key: As written on the command line, such as ``sink.file.format``.
        default: Its value in the file, as text.
        comment: What the file says of it.
    """

    key: str
    default: str
    comment: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One file of a group, such as ``source=file``.

    Attributes:
        group: Name of the group.
        name: Name of the choice.
        summary: Its first comment lines.
        options: Its keys.
    """

    group: str
    name: str
    summary: str
    options: tuple[OptionLine, ...]


def conf_dir() -> Path:
    """Folder of the config tree: inside an installed package, beside it in a source tree.

    Raises:
        ConfigError: The installation lacks it.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(
        "this installation has no configs",
        got=f"no {here / 'conf' / 'config.yaml'}",
        fix="install moshi-pipe again",
    )


def group_names() -> list[str]:
    """Names of all groups, sorted."""
    return sorted(entry.name for entry in conf_dir().iterdir() if any(entry.glob("*.yaml")))


def choice_names(group: str) -> list[str]:
    """Names of a group's choices, sorted; empty for an unknown group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def read_choice(group: str, name: str) -> Choice:
    """Read one choice; its keys carry the name of the package that the file names, if it does.

    A sink's is its own, since several sinks may be chosen.
    """
    text = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")
    named = _PACKAGE.match(text)
    package = group if named is None else named[1]
    prefix = "" if package == "_global_" else f"{package}."
    options = () if group in ("graph", "experiment") else read_options(text, prefix)
    return Choice(group, name, _summary(text), options)


def root_options() -> tuple[OptionLine, ...]:
    """Keys that belong to no group."""
    text = (conf_dir() / "config.yaml").read_text(encoding="utf-8")
    return read_options(text, "")


def default_choices() -> dict[str, str]:
    """What the main config chooses, by group: ``{"source": "file", "sink": "[file, transcript]"}``.

    ``null`` where nothing is chosen.
    """
    text = (conf_dir() / "config.yaml").read_text(encoding="utf-8")
    found = re.findall(r"^ +- (\w+): ([^#\n]+)", text, flags=re.MULTILINE)
    return {group: choice.strip() for group, choice in found}


def read_options(text: str, prefix: str) -> tuple[OptionLine, ...]:
    """Top-level keys of a YAML text that hold a value, with the comments beside or above them.

    Args:
        text: The YAML.
        prefix: What goes before each key, with its dot.
    """
    options: list[OptionLine] = []
    above: list[str] = []
    for line in text.splitlines():
        if line.startswith("# ") and options:
            above.append(line[2:].strip())
            continue
        match = _LINE.match(line)
        if match is None:
            above = above if line.startswith(" ") else []
            continue
        value, _, comment = (match["rest"] or "").partition(" #")
        if match["key"] not in _HIDDEN_KEYS and value.strip():
            said = " ".join([*above, comment.strip()]).strip()
            options.append(OptionLine(prefix + match["key"], value.strip(), said))
        above = []
    return tuple(options)


def _summary(text: str) -> str:
    """The comment at the top of a file, on one line, without Hydra's own directives."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# ").strip())
    return " ".join(lines)
