"""Bounded rings between the edge and the engine: preallocated arrays and counters, nothing else.

One side puts, the other takes, each from its own thread. The same interface can sit on shared
memory when the edge moves to a process of its own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import ConfigError, closest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

POLICIES: Final = ("block", "drop_oldest", "drop_all", "close")
"""What a full ring does: make the producer wait, forget the oldest row, forget all that wait, or
refuse and end."""


@dataclass(slots=True)
class RingCounters:
    """What went through a ring.

    Attributes:
        put: Rows accepted.
        taken: Rows given out.
        dropped: Rows forgotten or refused because the ring was full.
        longest: Most rows held at once.
    """

    put: int = 0
    taken: int = 0
    dropped: int = 0
    longest: int = 0


class Ring:
    """A bounded queue of rows; a row is one value per named column.

    Args:
        columns: Shape and dtype per column.
        capacity: Rows held at most.
        policy: One of :data:`POLICIES`.

    Raises:
        ConfigError: Unknown policy, or no capacity.
    """

    def __init__(
        self,
        columns: Mapping[str, tuple[tuple[int, ...], npt.DTypeLike]],
        *,
        capacity: int,
        policy: str = "block",
    ) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"unknown ring policy '{policy}'", wanted=closest(policy, POLICIES))
        if capacity < 1:
            raise ConfigError("a ring needs room", got=f"capacity {capacity}", wanted="1 or more")
        self.policy = policy
        self.capacity = capacity
        self.counters = RingCounters()
        self._arrays = {
            name: np.zeros((capacity, *shape), dtype=dtype)
            for name, (shape, dtype) in columns.items()
        }
        self._present = {name: np.zeros(capacity, dtype=bool) for name in columns}
        self._stamps = np.zeros(capacity, dtype=np.int64)
        self._first = 0
        self._length = 0
        self._ended = False
        self._lock = threading.Lock()
        self._on_put: Callable[[], None] = _nothing
        self._on_take: Callable[[], None] = _nothing

    def listen(
        self, *, on_put: Callable[[], None] | None = None, on_take: Callable[[], None] | None = None
    ) -> None:
        """Set who is told after a row came or the ring ended, and after a row left a full ring.

        Callbacks run on the thread that put or took, outside the ring's lock.
        """
        self._on_put = on_put or self._on_put
        self._on_take = on_take or self._on_take

    def put(self, stamp: int, values: Mapping[str, Any]) -> bool:
        """Copy one row in.

        Args:
            stamp: Frame number or time of the row.
            values: Value per column; columns left out are missing in this row.

        Returns:
            False when the ring is full and its policy does not make room, or when it has ended;
            the row was then not taken.
        """
        with self._lock:
            if self._ended:
                return False
            accepted = self._make_room()
            if accepted:
                self._append(stamp, values)
            ended = self._ended
        if accepted or ended:
            self._on_put()
        return accepted

    def take(self) -> tuple[int, dict[str, npt.NDArray[Any]]] | None:
        """Take the oldest row, copied; None when there is none."""
        with self._lock:
            if not self._length:
                return None
            index = self._first
            stamp = int(self._stamps[index])
            was_full = self.full
            row = {
                name: array[index].copy()
                for name, array in self._arrays.items()
                if self._present[name][index]
            }
            self._drop_first()
            self.counters.taken += 1
        if was_full:
            self._on_take()
        return stamp, row

    def take_into(self, columns: Mapping[str, npt.NDArray[Any]]) -> int | None:
        """Copy columns of the oldest row into arrays and forget the row.

        Args:
            columns: Where to copy each wanted column.

        Returns:
            The row's stamp; None when there is no row.
        """
        with self._lock:
            if not self._length:
                return None
            index = self._first
            for name, out in columns.items():
                out[...] = self._arrays[name][index]
            stamp = int(self._stamps[index])
            was_full = self.full
            self._drop_first()
            self.counters.taken += 1
        if was_full:
            self._on_take()
        return stamp

    def end(self) -> None:
        """Say that no further row will come. What is inside can still be taken."""
        with self._lock:
            self._ended = True
        self._on_put()

    @property
    def ended(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._ended

    @property
    def finished(self) -> bool:
        """Whether the ring has ended and is empty."""
        return self._ended and not self._length

    @property
    def full(self) -> bool:
        """Whether a ``block`` ring would refuse the next row."""
        return self._length == self.capacity

    def __len__(self) -> int:
        return self._length

    def _append(self, stamp: int, values: Mapping[str, Any]) -> None:
        index = (self._first + self._length) % self.capacity
        for name, array in self._arrays.items():
            self._present[name][index] = name in values
            if name in values:
                array[index] = values[name]
        self._stamps[index] = stamp
        self._length += 1
        self.counters.put += 1
        self.counters.longest = max(self.counters.longest, self._length)

    def _make_room(self) -> bool:
        if self._length < self.capacity:
            return True
        if self.policy == "block":
            return False
        if self.policy == "close":
            self.counters.dropped += 1
            self._ended = True
            return False
        for _ in range(self._length if self.policy == "drop_all" else 1):
            self.counters.dropped += 1
            self._drop_first()
        return True

    def _drop_first(self) -> None:
        self._first = (self._first + 1) % self.capacity
        self._length -= 1


def _nothing() -> None:
    """Nobody listens."""
