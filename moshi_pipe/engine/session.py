"""One conversation, or one file being processed, as the engine sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moshi_pipe.engine.ring import Ring
    from moshi_pipe.errors import MoshiPipeError
    from moshi_pipe.graph.node import SessionSettings


class SessionState(enum.Enum):
    """Life of a session; it only moves forward."""

    WAITING = "waiting"  # for a slot
    RUNNING = "running"
    DRAINING = "draining"  # the input ended, the model is still speaking
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class Session:
    """Rings, settings and progress of one session. The engine's thread owns all but the rings.

    Attributes:
        id: For messages.
        settings: How it runs.
        inbox: Frames from the edge: the graph's input under its name.
        outbox: What the graph made, one row per frame, missing outputs left out.
        state: Where it stands.
        slot: Index on the batch axis while it runs.
        num_frames: Frames processed.
        num_tail_frames: Of these, frames after the input ended.
        admitted_s: Reading of ``time.monotonic`` when it got its slot.
        failure: Why it ended early; None when it did not.
        cancelled: Whether somebody asked for its end.
    """

    id: str
    settings: SessionSettings
    inbox: Ring
    outbox: Ring
    state: SessionState = SessionState.WAITING
    slot: int | None = None
    num_frames: int = 0
    num_tail_frames: int = 0
    admitted_s: float | None = None
    failure: MoshiPipeError | None = None
    cancelled: bool = False

    def cancel(self, reason: MoshiPipeError | None = None) -> None:
        """Ask the engine to end this session before its next frame. Safe from any thread."""
        if self.failure is None:
            self.failure = reason
        self.cancelled = True
        self.inbox.end()
