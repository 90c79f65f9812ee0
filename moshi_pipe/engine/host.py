"""What a source is given of the engine: facts, numbers, and what may be done to its sessions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from moshi_pipe.errors import MoshiPipeError, SessionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from moshi_pipe.engine.edge import Edge
    from moshi_pipe.engine.lateness import Lateness
    from moshi_pipe.engine.session import Session
    from moshi_pipe.engine.statistics import EngineStatistics
    from moshi_pipe.graph.host import RunFacts

    Outcome = int | MoshiPipeError
    """Bytes that were moved, or why nothing was."""


class Keeper(Protocol):
    """What a host needs of what holds sessions; see :class:`~moshi_pipe.engine.edge.Holder`.

    Attributes:
        statistics: What it did.
        lateness: Whether it kept up.
    """

    statistics: EngineStatistics
    lateness: Lateness

    @property
    def usable_slots(self) -> int:
        """Sessions at once that it keeps up with."""

    @property
    def can_park(self) -> bool:
        """Whether sessions can leave their slots and come back."""

    def park(self, session: Session, done: Callable[[Outcome], None]) -> None:
        """Take a running session out of its slot between two ticks; ``done`` from any thread."""

    def unpark(self, session: Session, done: Callable[[Outcome], None]) -> None:
        """Let a parked session wait for a slot; ``done`` from any thread once it has one."""


class EngineHost:
    """An engine, as a source sees it; see :class:`~moshi_pipe.graph.host.Host`.

    Args:
        facts: What does not change.
        engine: Ready.
        edge: Knows the sessions.
    """

    def __init__(self, facts: RunFacts, engine: Keeper, edge: Edge) -> None:
        self.facts = facts
        self._engine = engine
        self._edge = edge

    @property
    def can_park(self) -> bool:
        """Whether every node of the graph can keep a session's state."""
        return self._engine.can_park

    @property
    def usable_slots(self) -> int:
        """Sessions at once for which a tick stays short enough."""
        return self._engine.usable_slots

    async def park(self, session_id: str) -> int:
        """Take a session out of its slot; returns the bytes that its state takes.

        Raises:
            SessionError: It has ended meanwhile, is not running, or cannot be kept.
        """
        return await self._move(session_id, self._engine.park)

    async def unpark(self, session_id: str) -> None:
        """Let a parked session wait for a slot, after others that wait.

        Raises:
            SessionError: It has ended meanwhile, or is not parked.
        """
        await self._move(session_id, self._engine.unpark)

    def cancel(self, session_id: str) -> None:
        """End a session before its next frame, wherever it is; nothing if it has ended."""
        session = self._edge.session(session_id)
        if session is not None:
            session.cancel()

    def statistics(self) -> dict[str, Any]:
        """What the engine did so far."""
        return {**self._engine.statistics.to_dict(), "late": self._engine.lateness.num_late}

    async def _move(
        self, session_id: str, move: Callable[[Session, Callable[[Outcome], None]], None]
    ) -> int:
        session = self._edge.session(session_id)
        if session is None:
            raise SessionError(f"there is no session {session_id} any more")
        loop = asyncio.get_running_loop()
        moved: asyncio.Future[int] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if moved.done():  # whoever asked does not wait any more
                return
            if isinstance(outcome, MoshiPipeError):
                moved.set_exception(outcome)
            else:
                moved.set_result(outcome)

        def done(outcome: Outcome) -> None:
            try:
                loop.call_soon_threadsafe(settle, outcome)
            except RuntimeError:  # the loop has closed
                return

        move(session, done)
        return await moved
