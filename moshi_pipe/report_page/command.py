"""``moshi-pipe report``: a page and a table from folders of runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.report import write_atomically
from moshi_pipe.units import format_bytes, format_count
from moshi_pipe.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

USAGE: Final = "DIR ... [out=report.html] [csv=report.csv] [audio=opus] [audio_mb=24] [sessions=24]"

_AUDIO: Final = ("opus", "mp3", "flac", "link", "none")
_KEYS: Final = {
    "out": "the page; its folder is made if it is not there",
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
    page_path, table_path = _places(values)
    places = [local_path(folder, "report") for folder in folders]
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
    found = study(collect(places))
    page = write_page(found, options)
    write_atomically(page_path, page, elsewhere="out=FOLDER/report.html")
    write_atomically(table_path, write_table(found), elsewhere="csv=FOLDER/report.csv")
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


def _places(values: Mapping[str, str]) -> tuple[Path, Path]:
    """Where the page and the table go.

    Raises:
        ConfigError: One of them can be no file, or both are the same.
    """
    page_path = _place(values, "out", Path("report.html"))
    table_path = _place(values, "csv", page_path.with_suffix(".csv"))
    if page_path.resolve() == table_path.resolve():
        raise ConfigError(
            "the table would be written over the page",
            got=f"{page_path} for both",
            fix="choose names that differ: out=report.html csv=report.csv",
        )
    return page_path, table_path


def _place(values: Mapping[str, str], key: str, default: Path) -> Path:
    text = values.get(key, str(default))
    path = local_path(text, f"{key}=").absolute()
    if not text or path.is_dir():
        raise ConfigError(
            f"{key} names no file",
            got=f"{path}, a folder" if text else f"{key}= and nothing",
            wanted=f"a name such as {key}={default.name}",
        )
    return path


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
