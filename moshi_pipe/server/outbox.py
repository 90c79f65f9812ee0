"""What waits to be sent to one client: bounded, and never in anyone's way."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from moshi_pipe.server.lane import Down

if TYPE_CHECKING:
    from moshi_pipe.server.messages import Close

MAX_MESSAGES: Final = 64
"""Messages without audio that wait at most; further ones are dropped unless they must be sent."""


@dataclass(slots=True)
class Skipped:
    """Answers that were dropped here, because the client did not take them in time.

    Attributes:
        frames: How many.
    """

    frames: int


@dataclass(frozen=True, slots=True)
class End:
    """Nothing follows: what is left in the encoder, an error, and the close.

    Attributes:
        close: The code.
        reason: A word that goes with it.
        error: ``code: sentence``, sent before; None sends none.
    """

    close: Close
    reason: str
    error: str | None = None


class Outbox:
    """Answers and messages in order.

    Answers beyond the bound, all that wait, are dropped for a note of how many: the client hears
    what is said now. Nothing is encoded before its turn has come, so an encoded stream has no gap.

    Args:
        max_rows: Answers that wait at most.

    Attributes:
        num_rows: Answers that wait.
        num_skipped: Answers that were dropped so far.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max(1, max_rows)
        self._items: deque[bytes | Down | Skipped | End] = deque()
        self._filled = asyncio.Event()
        self._num_messages = 0
        self._ended = False
        self.num_rows = 0
        self.num_skipped = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """Whether a further answer would make those that wait be dropped."""
        return self.num_rows >= self._max_rows

    def put(self, message: bytes, *, must: bool = False) -> bool:
        """Put a message in; whether it found a place.

        Args:
            message: Its bytes.
            must: Put it in even where :data:`MAX_MESSAGES` wait; for the few that matter.
        """
        if self._ended or (self._num_messages >= MAX_MESSAGES and not must):
            return False
        self._num_messages += 1
        self._append(message)
        return True

    def put_row(self, row: Down) -> None:
        """Put an answer in, and drop those that wait where there are too many."""
        if self._ended:
            return
        if self.full:
            self._skip()
        self.num_rows += 1
        self._append(row)

    def end(self, end: End) -> None:
        """Put the end in; what comes later is not taken."""
        if not self._ended:
            self._ended = True
            self._append(end)

    async def get(self) -> bytes | Down | Skipped | End:
        """Take the next, once there is one."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        item = self._items.popleft()
        if isinstance(item, Down):
            self.num_rows -= 1
        elif isinstance(item, bytes):
            self._num_messages -= 1
        return item

    def _append(self, item: bytes | Down | Skipped | End) -> None:
        self._items.append(item)
        self._filled.set()

    def _skip(self) -> None:
        frames = self.num_rows
        kept: deque[bytes | Down | Skipped | End] = deque()
        for item in self._items:
            if isinstance(item, Skipped):
                frames += item.frames
            elif not isinstance(item, Down):
                kept.append(item)
        self.num_skipped += self.num_rows
        self.num_rows = 0
        self._items = kept
        self._append(Skipped(frames))
