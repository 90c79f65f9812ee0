"""``moshi-pipe plugin new``: write a small distribution that passes its own tests at once."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

import moshi_pipe
from moshi_pipe.errors import ConfigError, OutputError, closest
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE: Final = "new NAME [--kind source|sink|transform|backend] [--dir DIR]"

_TEMPLATES: Final = Path(__file__).resolve().parent / "templates" / "plugin"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN: Final = ("nodes", "torch", "lm", "codec", "none")


@dataclass(frozen=True, slots=True)
class Kind:
    """What can be made.

    Attributes:
        summary: What the example does.
        use: How it is used, on the command line.
        keys: Rows of its table of options.
        registered: Kind of node under which it is registered; empty for a backend.
    """

    summary: str
    use: str
    keys: str
    registered: str


KINDS: Final = {
    "source": Kind(
        "A sine tone as a source of moshi-pipe.",
        "moshi-pipe source=$name source.frequency_hz=220",
        "| `source.frequency_hz` | `440.0` | pitch of the tone, in Hz |\n"
        "| `source.duration_s` | `1.0` | length of the session, in seconds |",
        "source",
    ),
    "sink": Kind(
        "How loud each frame was, as lines of JSON: a sink of moshi-pipe.",
        "moshi-pipe source.path=question.wav 'sink=[file,$name]'",
        "| `sink.$name.floor_dbfs` | `-90.0` | what silence is written as, in dB of full scale |",
        "sink",
    ),
    "transform": Kind(
        "A node for moshi-pipe's graphs that makes the voice louder or softer.",
        "moshi-pipe source.path=question.wav graph=dialogue_$name "
        "graph.nodes.$name.options.gain_db=3",
        "| `graph.nodes.$name.options.gain_db` | `-6.0` | gain in dB; below zero is softer |",
        "node",
    ),
    "backend": Kind(
        "A backend of moshi-pipe: PyTorch with a stopwatch.",
        "moshi-pipe source.path=question.wav backend=$name backend_options.$name.slow_ms=40",
        "| `backend_options.$name.slow_ms` | `80.0` | a step that takes longer is told of, in ms |",
        "",
    ),
}
"""What can be made, by name."""


def details() -> str:
    """Further lines for ``--help plugin``."""
    rows = [f"  --kind {name:<11}{kind.summary}" for name, kind in KINDS.items()]
    lines = ["", *rows, "  --dir DIR         where its folder is made; here unless given", ""]
    return "\n".join(lines)


def plugin_command(words: Sequence[str]) -> int:
    """Run the command.

    Args:
        words: What follows ``moshi-pipe plugin``.

    Raises:
        ConfigError: The words cannot be read, the name is bad or taken, the folder is there.
        OutputError: The folder cannot be written.
    """
    kind, parent, rest = "source", Path(), []
    left = list(words)
    while left:
        flag, is_set, value = left.pop(0).partition("=")
        if flag in ("--kind", "--dir"):
            if not is_set and not left:
                raise ConfigError(f"{flag} needs a word after it", wanted=f"plugin {USAGE}")
            value = value if is_set else left.pop(0)
            kind, parent = (value, parent) if flag == "--kind" else (kind, Path(value))
        elif flag.startswith("-"):
            raise ConfigError(f"there is no flag '{flag}'", wanted=closest(flag, _FLAGS))
        else:
            rest.append(flag)
    if len(rest) != 2 or rest[0] != "new":
        raise ConfigError(
            "cannot read the words after `moshi-pipe plugin`",
            got=" ".join(words) or "nothing",
            wanted=f"moshi-pipe plugin {USAGE}",
        )
    folder, files = write_plugin(rest[1], kind, parent.expanduser())
    for file in files:
        sys.stdout.write(f"{file}\n")
    use = Template(KINDS[kind].use).substitute(name=rest[1])
    sys.stdout.write(
        f"\ntest it:     cd {folder} && python -m pytest\n"
        f"install it:  pip install -e {folder}\n"
        f"use it:      {use}\n"
    )
    return 0


_FLAGS: Final = ("--kind", "--dir")


def write_plugin(name: str, kind: str, parent: Path) -> tuple[Path, list[Path]]:
    """Write the distribution ``moshi-pipe-NAME``.

    Args:
        name: What users will choose it by; also the plugin's name.
        kind: One of :data:`KINDS`.
        parent: Folder in which its own is made.

    Returns:
        Its folder, and the files in it.

    Raises:
        ConfigError: The kind is unknown, the name is bad or taken, or the folder is there.
        OutputError: The folder cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind '{kind}' of plugin", wanted=closest(kind, KINDS))
    _check_name(name, KINDS[kind].registered)
    folder = parent / f"moshi-pipe-{name.replace('_', '-')}"
    if folder.exists():
        raise ConfigError(f"{folder} is there already", fix="choose another name, or another --dir")
    chosen = KINDS[kind]
    values = {
        "name": name,
        "dist": folder.name,
        "package": f"moshi_pipe_{name}",
        "Class": "".join(part.capitalize() for part in name.split("_")),
        "year": str(datetime.now(tz=timezone.utc).year),
        "version": moshi_pipe.__version__,
        "summary": chosen.summary,
        "use": Template(chosen.use).substitute(name=name),
        "keys": Template(chosen.keys).substitute(name=name),
    }
    files = []
    try:
        for base in (_TEMPLATES / "common", _TEMPLATES / kind):
            for template in sorted(base.rglob("*.txt")):
                path = folder / _place(template.relative_to(base), values["package"])
                path.parent.mkdir(parents=True, exist_ok=True)
                text = Template(template.read_text(encoding="utf-8")).substitute(values)
                path.write_text(text, encoding="utf-8")
                files.append(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}", got=error.strerror or str(error), fix="choose another --dir"
        ) from error
    return folder, files


def _place(template: Path, package: str) -> Path:
    """Where a template's text goes: ``package/`` has the package's name; the last ending goes."""
    if template.name == "LICENSE.txt":
        return Path("LICENSE")
    parts = [package if part == "package" else part for part in template.with_suffix("").parts]
    return Path(*parts)


def _check_name(name: str, registered: str) -> None:
    """Refuse a name that cannot be a module, or that something has.

    Raises:
        ConfigError: Says why.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        suggestion = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789")
        raise ConfigError(
            f"a plugin cannot be called '{name}'",
            wanted="small letters, digits and '_', a letter first",
            fix=f"for instance {suggestion}" if _NAME.fullmatch(suggestion) else None,
        )
    plugins = load_plugins()
    taken = {*_TAKEN, *(info.name for info in plugins.infos)}
    taken |= set(plugins.nodes.names(registered)) if registered else set()
    if name in taken:
        raise ConfigError(
            f"a plugin cannot be called '{name}': something has this name",
            got=", ".join(sorted(taken)),
            fix="choose another name",
        )
