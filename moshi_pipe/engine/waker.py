"""Wakes what waits in an event loop from another thread, many at once for the price of one."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Waker:
    """Sets events of one loop from other threads.

    Waking a loop is a system call; a tick that hands out frames to many sessions makes one, not one
    a session, as long as the loop has not begun to look.

    Args:
        loop: Theirs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[asyncio.Event] = deque()
        self._called = False

    def wake(self, event: asyncio.Event) -> None:
        """Set an event of the loop, from any thread; a loop that has closed needs no waking."""
        self._events.append(event)
        if not self._called:
            self._called = True
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        self._called = False  # first: who comes from now on calls again
        while self._events:
            self._events.popleft().set()
