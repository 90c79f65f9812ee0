"""What a run reports: to people as a table, to programs as ``run.json`` beside ``config.yaml``."""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import OutputError, SessionError

if TYPE_CHECKING:
    from collections.abc import Mapping

REPORT_NAME: Final = "run.json"
CONFIG_NAME: Final = "config.yaml"
INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""

_PACKAGES: Final = (
    "moshi-pipe",
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "soundfile",
    "soxr",
    "sentencepiece",
    "safetensors",
)


@dataclass(slots=True)
class NodeReport:
    """How long one node of the graph took per tick.

    Attributes:
        name: Name of the node.
        ticks: How often it fired.
        mean_ms: Mean, in milliseconds.
        p50_ms: Median.
        p99_ms: What 99 of 100 ticks stay below.
        max_ms: The longest.
    """

    name: str
    ticks: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(slots=True)
class SessionReport:
    """What became of one session.

    Attributes:
        id: Unique in the run.
        status: ``done``, ``failed``, ``skipped`` (its results were there) or ``interrupted``.
        frames: Frames that it lasted.
        audio_s: Seconds of its input.
        wall_s: Seconds from its first to its last frame.
        seed: Of its randomness.
        input: Where it came from, such as an absolute path.
        files: What was written, absolute paths.
        warnings: What a user should know, such as a file that was cut off.
        error: Why it failed, the whole message.
        exit_code: What the command returns for it; 0 when it did not fail.
        dropped: Frames that were not processed, because the models were too late for them.
        source: What the source said of its input.
        sinks: What each sink said when it closed, by label.
        greeting_s: What the model said at first and was left out, in seconds.
    """

    id: str
    status: str
    frames: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0
    seed: int | None = None
    input: str | None = None
    files: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    exit_code: int = 0
    dropped: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    sinks: dict[str, Any] = field(default_factory=dict)
    greeting_s: float = 0.0


@dataclass(slots=True)
class SessionTotals:
    """Sums over sessions, which do not grow with their number.

    Attributes:
        counts: Sessions by status.
        frames: Frames that they lasted.
        audio_s: Seconds of their inputs.
        dropped: Frames that were not processed.
        underruns: Times that a speaker had nothing to play.
    """

    counts: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    audio_s: float = 0.0
    dropped: int = 0
    underruns: int = 0

    def add(self, report: SessionReport) -> None:
        """Count a session that ended."""
        self.counts[report.status] = self.counts.get(report.status, 0) + 1
        self.frames += report.frames
        self.audio_s += report.audio_s
        self.dropped += report.dropped
        self.underruns += sum(sink.get("underruns", 0) for sink in report.sinks.values())


