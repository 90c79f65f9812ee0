"""Lanes: audio and text of one conversation in memory that two processes share.

A lane is two rings of rows, each with one writer and one reader: ``up`` carries frames from the
edge process to the engine's, ``down`` carries answers back. Memory holds rows and nothing else. How
many were put and taken travels as a message on the link between the processes, which is also what
wakes the other side; so no side ever reads what the other may be writing, and there is no lock.
Both counts begin at 0 with each conversation, on both sides: make new writers and readers then.

Shape letters: N PCM sample.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

CAPACITY: Final = 26
"""Rows of a ring: 2.08 s of frames of 80 ms."""

MAX_TEXT_BYTES: Final = 120
"""UTF-8 bytes of text that a row down carries at most."""


@dataclass(frozen=True, slots=True)
class Up:
    """A frame of a client.

    Attributes:
        delivered_ns: When its last sample had arrived, by ``time.monotonic_ns``.
        pcm_N: Samples, float32.
    """

    delivered_ns: int
    pcm_N: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Down:
    """What the engine made of a frame.

    Attributes:
        frame: Its number in the session.
        delivered_ns: That of the frame which it answers; 0 is unknown.
        audio_N: Samples, float32; None where there are none.
        text: Pieces of text; empty where there are none.
        dropped: Frames of the session that were dropped so far.
        late: Frames of the session that were answered late so far.
    """

    frame: int
    delivered_ns: int
    audio_N: npt.NDArray[np.float32] | None = None
    text: str = ""
    dropped: int = 0
    late: int = 0


class LaneError(Exception):
    """The two sides of a lane disagree; the link between them is of no use any more."""


class Lanes:
    """Rows of all lanes in one piece of memory, the same on both sides.

    Args:
        memory: At least :meth:`size` bytes.
        count: Lanes.
        frame_samples: Samples of a frame, N.
    """

    def __init__(self, memory: mmap.mmap | bytearray, count: int, frame_samples: int) -> None:
        up, down = _up_row(frame_samples), _down_row(frame_samples)
        num_rows = count * CAPACITY
        self.count = count
        self.frame_samples = frame_samples
        self._up = np.frombuffer(memory, up, num_rows).reshape(count, CAPACITY)
        offset = num_rows * up.itemsize
        self._down = np.frombuffer(memory, down, num_rows, offset).reshape(count, CAPACITY)

    @staticmethod
    def size(count: int, frame_samples: int) -> int:
        """Bytes that ``count`` lanes take."""
        row = _up_row(frame_samples).itemsize + _down_row(frame_samples).itemsize
        return count * CAPACITY * row

    def up_writer(self, lane: int) -> UpWriter:
        """Of the edge's side, at the beginning of a conversation."""
        return UpWriter(self._up[lane])

    def up_reader(self, lane: int) -> UpReader:
        """Of the engine's side, at the beginning of a conversation."""
        return UpReader(self._up[lane])

    def down_writer(self, lane: int) -> DownWriter:
        """Of the engine's side, at the beginning of a conversation."""
        return DownWriter(self._down[lane])

    def down_reader(self, lane: int) -> DownReader:
        """Of the edge's side, at the beginning of a conversation."""
        return DownReader(self._down[lane])


class _Writer:
    """Puts rows; the one side of a ring.

    Attributes:
        num_put: Rows put so far; what a ``PUT`` message tells.
    """

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self._rows = rows
        self.num_put = 0

    def room(self, taken: int) -> int:
        """Rows that can be put now.

        Args:
            taken: Rows that the other side took so far, by its last ``TOOK`` message.

        Raises:
            LaneError: It took what was never put.
        """
        if taken > self.num_put:
            raise LaneError(f"{taken} rows were taken of {self.num_put} that were put")
        return CAPACITY - (self.num_put - taken)

    def _next(self) -> Any:
        row = self._rows[self.num_put % CAPACITY]
        self.num_put += 1
        return row


