"""What a person sees while a run lasts, and at its end.

:class:`PlainUI` writes lines, for logs and pipes; :class:`TerminalUI` draws bars. Both write to
standard error what passes by, and to standard output what is left: the report.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from moshi_pipe.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID

    from moshi_pipe.report import RunReport, SessionReport

_LINE_EVERY_S: Final = 10.0  # a long file says this often how far it is, without a terminal
_LISTED: Final = 20  # sessions in the closing table


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """What one frame of a live session was like.

    Attributes:
        session_id: Which session.
        time_s: Seconds since the session began.
        heard_dbfs: Level of what the model heard, in dB of full scale; -inf for silence.
        spoken_dbfs: Level of what it said; None where the graph makes no audio.
        text: What was written in this frame, leading space included; often nothing.
        tick_ms: How long the models took.
        lag_ms: From the frame's delivery to its answer.
        dropped: Frames that were not processed so far, because the models were late.
        underruns: Times that the speaker had nothing to play so far.
    """

    session_id: str
    time_s: float
    heard_dbfs: float
    spoken_dbfs: float | None
    text: str
    tick_ms: float
    lag_ms: float
    dropped: int = 0
    underruns: int = 0


class UI(Protocol):
    """What a run tells a person. Calls are cheap and come from one thread at a time."""

    def note(self, text: str) -> None:
        """Say one thing, such as what ``auto`` chose."""

    def warn(self, text: str) -> None:
        """Say one thing that a user should not miss."""

    def loading(self, what: str, done: int, total: int) -> None:
        """Say how many bytes of a model are loaded."""

    def begin(self, num_sessions: int | None) -> None:
        """Sessions start; how many there will be, if known."""

    def session_begins(self, session_id: str, audio_s: float | None) -> None:
        """One session starts; how long its input is, if known."""

    def session_at(self, session_id: str, done_s: float) -> None:
        """One session has processed so many seconds."""

    def live(self, frame: LiveFrame) -> None:
        """One frame of a live session was answered."""

    def session_ends(self, report: SessionReport) -> None:
        """One session is over."""

    def finish(self, report: RunReport) -> None:
        """The run is over: show its report."""

    def close(self) -> None:
        """Leave the terminal in order; may be called at any time, more than once."""


class SilentUI:
    """Says nothing; for the Python API and tests."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""

    def loading(self, what: str, done: int, total: int) -> None:
        """Say nothing."""

    def begin(self, num_sessions: int | None) -> None:
        """Say nothing."""

    def session_begins(self, session_id: str, audio_s: float | None) -> None:
        """Say nothing."""

    def session_at(self, session_id: str, done_s: float) -> None:
        """Say nothing."""

    def live(self, frame: LiveFrame) -> None:
        """Say nothing."""

    def session_ends(self, report: SessionReport) -> None:
        """Say nothing."""

    def finish(self, report: RunReport) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainUI(SilentUI):
    """One line per event.

    Args:
        err: Where lines go that pass by; standard error by default.
        out: Where the report goes; standard output by default.
        now: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        err: TextIO | None = None,
        out: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._err = err or sys.stderr
        self._out = out or sys.stdout
        self._now = now
        self._started: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._length: dict[str, float | None] = {}
        self._done: dict[str, float] = {}  # seconds of audio per session that runs
        self._done_before = 0.0  # and of all that ended
        self._began: float | None = None
        self._total: int | None = None
        self._ended = 0

    def note(self, text: str) -> None:
        """Write a line."""
        _write(self._err, f"{text}\n")

    def warn(self, text: str) -> None:
        """Write a line that says it is a warning."""
        _write(self._err, f"warning: {text}\n")

    def begin(self, num_sessions: int | None) -> None:
        """Remember how many sessions there will be."""
        self._total = num_sessions

    def session_begins(self, session_id: str, audio_s: float | None) -> None:
        """Remember when a session started."""
        self._began = self._now() if self._began is None else self._began
        self._started[session_id] = self._said[session_id] = self._now()
        self._length[session_id] = audio_s

    def session_at(self, session_id: str, done_s: float) -> None:
        """Write a line now and then."""
        now = self._now()
        self._done[session_id] = done_s
        if now - self._said.get(session_id, now) < _LINE_EVERY_S:
            return
        self._said[session_id] = now
        length = self._length.get(session_id)
        of = f" of {format_duration(length)}" if length else ""
        speed = done_s / max(now - self._started[session_id], 1e-9)
        self.note(f"{session_id}: {format_duration(done_s)}{of}, {speed:.2f} x real time")

    def session_ends(self, report: SessionReport) -> None:
        """Write what became of a session."""
        for known in (self._started, self._said, self._length, self._done):
            known.pop(report.id, None)
        self._done_before += report.audio_s
        self._ended += 1
        many = self._total is not None and self._total > 1
        speed = f", {self._overall()}" if many and self._done_before else ""
        place = f"[{self._ended}/{self._total}{speed}] " if self._total else ""
        self.note(place + session_line(report))

    def _overall(self) -> str:
        """Speed of all sessions together."""
        passed = max(self._now() - (self._began or 0.0), 1e-9)
        return f"{(self._done_before + sum(self._done.values())) / passed:.2f} x real time"

    def finish(self, report: RunReport) -> None:
        """Write the report."""
        _write(self._out, report_text(report))


class TerminalUI(PlainUI):
    """Bars for each session and for all, then a table.

    Args:
        out: Where the table goes; standard output by default.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        from rich.console import Console

        super().__init__(out=out)
        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        self._all: TaskID | None = None

    def note(self, text: str) -> None:
        """Write a line above the bars."""
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Write a yellow line above the bars."""
        self._console.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def loading(self, what: str, done: int, total: int) -> None:
        """Draw a bar of bytes."""
        bars = self._open()
        if what not in self._bars:
            self._bars[what] = bars.add_task(f"loading {what}", total=total, speed="")
        bars.update(self._bars[what], completed=done, speed=format_bytes(total))
        if done >= total:
            bars.remove_task(self._bars.pop(what))

    def begin(self, num_sessions: int | None) -> None:
        """Draw the bar of all sessions when there is more than one."""
        super().begin(num_sessions)
        if num_sessions != 1:
            self._all = self._open().add_task("all sessions", total=num_sessions, speed="")

    def session_begins(self, session_id: str, audio_s: float | None) -> None:
        """Draw a bar of seconds."""
        super().session_begins(session_id, audio_s)
        self._bars[session_id] = self._open().add_task(session_id, total=audio_s, speed="")

    def session_at(self, session_id: str, done_s: float) -> None:
        """Move a bar."""
        if session_id in self._bars:
            passed = max(self._now() - self._started[session_id], 1e-9)
            speed = f"{done_s / passed:.2f} x real time"
            self._open().update(self._bars[session_id], completed=done_s, speed=speed)
        self._done[session_id] = done_s
        if self._all is not None:
            self._open().update(self._all, speed=self._overall())

    def session_ends(self, report: SessionReport) -> None:
        """Remove a bar and write what became of its session."""
        bar = self._bars.pop(report.id, None)
        if bar is not None:
            self._open().remove_task(bar)
        super().session_ends(report)
        if self._all is not None:
            self._open().update(self._all, completed=self._ended, speed=self._overall())

    def finish(self, report: RunReport) -> None:
        """Remove the bars and write the report."""
        self.close()
        super().finish(report)

    def close(self) -> None:
        """Remove the bars."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _open(self) -> Progress:
        """The bars, started when the first is drawn."""
        if self._progress is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns: list[Any] = [
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
            ]
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        return self._progress