@dataclass(slots=True)
class RunReport:
    """What became of a run.

    Attributes:
        model: Name of the model.
        graph: Name of the graph.
        device: Device that was chosen.
        dtype: Type of the weights that was chosen; ``unknown`` where the model is remote.
        seed: Seed of the run: with it and ``config.yaml`` the run repeats.
        output_dir: Folder of results, absolute, or their address.
        slots: Sessions at once.
        wall_s: Seconds from the first session's start to the last one's end.
        load_s: Seconds to load the models.
        audio_s: Seconds of all inputs that were processed.
        frames: Frames of all sessions.
        ticks: Firings of the graph.
        peak_rss_bytes: Most memory that the process held.
        peak_device_bytes: Most memory of the GPU; None on the CPU.
        interrupted: Whether Ctrl-C ended it.
        nodes: Time per node.
        sessions: Every session, in order; where ``totals`` is, some of them.
        warnings: What a user should know, such as random weights.
        versions: Packages, Python and platform.
        start: What the time until ready was spent on, in seconds.
        verdict: Live: whether it kept up, and if not, why.
        live: Live: the numbers behind the verdict.
        quant: How linear weights were stored, in one line; None where they were of ``dtype``.
        numerics: In which forms the language model was computed, ``fast`` or ``reference``, and
            what else is not exact; None where that is the backend's affair.
        totals: Of all sessions, where not all are listed; None where they are.
        signature: Identifies the configuration, wherever it runs.
        timing: How long ticks took, as classes and over the run, and how long outside of nodes.
        endless: Whether the source was without end: no session makes such a run fail.
    """

    model: str
    graph: str
    device: str
    dtype: str
    seed: int
    output_dir: str
    slots: int = 1
    wall_s: float = 0.0
    load_s: float = 0.0
    audio_s: float = 0.0
    frames: int = 0
    ticks: int = 0
    peak_rss_bytes: int | None = None
    peak_device_bytes: int | None = None
    interrupted: bool = False
    nodes: list[NodeReport] = field(default_factory=list)
    sessions: list[SessionReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None
    live: dict[str, Any] = field(default_factory=dict)
    quant: str | None = None
    numerics: str | None = None
    totals: SessionTotals | None = None
    signature: str = ""
    timing: dict[str, Any] = field(default_factory=dict)
    endless: bool = False

    @property
    def speed(self) -> float:
        """Seconds of audio per second of time; 1 is real time."""
        return self.audio_s / self.wall_s if self.wall_s > 0 else 0.0

    @property
    def exit_code(self) -> int:
        """What the command returns.

        130 after Ctrl-C, 0 when no session failed, the code that all failed sessions share, else
        that of :class:`~moshi_pipe.errors.SessionError`. Of a source without end, no session makes
        the run fail.
        """
        if self.interrupted:
            return INTERRUPTED
        if self.endless:
            return 0
        codes = {session.exit_code for session in self.sessions if session.status == "failed"}
        if not codes:
            return 0
        return codes.pop() or SessionError.exit_code if len(codes) == 1 else SessionError.exit_code

    def count(self, status: str) -> int:
        """Sessions that ended so."""
        if self.totals is not None:
            return self.totals.counts.get(status, 0)
        return sum(session.status == status for session in self.sessions)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**asdict(self), "speed": round(self.speed, 3), "exit_code": self.exit_code}


def versions() -> dict[str, str]:
    """Versions of what a run depends on, without importing it."""
    found = {
        "moshi-pipe": "a source tree",  # unless installed
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_rss_bytes() -> int | None:
    """Most memory that this process held so far; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_report(report: RunReport, composed: str, folder: Path | None = None) -> Path:
    """Write ``run.json`` and ``config.yaml`` into the run's folder; each appears whole or not.

    Args:
        report: What became of the run.
        composed: The configuration as YAML.
        folder: Where to write, if not where the results are.

    Returns:
        Path of ``run.json``.

    Raises:
        OutputError: The folder cannot be written.
    """
    folder = Path(report.output_dir) if folder is None else folder
    # An aligned seed: what was drawn is written, so that the config alone repeats the run.
    lines = [
        f"seed: {report.seed}" if line == "seed: null" else line for line in composed.splitlines()
    ]
    write_atomically(folder / CONFIG_NAME, "\n".join(lines) + "\n")
    path = folder / REPORT_NAME
    write_atomically(path, json.dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n")
    return path


def make_output_dir(folder: Path) -> None:
    """Make a folder of results, unless it is there.

    Raises:
        OutputError: It cannot be made; names the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the output folder {folder}",
            got=error.strerror or str(error),
            fix="choose another folder: output_dir=FOLDER",
        ) from error


def write_atomically(path: Path, text: str, *, elsewhere: str = "output_dir=FOLDER") -> None:
    """Write a file such that a reader, or a crash, sees the old one or the new one, never half.

    Args:
        path: The file; its folder is made.
        text: What will be in it.
        elsewhere: How the user chooses another folder.

    Raises:
        OutputError: It cannot be written; names the file and the reason.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(
            f"cannot write {path}",
            got=error.strerror or str(error),
            fix=f"make room or choose another folder: {elsewhere}",
        ) from error


def read_report(folder: Path) -> Mapping[str, Any]:
    """Report of an earlier run in ``folder``; empty without one, or if it cannot be read."""
    return read_record(folder / REPORT_NAME)


def read_record(path: Path) -> Mapping[str, Any]:
    """What an earlier run wrote about itself or a session; empty if that cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
