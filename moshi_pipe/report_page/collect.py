"""What is known of runs, read from their folders. Broken and missing pieces are named, not fatal.

Everything here was written by programs that may have been killed, copied without some of its
files, or come from another version: nothing is taken for granted.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import InputError
from moshi_pipe.identity import flat
from moshi_pipe.report import CONFIG_NAME, REPORT_NAME, read_record
from moshi_pipe.sweep_cells import CELL_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SESSION_END: Final = ".session.json"
METRICS_END: Final = ".metrics.json"
SIDES: Final = ("user", "model")

_LARGEST: Final = 1e100  # what is larger is no measure, and sums and squares of it overflow


@dataclass(frozen=True, slots=True)
class Word:
    """A word on the time line of the input.

    Attributes:
        start_s: Its begin.
        end_s: Its end.
        text: Itself.
    """

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Sound:
    """Where the audio of one side is.

    Attributes:
        path: The file.
        channel: Which of its channels; None mixes all.
        start_s: Where the session begins in it.
        duration_s: Seconds of it; None takes it to its end.
    """

    path: Path
    channel: int | None = None
    start_s: float = 0.0
    duration_s: float | None = None


@dataclass(slots=True)
class SessionPart:
    """One session of a run.

    Attributes:
        id: Its name.
        status: As in the report, or ``unfinished`` where the run did not end.
        record: Everything that was written about it.
        sounds: Where its audio is, by side.
        words: What was said, by side.
        turns: When each side spoke, in seconds; empty where nobody measured it.
        metrics: Numbers by name; None where a metric has no value.
        problems: What is missing, in sentences.
    """

    id: str
    status: str
    record: Mapping[str, Any]
    sounds: dict[str, Sound] = field(default_factory=dict)
    words: dict[str, list[Word]] = field(default_factory=dict)
    turns: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def counts(self) -> bool:
        """Whether it went to its end: what was measured of a part belongs in no mean."""
        return self.status == "done"


@dataclass(slots=True)
class RunPart:
    """One run.

    Attributes:
        folder: Where it is.
        name: Its folder as a reader knows it.
        report: Its ``run.json``; empty without one.
        config: Its configuration, keys with dots.
        cell: What the sweep says of it; empty outside of sweeps.
        ended_s: When its ``run.json`` was written, in seconds since 1970; 0 without one.
        sessions: Its sessions.
        units: Unit of each metric.
        problems: What is missing, in sentences.
    """

    folder: Path
    name: str
    report: Mapping[str, Any]
    config: dict[str, Any]
    cell: Mapping[str, Any]
    ended_s: float = 0.0
    sessions: list[SessionPart] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def collect(folders: Sequence[Path]) -> list[RunPart]:
    """Read all runs in some folders and below, each once.

    Raises:
        InputError: A folder is not there, or no run is in any.
    """
    found: dict[Path, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}", wanted="folders of runs or of sweeps")
        for run in _run_folders(folder):
            name = os.path.normpath(os.path.join(folder.name, os.path.relpath(run, folder)))
            found.setdefault(run.resolve(), name)
    if not found:
        raise InputError(
            f"no run is in {', '.join(map(str, folders))}",
            wanted=f"{REPORT_NAME}, or files that end with {SESSION_END}",
        )
    return [_read_run(folder, name) for folder, name in found.items()]


def _run_folders(folder: Path) -> list[Path]:
    """Folders of runs, those that were cut short as well; cells by number."""
    marks = {path.parent for name in (REPORT_NAME, CELL_NAME) for path in folder.rglob(name)}
    marks = {path for path in marks if not any(part.startswith(".") for part in path.parts[-1:])}
    loose = [path.parent for path in folder.rglob(f"*{SESSION_END}")]
    marks |= {path for path in loose if not any(path.is_relative_to(mark) for mark in marks)}
    return sorted(marks, key=lambda path: [_sortable(part) for part in path.parts])


def _sortable(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdecimal() else (1, 0, part)


def _read_run(folder: Path, name: str) -> RunPart:
    run = RunPart(
        folder, name, read_record(folder / REPORT_NAME), {}, read_record(folder / CELL_NAME)
    )
    run.config = _read_config(folder / CONFIG_NAME, run.problems)
    if run.report:
        run.ended_s = (folder / REPORT_NAME).stat().st_mtime
    else:
        state = run.cell.get("state")
        why = f": {run.cell['error']}" if run.cell.get("error") else ""
        run.problems.append(
            f"the run failed{why}" if state == "failed" else "the run has no end: no run.json"
        )
    listed = [item for item in _list(run.report.get("sessions")) if isinstance(item, dict)]
    if not listed:
        listed = [
            {**read_record(path), "id": _session_id(path, folder)}
            for path in sorted(folder.rglob(f"*{SESSION_END}"))
        ]
    run.sessions = [_read_session(run, item) for item in listed]
    return run


def _session_id(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()[: -len(SESSION_END)]


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    """A configuration with dotted keys; empty if it cannot be read."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.load(path)
        if isinstance(loaded, DictConfig):
            values: Any = OmegaConf.to_container(loaded)
            return {str(key): value for key, value in flat(values)}
    except FileNotFoundError:
        pass
    except (OSError, YAMLError, OmegaConfBaseException, ValueError):
        problems.append(f"{path.name} cannot be read")
        return {}
    problems.append(f"{path.name} is not there")
    return {}


