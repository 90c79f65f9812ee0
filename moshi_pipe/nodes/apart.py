"""A sink on a thread of its own, so that a slow disk stops no conversation."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path

    from moshi_pipe.graph.packet import Packet

MAX_WAITING: Final = 500  # packets: 40 s of audio


class ApartSink(Sink):
    """Passes everything on to another sink, which runs on a thread and an event loop of its own.

    ``write`` returns at once. Packets beyond :data:`MAX_WAITING` are dropped and counted. What the
    other sink raises is raised by the next call.

    Args:
        sink: The other sink.
        max_waiting: Packets that wait for it at most.
    """

    def __init__(self, sink: Sink, max_waiting: int = MAX_WAITING) -> None:
        self.takes, self.optional = sink.takes, sink.optional
        self.plugin = sink.plugin
        self._sink = sink
        self._thread = ThreadPoolExecutor(1, "sink")
        self._loop: asyncio.AbstractEventLoop | None = None  # of the thread, while it is open
        self._room = threading.BoundedSemaphore(max_waiting)
        self._num_dropped = 0
        self._failure: Exception | None = None

    def outputs(self, session: SessionInfo) -> list[Path]:
        """Those of the other sink."""
        return self._sink.outputs(session)

    async def open(self, session: SessionInfo) -> None:
        """Open the other sink; one that cannot be opened leaves nothing behind."""
        self._loop = asyncio.new_event_loop()
        try:
            await self._do(self._sink.open(session))
        except BaseException:
            self._let_go()
            raise

    async def write(self, packet: Packet) -> None:
        """Queue one packet."""
        if self._failure is not None:
            raise self._failure
        if self._room.acquire(blocking=False):
            self._thread.submit(self._write, packet)
        else:
            self._num_dropped += 1

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Wait until everything is written, and close the other sink."""
        try:
            report = await self._do(self._sink.close(end))
        finally:
            self._let_go()
        if self._failure is not None:
            raise self._failure
        return {**report, "dropped_packets": self._num_dropped}

    async def _do(self, action: Coroutine[Any, Any, Any]) -> Any:
        """Run on the other thread, after what waits there."""
        running, loop = asyncio.get_running_loop(), self._running()
        return await running.run_in_executor(self._thread, loop.run_until_complete, action)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the sink is not open")
        return self._loop

    def _let_go(self) -> None:
        """End the thread, and its loop after what it still does."""
        loop, self._loop = self._running(), None
        self._thread.submit(loop.close)
        self._thread.shutdown(wait=False)

    def _write(self, packet: Packet) -> None:
        try:
            if self._failure is None:
                self._running().run_until_complete(self._sink.write(packet))
        except Exception as error:  # a sink of a plugin may raise anything
            self._failure = error
        finally:
            self._room.release()
