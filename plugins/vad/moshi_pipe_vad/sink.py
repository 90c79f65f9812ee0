"""Sink ``vad``: one line per segment, turn and overlap, on disk as soon as it is known."""

from __future__ import annotations

import json
import math
import os
import statistics
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.nodes.naming import make_room, output_path, write_error
from moshi_pipe_vad.options import RELEASE
from moshi_pipe_vad.turns import Overlap, Segment, Turn, TurnTracker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe_vad.detector import Detector
    from moshi_pipe_vad.options import VadOptions

SUFFIX: Final = ".turns.jsonl"

_SPEAKERS: Final = {"user_audio": "user", "audio": "model"}


@dataclass(slots=True)
class _Side:
    """One speaker.

    Attributes:
        name: ``user`` or ``model``.
        detector: Hears this speaker.
        num_frames: Frames that it heard, silence for those that did not come included.
        num_segments: Segments found.
        speech_s: Their length.
    """

    name: str
    detector: Detector
    num_frames: int = 0
    num_segments: int = 0
    speech_s: float = 0.0


@dataclass(slots=True)
class _Counts:
    """What the report says of turns."""

    turns: int = 0
    response_ms: list[float] = field(default_factory=list)
    overlaps: int = 0
    overlap_s: float = 0.0


class VadSink(Sink):
    """Writes who speaks when, on the time line of the session's recording.

    Segments are written when they end, turns and overlaps when no earlier segment can come any
    more. A kill loses the segment that is open, and nothing that was written.

    Args:
        options: What counts as speech.
        load: Gives the model; None takes :func:`moshi_pipe.metrics.activity.load_silero`.

    Raises:
        ConfigError: An option is out of bounds.
    """

    takes = ("user_audio",)
    optional = ("audio",)

    def __init__(self, options: VadOptions, load: Callable[[], Any] | None = None) -> None:
        _check(options)
        self.options = options
        self._load = load
        self._session: SessionInfo | None = None
        self._file: _LineFile | None = None
        self._sides: dict[str, _Side] = {}
        self._silence_N: npt.NDArray[np.float32] | None = None  # a frame of it
        self._tracker = TurnTracker()
        self._counts = _Counts()

    def outputs(self, session: SessionInfo) -> list[Path]:
        """The file of turns."""
        return [output_path(self.options.path, session, SUFFIX)]

    async def open(self, session: SessionInfo) -> None:
        """Load the model once per speaker and create the file.

        Raises:
            OutputError: The file cannot be created.
            ConfigError: The graph does not pass on what it hears.
        """
        form = session.formats.get("user_audio")
        if not isinstance(form, Audio):
            raise ConfigError(
                "sink=vad needs the output 'user_audio', which this graph does not make",
                fix="leave it out, or choose graph=dialogue, codec or transcribe",
            )
        import numpy as np

        from moshi_pipe.metrics.activity import load_silero
        from moshi_pipe_vad.detector import Detector

        load = self._load or load_silero
        self._session = session
        self._silence_N = np.zeros(form.frame_size, np.float32)
        for output, name in _SPEAKERS.items():
            if output in session.formats:
                detector = Detector(self.options, form.sample_rate, load)
                self._sides[output] = _Side(name, detector)
        self._file = _LineFile(self.outputs(session)[0])

    async def write(self, packet: Packet) -> None:
        """Hear one frame of one speaker.

        Raises:
            OutputError: The disk does not take a line.
        """
        import numpy as np

        for side in self._sides.values():
            self._fill(side, packet.frame)  # frames come in order: what is missing never comes
        self._hear(self._sides[packet.output], np.asarray(packet.payload, np.float32)[0])
        self._settle()

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Write what is left and finish the file.

        A session that failed before its first frame leaves none.

        Raises:
            OutputError: The disk does not take it.
        """
        if self._file is None or self._session is None:
            return {}
        end_s = end.num_frames * self._session.frame_s - end.padding_s
        try:
            for side in self._sides.values():
                self._fill(side, end.num_frames)
                self._note(side, side.detector.finish(), end_s)
            self._put(self._tracker.settle(math.inf))
        finally:
            self._file.close()
        path = self._file.path
        begun = end.complete or end.num_frames > 0
        if not begun:
            path.unlink(missing_ok=True)
        return {"sink": "vad", "files": [str(path)] if begun else [], **self._report()}

    def _fill(self, side: _Side, frame: int) -> None:
        """Hear silence up to a frame."""
        while side.num_frames < frame and self._silence_N is not None:
            self._hear(side, self._silence_N)

    def _hear(self, side: _Side, samples_N: npt.NDArray[np.float32]) -> None:
        side.num_frames += 1
        self._note(side, side.detector.push(samples_N))

    def _note(self, side: _Side, segments: Iterable[Segment], end_s: float = math.inf) -> None:
        """Write segments down, on the time line of the input."""
        lead_s = self._session.lead_s if self._session is not None else 0.0
        for found in segments:
            start_s, stop_s = found.start_s - lead_s, min(found.end_s, end_s) - lead_s
            segment = Segment(max(0.0, start_s), stop_s)
            if segment.end_s <= segment.start_s:
                continue
            side.num_segments += 1
            side.speech_s += segment.end_s - segment.start_s
            self._tracker.add(side.name, segment)
            self._append({"event": "segment", "speaker": side.name, **asdict(segment)})

    def _settle(self) -> None:
        lead_s = self._session.lead_s if self._session is not None else 0.0
        settled_s = min(side.detector.settled_s for side in self._sides.values())
        self._put(self._tracker.settle(settled_s - lead_s))

    def _put(self, events: Iterable[Turn | Overlap]) -> None:
        counts = self._counts
        for event in events:
            if isinstance(event, Turn):
                counts.turns += 1
                if event.speaker == "model" and event.gap_ms is not None:
                    counts.response_ms.append(event.gap_ms)
                self._append({"event": "turn", **asdict(event)})
            else:
                counts.overlaps += 1
                counts.overlap_s += event.end_s - event.start_s
                self._append({"event": "overlap", **asdict(event)})

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in record.items()}
            self._file.append(json.dumps(rounded) + "\n")

    def _report(self) -> dict[str, Any]:
        counts = self._counts
        said = {
            side.name: {"segments": side.num_segments, "speech_s": round(side.speech_s, 2)}
            for side in self._sides.values()
        }
        times = counts.response_ms
        return {
            **said,
            "turns": counts.turns,
            "responses": len(times),
            "response_median_ms": round(statistics.median(times), 1) if times else None,
            "overlaps": counts.overlaps,
            "overlap_s": round(counts.overlap_s, 2),
        }


class _LineFile:
    """A text file of whole lines; each is with the system when :meth:`append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        make_room(path)
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error

    def append(self, line: str) -> None:
        """Write a line; if not all of it fits, leave nothing of it behind."""
        rest = memoryview(line.encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):  # what is no plain file cannot be cut
                os.ftruncate(self._file.fileno(), self._size)
                self._file.seek(self._size)
            raise write_error(self.path, error) from error
        self._size += len(line.encode())

    def close(self) -> None:
        self._file.close()


def _check(options: VadOptions) -> None:
    """Refuse options that no speech could meet.

    Raises:
        ConfigError: Names the option.
    """
    if not RELEASE < options.threshold < 1:
        raise ConfigError(
            f"sink.vad.threshold cannot be {options.threshold}",
            wanted=f"above {RELEASE} and below 1",
        )
    for name in ("min_silence_ms", "min_speech_ms", "pad_ms"):
        value = getattr(options, name)
        if value < 0:
            raise ConfigError(f"sink.vad.{name} cannot be {value}", wanted="0 or more")