def _write(stream: TextIO, text: str) -> None:
    """Write; a reader that has seen enough, such as ``head``, does not end the run."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def choose_ui(out: TextIO | None = None) -> UI:
    """Bars when standard error is a terminal, else lines; ``out`` takes the closing report."""
    return TerminalUI(out) if sys.stderr.isatty() else PlainUI(out=out)


def session_line(report: SessionReport) -> str:
    """One session on one line: what became of it, and its files with their whole paths."""
    if report.status == "skipped":
        return f"{report.id}: skipped, its results are there (resume=false makes them again)"
    if report.status == "failed":
        return f"{report.id}: failed after {report.frames} frames\n{report.error or ''}".rstrip()
    speed = report.audio_s / report.wall_s if report.wall_s > 0 else 0.0
    head = f"{report.id}: {report.status}, {format_duration(report.audio_s)} of audio"
    is_live = "device" in report.source
    pace = "" if is_live else f" in {format_duration(report.wall_s)} ({speed:.2f} x real time)"
    lines = [head + pace]
    lines += [f"  warning: {warning}" for warning in report.warnings]
    lines += [f"  {file}" for file in report.files]
    return "\n".join(lines)


def report_text(report: RunReport) -> str:
    """The closing report as text of at most 80 columns, paths aside."""
    counts = [f"{report.count(s)} {s}" for s in ("done", "failed", "skipped", "interrupted")]
    shown = ", ".join(count for count in counts if not count.startswith("0 ")) or "none"
    ticks = f" in {format_count(report.ticks, 'tick')}" if report.ticks else ""
    slots = format_count(report.slots, "slot")
    where = f"{report.model} on {report.device}"
    dtype = [] if report.dtype == "unknown" else [report.dtype]
    rows = [
        ("sessions", shown),
        ("frames", f"{report.frames}{ticks}, {slots}"),
        ("audio", f"{format_duration(report.audio_s)} in {format_duration(report.wall_s)}"),
        ("speed", f"{report.speed:.2f} x real time")
        if report.verdict is None
        else ("live", report.verdict),
        ("model", ", ".join([where, *dtype, f"graph {report.graph}"])),
    ]
    if report.numerics is not None:
        weights = [] if report.quant is None else [f"weights in {report.quant.partition(':')[0]}"]
        rows.append(("numerics", ", ".join([report.numerics, *weights])))
    rows.append(("seed", str(report.seed)))
    if report.peak_rss_bytes is not None:
        device = report.peak_device_bytes
        gpu = f", {format_bytes(device)} on {report.device}" if device is not None else ""
        rows.append(("peak memory", format_bytes(report.peak_rss_bytes) + gpu))
    lines = ["", *(f"{name:<12} {value}" for name, value in rows)]
    if report.nodes:
        lines += ["", f"{'ms per tick':<16}{'p50':>9}{'p99':>9}{'max':>9}"]
        lines += [
            f"{node.name:<16}{node.p50_ms:>9.2f}{node.p99_ms:>9.2f}{node.max_ms:>9.2f}"
            for node in report.nodes
        ]
    lines += ["", *(f"warning: {warning}" for warning in report.warnings)]
    failed = [session for session in report.sessions if session.status == "failed"]
    lines += [f"failed: {session.id}" for session in failed[:_LISTED]]
    if len(failed) > _LISTED:
        lines.append(f"failed: and {len(failed) - _LISTED} more, see run.json")
    lines.append(f"results in {report.output_dir} (run.json, config.yaml)")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"
