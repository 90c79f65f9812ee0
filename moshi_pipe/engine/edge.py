"""The edge: between the asynchronous world of sources and sinks and the engine's rings.

One :class:`~moshi_pipe.engine.exchange.Exchange` per session. The edge knows the engine only
through sessions' rings.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.engine.exchange import (
    Exchange,
    ExchangeOptions,
    Observer,
    SessionPlan,
    SessionResult,
)
from moshi_pipe.errors import InputError, MoshiPipeError
from moshi_pipe.registry import plugin_failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from moshi_pipe.engine.session import Session
    from moshi_pipe.graph.node import SessionInput, Source


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
        self._stopping = False

    async def run(self, source: Source) -> list[SessionResult]:
        """Process every session of a source.

        Sessions are submitted in the source's order; twice as many as there are slots are open at
        once. A session that fails ends alone. A source that fails ends the run, after the sessions
        that it gave.

        Returns:
            One result per session that was not skipped, in the source's order.

        Raises:
            MoshiPipeError: The source failed, or the engine did.
        """
        tasks: list[asyncio.Task[SessionResult]] = []
        failure: MoshiPipeError | None = None
        try:
            await self._admit(source, tasks)
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
        results = [await task for task in tasks]
        failure = failure or self._engine.error
        if failure is not None:
            raise failure
        return results

    def stop(self) -> None:
        """Take no further session and end those that run; their sinks are closed as incomplete."""
        self._stopping = True
        for exchange in self._open:
            exchange.session.cancel()

    async def _admit(self, source: Source, tasks: list[asyncio.Task[SessionResult]]) -> None:
        """Start an exchange per session that the source gives, a bounded number at a time."""
        room = asyncio.Semaphore(2 * self._engine.num_slots)
        async for item in source.sessions():
            await room.acquire()
            if self._stopping or self._engine.error is not None:
                return
            plan = self._plan(item)
            if plan is None:
                room.release()
                continue
            exchange = Exchange(
                item, plan, self._options, observer=self._observer, clock=self._clock
            )
            submitted = asyncio.Event()
            self._open.add(exchange)
            task = asyncio.create_task(exchange.run(self._engine.submit, submitted.set))
            tasks.append(task)

            def ended(
                _: object, exchange: Exchange = exchange, submitted: asyncio.Event = submitted
            ) -> None:
                self._open.discard(exchange)
                submitted.set()
                room.release()

            task.add_done_callback(ended)
            await submitted.wait()  # keeps the order of submission
