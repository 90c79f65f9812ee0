"""One conversation, or one file being processed, as the engine sees it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.engine.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.errors import MoshiPipeError
    from moshi_pipe.graph.format import Format
    from moshi_pipe.graph.node import SessionSettings

TIMES: Final = "@times"
"""Column of a session's rings that holds readings of the clock in ns: in the inbox when the frame
was delivered; in the outbox that, start and end of its tick, and the time inside the nodes."""

_INBOX_TIMES: Final = ((1,), np.int64)
_OUTBOX_TIMES: Final = ((4,), np.int64)


class SessionState(enum.Enum):
    """Life of a session; it only moves forward, but for a stay without a slot."""

    WAITING = "waiting"  # for a slot
    RUNNING = "running"
    PARKED = "parked"  # its state is in host memory, and others use the slot
    DRAINING = "draining"  # the input ended, the model is still speaking
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class Session:
    """Rings, settings and progress of one session. The engine's thread owns all but the rings.

    Attributes:
        id: For messages.
        settings: How it runs.
        inbox: Frames from the edge: the graph's input under its name, stamped with their number.
        outbox: What the graph made of a frame, under its number, missing outputs left out.
        state: Where it stands.
        slot: Index on the batch axis while it runs.
        num_frames: Frames processed.
        next_frame: Number after that of the last frame; more than ``num_frames`` when frames were
            dropped.
        num_tail_frames: Frames after the input ended.
        num_padding_frames: Of these, the last ones in a row in which the text was padding.
        admitted_ns: Reading of the engine's clock when it got its first slot.
        failure: Why it ended early; None when it did not.
        cancelled: Whether somebody asked for its end.
        warnings: What a user should know of how it was held.
        report: What is reported of how it was held; empty for models that run here.
    """

    id: str
    settings: SessionSettings
    inbox: Ring
    outbox: Ring
    state: SessionState = SessionState.WAITING
    slot: int | None = None
    num_frames: int = 0
    next_frame: int = 0
    num_tail_frames: int = 0
    num_padding_frames: int = 0
    admitted_ns: int | None = None
    failure: MoshiPipeError | None = None
    cancelled: bool = False
    warnings: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def cancel(self, reason: MoshiPipeError | None = None) -> None:
        """Ask the engine to end this session before its next frame. Safe from any thread."""
        if self.failure is None:
            self.failure = reason
        self.cancelled = True
        self.inbox.end()


def make_session(
    session_id: str,
    settings: SessionSettings,
    inputs: Mapping[str, Format],
    outputs: Mapping[str, Format],
    *,
    inbox_frames: int,
    outbox_frames: int,
    inbox_policy: str = "block",
) -> Session:
    """Make a session with rings for what a graph takes and makes.

    Args:
        session_id: For messages.
        settings: How it runs.
        inputs: Format of the graph's input, by name.
        outputs: Format per output.
        inbox_frames: Frames that wait for the engine.
        outbox_frames: Frames that wait for the edge.
        inbox_policy: What happens to a frame when the inbox is full; see
            :data:`~moshi_pipe.engine.ring.POLICIES`.
    """
    inbox = {name: (fmt.shape, fmt.dtype) for name, fmt in inputs.items()}
    outbox = {name: (fmt.shape, fmt.dtype) for name, fmt in outputs.items()}
    return Session(
        session_id,
        settings,
        Ring({**inbox, TIMES: _INBOX_TIMES}, capacity=inbox_frames, policy=inbox_policy),
        Ring({**outbox, TIMES: _OUTBOX_TIMES}, capacity=outbox_frames),
    )
