"""What is to be done: recordings that wait, are being processed, or came back.

Whoever has a free slot takes the next one, so nobody has a queue of his own and none stands idle
while another has work left. At most as many as there are slots have been read from the source.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from moshi_pipe.graph.node import SessionInput


@dataclass(slots=True, eq=False)
class Job:
    """One recording.

    Attributes:
        item: The session's input.
        losses: Actors that were lost while they had it.
    """

    item: SessionInput
    losses: int = 0


class Work:
    """The recordings of a run; used on one event loop.

    Args:
        items: Where they come from; read one by one, as they are asked for.

    Attributes:
        over: Set once none is left, and none can come back.
    """

    def __init__(self, items: AsyncIterator[SessionInput]) -> None:
        self.over = asyncio.Event()
        self._out: set[Job] = set()
        self._items = items
        self._back: deque[Job] = deque()
        self._exhausted = False
        self._failure: BaseException | None = None
        self._reading = asyncio.Lock()
        self._changed = asyncio.Event()

    async def take(self) -> Job | None:
        """The next recording; None when none is left, and none can come back.

        Raises:
            Exception: What the source raised, to whoever asks once all that it gave is done.
        """
        while True:
            job = self._back.popleft() if self._back else await self._read()
            if job is not None:
                self._out.add(job)
                return job
            if self.over.is_set():
                if self._failure is not None:
                    raise self._failure
                return None
            self._changed.clear()
            await self._changed.wait()

    def done(self, job: Job) -> None:
        """A recording is done with."""
        self._out.discard(job)
        self._tell()

    def give_back(self, job: Job) -> None:
        """A recording is to be done again, before any other."""
        self._out.discard(job)
        self._back.append(job)
        self._tell()

    async def _read(self) -> Job | None:
        """The next of the source; None when it has ended."""
        async with self._reading:
            if self._exhausted:
                return None
            if self._back:
                return self._back.popleft()
            try:
                return Job(await anext(self._items))
            except StopAsyncIteration:
                self._exhausted = True
            except Exception as error:  # told once what it gave before is done
                self._exhausted, self._failure = True, error
            self._tell()
            return None

    def _tell(self) -> None:
        if self._exhausted and not self._out and not self._back:
            self.over.set()
        self._changed.set()
