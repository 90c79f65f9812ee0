"""Sessions without a slot: their state waits in host memory while others use the slot.

What is asked for from any thread is done on the engine's, between two ticks.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from moshi_pipe.engine.scheduled_nodes import held_bytes
from moshi_pipe.engine.session import Session, SessionState
from moshi_pipe.errors import MoshiPipeError, SessionError

if TYPE_CHECKING:
    from collections.abc import Callable

    Done = Callable[[int | MoshiPipeError], None]
    """Told the bytes that were moved, or why nothing was; from the engine's thread."""


class Parking:
    """What was asked for, and the sessions that are parked."""

    def __init__(self) -> None:
        self._asked: deque[tuple[bool, Session, Done]] = deque()
        self._parked: dict[Session, dict[str, Any]] = {}
        self._returning: dict[Session, tuple[dict[str, Any], Done]] = {}
        self._closed = False
        self._lock = threading.Lock()

    def ask(self, session: Session, done: Done, *, park: bool) -> None:
        """Ask for a session to be parked, or to come back. Safe from any thread."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._asked.append((park, session, done))
        if closed:
            done(_over(session))

    # ---- the engine's thread

    @property
    def sessions(self) -> list[Session]:
        """Those that are parked."""
        return list(self._parked)

    def asked(self) -> tuple[bool, Session, Done] | None:
        """What is to be done next: park or not, whose, and who is told."""
        return self._asked.popleft() if self._asked else None

    def keep(self, session: Session, snapshot: dict[str, Any]) -> int:
        """A session has left its slot; returns the bytes that are kept of it."""
        session.state, session.slot = SessionState.PARKED, None
        self._parked[session] = snapshot
        return held_bytes(snapshot)

    def call_back(self, session: Session, done: Done) -> bool:
        """A session waits for a slot again; False if it is not parked, which is then told."""
        snapshot = self._parked.pop(session, None)
        if snapshot is None:
            done(SessionError(f"session {session.id} is not parked", got=session.state.value))
            return False
        session.state = SessionState.WAITING
        self._returning[session] = snapshot, done
        return True

    def returning(self, session: Session) -> tuple[dict[str, Any], Done] | None:
        """State of a session that gets its slot now, and who is told; None for a new one."""
        return self._returning.pop(session, None)

    def drop(self, session: Session) -> None:
        """A session is over."""
        self._parked.pop(session, None)
        returning = self._returning.pop(session, None)
        if returning is not None:
            returning[1](_over(session))

    def close(self) -> None:
        """The engine is over: whoever asks is told so."""
        with self._lock:
            self._closed = True
            asked = list(self._asked)
            self._asked.clear()
        for _, session, done in asked:
            done(_over(session))


def _over(session: Session) -> SessionError:
    return SessionError(f"session {session.id} has ended meanwhile")
