"""The edge: between the asynchronous world of sources and sinks and the engine's rings.

One :class:`~moshi_pipe.engine.exchange.Exchange` per session. The edge knows the engine only
through sessions' rings.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.engine.exchange import (
    Exchange,
    ExchangeOptions,
    Observer,
    SessionPlan,
    SessionResult,
)
from moshi_pipe.engine.waker import Waker
from moshi_pipe.errors import InputError, MoshiPipeError
from moshi_pipe.registry import plugin_failed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from moshi_pipe.engine.session import Session
    from moshi_pipe.graph.node import SessionInput, Source

_LOG: Final = logging.getLogger(__name__)


class Holder(Protocol):
    """What holds sessions: an engine, or the connections to a server.

    Attributes:
        num_slots: Sessions that it holds at once.
        error: Why it ended; None while it runs and when nothing failed.
    """

    num_slots: int
    error: MoshiPipeError | None

    def submit(self, session: Session) -> None:
        """Let a session wait for a slot."""

    def no_more(self) -> None:
        """Say that no session will be submitted any more."""


class Edge:
    """Feeds an engine from a source and its results to sinks.

    Args:
        engine: Started or about to be.
        options: What all its sessions have in common.
        plan: Decides about each session input; None skips it.
        observer: Told how it goes.
        clock: That of the engine.
    """

    def __init__(
        self,
        engine: Holder,
        options: ExchangeOptions,
        *,
        plan: Callable[[SessionInput], SessionPlan | None],
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._engine = engine
        self._options = options
        self._plan = plan
        self._observer = observer or Observer()
        self._clock = clock or SystemClock()
        self._open: set[Exchange] = set()
        self._tasks: list[asyncio.Task[SessionResult]] = []
        self._stopping = False
        self._waker: Waker | None = None  # of the loop that it runs in

    async def run(self, source: Source) -> list[SessionResult]:
        """Process every session of a source.

        Sessions are submitted in the source's order; twice as many as there are slots are open at
        once. A session that fails ends alone. A source that fails ends the run, after the sessions
        that it gave.

        A source without end says itself how many of its sessions are open; nothing is kept of
        those that have ended, and the loss of the engine ends its sessions, not the run.

        Returns:
            One result per session that was not skipped, in the source's order; none for a source
            without end.

        Raises:
            MoshiPipeError: The source failed, or the engine did.
        """
        failure: MoshiPipeError | None = None
        try:
            if source.endless:
                await self._admit_all(source)
            else:
                await self._admit(source)
        except MoshiPipeError as error:
            failure = error
        except Exception as error:  # a source of a plugin may raise anything
            failure = (
                InputError("the source failed", got=f"{type(error).__name__}: {error}")
                if source.plugin is None
                else plugin_failed("the source", source.plugin, "sessions", error)
            )
            failure.__cause__ = error
        self._engine.no_more()
        results = [await task for task in list(self._tasks)] if not source.endless else []
        if self._tasks and source.endless:
            await asyncio.wait(self._tasks)
        failure = failure or self._engine.error
        if failure is not None:
            raise failure
        return results

    def use(self, engine: Holder) -> None:
        """Give the sessions that come from now on to another engine."""
        self._engine = engine

    def session(self, session_id: str) -> Session | None:
        """A session that is open; None if it has ended."""
        return next((one.session for one in self._open if one.session.id == session_id), None)

    def stop(self) -> None:
        """Take no further session and end those that run; their sinks are closed as incomplete."""
        self._stopping = True
        for exchange in self._open:
            exchange.session.cancel()

    async def _admit(self, source: Source) -> None:
        """Start an exchange per session that the source gives, a bounded number at a time."""
        room = asyncio.Semaphore(2 * self._engine.num_slots)
        async with _sessions(source) as items:
            async for item in items:
                await room.acquire()
                if self._stopping or self._engine.error is not None:
                    return
                submitted = asyncio.Event()

                def ended(_: object, submitted: asyncio.Event = submitted) -> None:
                    submitted.set()
                    room.release()

                task = self._start(item, submitted.set)
                if task is None:
                    room.release()
                    continue
                self._tasks.append(task)
                task.add_done_callback(ended)
                await submitted.wait()  # keeps the order of submission

    async def _admit_all(self, source: Source) -> None:
        """Start an exchange per session that the source gives, and forget those that ended."""
        async with _sessions(source) as items:
            async for item in items:
                if self._stopping:
                    return
                task = self._start(item, lambda: None)
                if task is not None:
                    self._tasks.append(task)
                    task.add_done_callback(self._forget)

    def _start(
        self, item: SessionInput, submitted: Callable[[], None]
    ) -> asyncio.Task[SessionResult] | None:
        """Start the exchange of a session; None where the plan is to skip it."""
        plan = self._plan(item)
        if plan is None:
            return None
        if self._waker is None:
            self._waker = Waker(asyncio.get_running_loop())
        exchange = Exchange(
            item,
            plan,
            self._options,
            observer=self._observer,
            clock=self._clock,
            waker=self._waker,
        )
        self._open.add(exchange)
        task = asyncio.create_task(exchange.run(self._engine.submit, submitted))
        task.add_done_callback(lambda _: self._open.discard(exchange))
        return task

    def _forget(self, task: asyncio.Task[SessionResult]) -> None:
        """Forget a session that has ended."""
        self._tasks.remove(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("a session could not be ended in order", exc_info=task.exception())


@asynccontextmanager
async def _sessions(source: Source) -> AsyncIterator[AsyncIterator[SessionInput]]:
    """The sessions of a source; what it holds is let go at the end."""
    items = source.sessions()
    try:
        yield items
    finally:
        close = getattr(items, "aclose", None)  # a plugin may give any iterator
        if close is not None:
            await close()