class _Reader:
    """Takes rows; the other side of a ring.

    Attributes:
        num_taken: Rows taken so far; what a ``TOOK`` message tells.
    """

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self._rows = rows
        self.num_taken = 0

    def waiting(self, put: int) -> int:
        """Rows that can be taken now.

        Args:
            put: Rows that the other side put so far, by its last ``PUT`` message.

        Raises:
            LaneError: It put more than there is room for, or less than was taken.
        """
        num_waiting = put - self.num_taken
        if not 0 <= num_waiting <= CAPACITY:
            raise LaneError(f"{put} rows were put where {self.num_taken} were taken")
        return num_waiting

    def _next(self, put: int) -> Any | None:
        if not self.waiting(put):
            return None
        row = self._rows[self.num_taken % CAPACITY]
        self.num_taken += 1
        return row


class UpWriter(_Writer):
    """Puts frames of a client."""

    def put(self, frame: Up) -> int:
        """Put a frame where :meth:`room` says that there is room; returns :attr:`num_put`."""
        row = self._next()
        row["delivered_ns"] = frame.delivered_ns
        row["pcm"] = frame.pcm_N
        return self.num_put


class UpReader(_Reader):
    """Takes frames of a client."""

    def take(self, put: int) -> Up | None:
        """Take the next frame, a copy; None when all ``put`` were taken."""
        row = self._next(put)
        return None if row is None else Up(int(row["delivered_ns"]), row["pcm"].copy())


class DownWriter(_Writer):
    """Puts answers."""

    def put(self, answer: Down) -> int:
        """Put an answer where :meth:`room` says that there is room; returns :attr:`num_put`.

        Text beyond :data:`MAX_TEXT_BYTES` is cut between two characters.
        """
        row = self._next()
        text = _cut(answer.text)
        row["frame"] = answer.frame
        row["delivered_ns"] = answer.delivered_ns
        row["dropped"] = answer.dropped
        row["late"] = answer.late
        row["text_bytes"] = len(text)
        row["text"][: len(text)] = np.frombuffer(text, np.uint8)
        row["has_audio"] = answer.audio_N is not None
        if answer.audio_N is not None:
            row["audio"] = answer.audio_N
        return self.num_put


class DownReader(_Reader):
    """Takes answers."""

    def take(self, put: int) -> Down | None:
        """Take the next answer, a copy; None when all ``put`` were taken."""
        row = self._next(put)
        if row is None:
            return None
        text = row["text"][: row["text_bytes"]].tobytes().decode(errors="replace")
        return Down(
            int(row["frame"]),
            int(row["delivered_ns"]),
            row["audio"].copy() if row["has_audio"] else None,
            text,
            int(row["dropped"]),
            int(row["late"]),
        )


def make_memory(num_bytes: int) -> int:
    """Make memory for another process to inherit, and return its file descriptor.

    It has no name: it is gone when the last process that holds it is, however that ends.
    """
    if sys.platform == "linux":
        descriptor = os.memfd_create("moshi-pipe-lanes", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, num_bytes)
    return descriptor


def map_memory(descriptor: int) -> mmap.mmap:
    """Map what :func:`make_memory` made, in either process."""
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size)


def _up_row(frame_samples: int) -> np.dtype[Any]:
    return np.dtype([("delivered_ns", "<i8"), ("pcm", "<f4", (frame_samples,))])


def _down_row(frame_samples: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("frame", "<i8"),
            ("delivered_ns", "<i8"),
            ("dropped", "<i4"),
            ("late", "<i4"),
            ("audio", "<f4", (frame_samples,)),
            ("text", "u1", (MAX_TEXT_BYTES,)),
            ("text_bytes", "u1"),
            ("has_audio", "u1"),
            ("unused", "u1", (6,)),  # rows begin at multiples of 8 bytes
        ]
    )


def _cut(text: str) -> bytes:
    """UTF-8 of text, of at most :data:`MAX_TEXT_BYTES` bytes."""
    data = text.encode(errors="replace")
    if len(data) <= MAX_TEXT_BYTES:
        return data
    return data[:MAX_TEXT_BYTES].decode(errors="ignore").encode()
