"""From audio messages of a client to frames in its lane.

Shape letters: N PCM sample.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from moshi_pipe.engine.framing import Reframer
from moshi_pipe.server.guard import Bucket
from moshi_pipe.server.lane import Up
from moshi_pipe.server.messages import AudioFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from moshi_pipe.server.lane import UpWriter

SLICE_BYTES: Final = 1_024
"""Bytes of Opus that are decoded at once: a packet of one byte may hold 120 ms."""

_MAX_WAITING: Final = 25  # frames that wait here for a lane whose other side is stuck
_SPEED: Final = 2.0  # audio that a live client may send, times real time
_BURST_S: Final = 30.0  # and at once, as after a hole in the network
_MESSAGE_S: Final = 120.0  # audio of one message, where frames wait: 64 KiB of Opus can be an hour


class TooFast(Exception):
    """A client sends far more audio than time passes, or than a message should hold."""


class Decoder(Protocol):
    """Makes samples of the bytes of a format, see :mod:`moshi_pipe.server.opus`."""

    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        """Samples that are complete now, float32 ``[N]``."""


class Intake:
    """Decodes, resamples and cuts what a client sends, and puts the frames into its lane.

    Live, frames that find no room push the oldest out. Lossless, :attr:`room` says when to read on.

    Args:
        decoder: Of the client's format.
        is_opus: Whether little data can be much audio.
        rate: Hz of what it gives.
        sample_rate: Hz of frames.
        frame_samples: Samples of a frame.
        lossless: Whether frames wait rather than be dropped.
        told: Called with the rows put so far, when that changes.

    Attributes:
        room: Set while the lane takes all frames.
        num_dropped: Frames that were dropped here.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        is_opus: bool,
        rate: int,
        sample_rate: int,
        frame_samples: int,
        lossless: bool,
        told: Callable[[int], None],
    ) -> None:
        self._decoder = decoder
        self._slice = SLICE_BYTES if is_opus else None
        self._reframer = Reframer(rate, sample_rate, frame_samples, live=True)
        self._budget = None if lossless else Bucket(_SPEED * rate, _BURST_S * rate)
        self._lossless = lossless
        self._most_waiting = int(_MESSAGE_S * sample_rate / frame_samples)
        self._told = told
        self._lane: UpWriter | None = None
        self._taken = 0
        self._waiting: deque[Up] = deque()
        self.room = asyncio.Event()
        self.room.set()
        self.num_dropped = 0

    @property
    def num_put(self) -> int:
        """Rows that the lane was given, and those that wait to be."""
        return (0 if self._lane is None else self._lane.num_put) + len(self._waiting)

    def seat(self, lane: UpWriter) -> None:
        """Take the lane that frames go into."""
        self._lane = lane

    def push(self, payload: bytes, now_ns: int) -> None:
        """Take the payload of an audio message.

        Raises:
            TooFast: It is far more audio than a live client can have, or a message should hold.
        """
        for part in self._parts(payload):
            samples_N = self._decoder.push(part)
            if self._budget is not None and not self._budget.take(now_ns / 1e9, samples_N.size):
                raise TooFast
            for frame_1N in self._reframer.push(_fit(samples_N)[None]):
                self._put(Up(now_ns, frame_1N[0].copy()))
            if len(self._waiting) > self._most_waiting:
                raise TooFast
        self._move()

    def finish(self, now_ns: int) -> int:
        """The input has ended: fill the last frame up; returns the rows there are in all."""
        for frame_1N in self._reframer.finish():
            self._put(Up(now_ns, frame_1N[0].copy()))
        self._move()
        return self.num_put

    def took(self, rows: int) -> None:
        """The engine has taken so many rows so far."""
        self._taken = rows
        self._move()

    def _parts(self, payload: bytes) -> Iterator[bytes]:
        step = self._slice or max(1, len(payload))
        for start in range(0, len(payload), step):
            yield payload[start : start + step]

    def _put(self, frame: Up) -> None:
        if not self._lossless and len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft()
            self.num_dropped += 1
        self._waiting.append(frame)
        if len(self._waiting) >= _MAX_WAITING:
            self._move()  # a large message should not be dropped where there is room

    def _move(self) -> None:
        lane = self._lane
        before = 0 if lane is None else lane.num_put
        while lane is not None and self._waiting and lane.room(self._taken) > 0:
            lane.put(self._waiting.popleft())
        if lane is not None and lane.num_put > before:
            self._told(lane.num_put)
        if self._waiting:
            self.room.clear()
        else:
            self.room.set()


def make_intake(
    audio: AudioFormat,
    rate: int,
    facts: dict[str, Any],
    told: Callable[[int], None],
) -> Intake:
    """The intake of a client.

    Args:
        audio: Format that it sends.
        rate: Hz of PCM that it sends.
        facts: Of the engine: ``sample_rate``, ``frame_samples`` and ``lossless``.
        told: Called with the rows put so far, when that changes.
    """
    from moshi_pipe.server.opus import make_decoder

    is_opus = audio is AudioFormat.OGG_OPUS
    sample_rate = int(facts["sample_rate"])
    return Intake(
        make_decoder(audio),
        is_opus=is_opus,
        rate=sample_rate if is_opus else rate,
        sample_rate=sample_rate,
        frame_samples=int(facts["frame_samples"]),
        lossless=bool(facts["lossless"]),
        told=told,
    )


def _fit(samples_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Samples within full scale; what is no number is silence."""
    if samples_N.size and not (np.abs(samples_N) <= 1).all():
        return np.clip(np.nan_to_num(samples_N, nan=0.0, posinf=1.0, neginf=-1.0), -1, 1)
    return samples_N