def _read_session(run: RunPart, listed: Mapping[str, Any]) -> SessionPart:
    """A session from the run's list and its own record, which knows more."""
    session_id = str(listed.get("id", "?"))
    own = _inside(run.folder, f"{session_id}{SESSION_END}")
    record = {**listed, **(read_record(own) if own else {})}
    status = str(listed.get("status") or "unfinished")
    if status == "skipped":  # it was done by an earlier run in this folder
        status = str(record.get("status", "skipped"))
    part = SessionPart(session_id, status, record)
    measured = _find_files(run, part)
    beside = _inside(run.folder, f"{session_id}{METRICS_END}")
    if beside is not None and beside.is_file():
        measured.append(beside)
    for path in dict.fromkeys(measured):
        _read_metrics(run, part, read_record(path), path.name)
    if record.get("error"):
        part.problems.append(str(record["error"]).splitlines()[0])
    if not part.counts:
        part.problems.append(f"the session is {status}, not done: it counts in no mean")
    return part


def _inside(folder: Path, name: str) -> Path | None:
    """A file of the run; None where its name leads out of the run's folder."""
    path = Path(os.path.normpath(folder / name))
    return path if path.is_relative_to(folder) and "\0" not in name else None


def _find_files(run: RunPart, part: SessionPart) -> list[Path]:
    """Find what the sinks wrote: audio of either side, and words; returns files of metrics."""
    lead_s = as_number(part.record.get("lead_s")) or 0.0
    measured = []
    for label, said in _mapping(part.record.get("sinks")).items():
        said = _mapping(said)
        files = [_moved(run, str(file)) for file in _list(said.get("files"))]
        output = str(run.config.get(f"sink.{label}.output", ""))
        for path in files:
            if not path.is_file():
                part.problems.append(f"{path.name} is not there")
            elif path.name.endswith(METRICS_END):
                measured.append(path)
            elif said.get("sink") == "file":
                stereo = run.config.get(f"sink.{label}.stereo") is True
                _add_sounds(part, path, stereo, output, lead_s)
            elif path.suffix == ".jsonl" and said.get("sink") == "transcript":
                side = "user" if output.startswith("user") else "model"
                part.words.setdefault(side, []).extend(_read_words(path, part.problems))
    if "user" not in part.sounds:
        _add_input(part)
    part.problems += [f"the audio of the {side} is not here" for side in _silent_sides(part)]
    return measured


def _silent_sides(part: SessionPart) -> list[str]:
    return [side for side in SIDES if side not in part.sounds and part.status != "failed"]


def _add_sounds(part: SessionPart, path: Path, stereo: bool, output: str, lead_s: float) -> None:
    alone = "user" if output == "user_audio" else "model"
    sides: dict[str, int | None] = {"model": 0, "user": 1} if stereo else {alone: None}
    for side, channel in sides.items():
        part.sounds.setdefault(side, Sound(path, channel, lead_s))


def _add_input(part: SessionPart) -> None:
    """What the user said is the file that was read."""
    given = part.record.get("input")
    if not isinstance(given, str) or "\0" in given or not Path(given).is_file():
        return
    cut = _mapping(part.record.get("part"))
    channel = cut.get("channel")
    part.sounds["user"] = Sound(
        Path(given),
        channel if isinstance(channel, int) else None,
        as_number(cut.get("start_s")) or 0.0,
        as_number(cut.get("duration_s")),
    )


def _moved(run: RunPart, file: str) -> Path:
    """A file of a run whose folder may have been moved since."""
    path = Path(file.replace("\0", ""))
    root = str(run.report.get("output_dir") or run.config.get("output_dir") or run.folder)
    here = _inside(run.folder, os.path.relpath(path, root)) if path.is_absolute() else None
    return here if here is not None and here.is_file() else path


def _read_words(path: Path, problems: list[str]) -> Iterator[Word]:
    """Words of a transcript; lines that are none are counted."""
    broken = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        problems.append(f"{path.name} cannot be read")
        return
    for line in lines:
        try:
            item = json.loads(line)
            start_s, end_s = float(item["start_s"]), float(item["end_s"])
            if not (math.isfinite(start_s) and math.isfinite(end_s)):
                raise ValueError("not a time")  # noqa: TRY301
            yield Word(start_s, max(start_s, end_s), str(item["text"]))
        except (ValueError, TypeError, LookupError):
            broken += bool(line.strip())
    if broken:
        problems.append(f"{path.name}: {broken} of {len(lines)} lines cannot be read")


def _read_metrics(run: RunPart, part: SessionPart, found: Mapping[str, Any], name: str) -> None:
    """Numbers with their units, and turns, as sinks of the group ``metric`` write them."""
    if not found:
        part.problems.append(f"{name} cannot be read")
    for metric, given in _mapping(found.get("metrics")).items():
        value = given.get("value") if isinstance(given, dict) else given
        if isinstance(given, dict) and given.get("unit"):
            run.units.setdefault(str(metric), str(given["unit"]))
        if value is None or as_number(value) is not None:
            part.metrics[str(metric)] = as_number(value)
    listened = "vad" in found  # without, empty lists of turns say nothing
    for side, spans in _mapping(found.get("turns") if listened else None).items():
        if side in SIDES:
            part.turns[side] = sorted(_spans(_list(spans)))
    for side, words in _mapping(found.get("words")).items():
        if side in SIDES and side not in part.words:  # a transcript of its own knows as much
            part.words[side] = list(_listed_words(_list(words)))


def _listed_words(words: Iterable[Any]) -> Iterator[Word]:
    """Words as begin, end and text; what is none is left out."""
    for word in words:
        if isinstance(word, list) and len(word) == 3 and isinstance(word[2], str):
            for span in _spans([word[:2]]):
                yield Word(*span, word[2])


def _spans(spans: Iterable[Any]) -> Iterator[tuple[float, float]]:
    for span in spans:
        ends = [as_number(end) for end in _list(span)]
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None and ends[0] < ends[1]:
            yield ends[0], ends[1]


def as_number(value: Any) -> float | None:
    """A finite number, small enough to be summed and drawn; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _LARGEST else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
