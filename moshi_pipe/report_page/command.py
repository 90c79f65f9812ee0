"""``moshi-pipe report``: a page and a table from folders of runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.report import write_atomically
from moshi_pipe.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

USAGE: Final = "DIR ... [out=report.html] [csv=report.csv] [audio=opus] [audio_mb=24] [sessions=24]"

_AUDIO: Final = ("opus", "mp3", "flac", "link", "none")
_KEYS: Final = {
    "out": "the page; its folder must be there",
    "csv": "the table; beside the page unless you say where",
    "title": "of the page",
    "audio": "in the page: opus, or mp3 for old browsers, flac without loss, link to files, none",
    "audio_mb": "megabytes of audio in the page; further audio is linked",
    "sessions": "conversations on the page; all are in the table",
}


def report_command(words: Sequence[str]) -> int:
    """Write the page and the table.

    Raises:
        ConfigError: A word is wrong.
        InputError: No run is in the folders.
        OutputError: The files cannot be written.
    """
    values, folders = _read_words(words)
    page_path = Path(values.get("out", "report.html")).absolute()
    table_path = Path(values.get("csv", str(page_path.with_suffix(".csv")))).absolute()
    from moshi_pipe.report_page.collect import collect
    from moshi_pipe.report_page.page import PageOptions, study, write_page
    from moshi_pipe.report_page.table import write_table

    options = PageOptions(
        title=values.get("title", f"Runs in {', '.join(Path(f).resolve().name for f in folders)}"),
        path=page_path,
        audio=values.get("audio", "opus"),
        audio_mb=_number(values, "audio_mb", 24.0),
        sessions=int(_number(values, "sessions", 24.0)),
    )
    found = study(collect([Path(folder) for folder in folders]))
    page = write_page(found, options)
    write_atomically(page_path, page)
    write_atomically(table_path, write_table(found))
    missing = sum(
        len(run.problems) + sum(len(p.problems) for p in run.sessions) for run in found.runs
    )
    runs, groups = (
        format_count(len(x), n) for x, n in ((found.runs, "run"), (found.groups, "configuration"))
    )
    sys.stdout.write(
        f"{page_path} ({runs}, {groups}, {format_bytes(len(page.encode()))})\n{table_path}\n"
    )
    if missing:
        sys.stderr.write(
            f"{format_count(missing, 'thing')} missing or broken: see the end of the page\n"
        )
    return 0


def details() -> str:
    """What the words mean, for the help."""
    return "\n" + "".join(f"  {f'{key}=':<12}{what}\n" for key, what in _KEYS.items())


def _read_words(words: Sequence[str]) -> tuple[Mapping[str, str], list[str]]:
    values: dict[str, str] = {}
    folders = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key.isidentifier() and not Path(word).is_dir():
            if key not in _KEYS:
                raise ConfigError(f"report has no key '{key}'", wanted=closest(key, _KEYS))
            values[key] = value
        else:
            folders.append(word)
    if not folders:
        raise ConfigError(
            "report needs folders of runs or sweeps",
            got=" ".join(words) or "nothing",
            wanted=f"moshi-pipe report {USAGE}",
        )
    if values.get("audio", "opus") not in _AUDIO:
        raise ConfigError(
            "audio has no such value", got=values["audio"], wanted=closest(values["audio"], _AUDIO)
        )
    return values, folders


def _number(values: Mapping[str, str], key: str, default: float) -> float:
    text = values.get(key)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise ConfigError(f"{key} has the wrong type", got=text, wanted="a number, 0 or more")
    return number
