"""Time as an interface, so that an hour of a session takes seconds in a test."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol

from moshi_pipe.units import NS_PER_SECOND


class Clock(Protocol):
    """Monotonic time in nanoseconds."""

    def now_ns(self) -> int:
        """Nanoseconds since an arbitrary start; never goes back."""

    async def sleep_until(self, deadline_ns: int) -> None:
        """Return at ``deadline_ns`` or later; at once when that has passed."""


class SystemClock:
    """The machine's monotonic clock."""

    def now_ns(self) -> int:
        """Nanoseconds of ``time.monotonic_ns``."""
        return time.monotonic_ns()

    async def sleep_until(self, deadline_ns: int) -> None:
        """Sleep on the event loop."""
        await asyncio.sleep(max(0, deadline_ns - self.now_ns()) / NS_PER_SECOND)


class ManualClock:
    """A clock that moves only when told to.

    Args:
        start_ns: First reading.
    """

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._order = itertools.count()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        """The reading that was last set."""
        return self._now_ns

    async def sleep_until(self, deadline_ns: int) -> None:
        """Wait for :meth:`advance` to reach ``deadline_ns``."""
        if deadline_ns <= self._now_ns:
            return
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (deadline_ns, next(self._order), waiter))
        await waiter

    def advance(self, duration_ns: int) -> None:
        """Move on and wake whoever's deadline has come, in order of deadlines.

        Raises:
            ValueError: ``duration_ns`` is negative.
        """
        if duration_ns < 0:
            raise ValueError(f"time cannot go back: got {duration_ns} ns")
        self._now_ns += duration_ns
        while self._sleepers and self._sleepers[0][0] <= self._now_ns:
            _, _, waiter = heapq.heappop(self._sleepers)
            if not waiter.done():
                waiter.set_result(None)
