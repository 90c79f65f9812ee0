"""What a tick takes: one frame of each session that advances, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from moshi_pipe.engine.session import TIMES, Session, SessionState
from moshi_pipe.graph.format import Audio, Codes, Format
from moshi_pipe.graph.node import Tick

if TYPE_CHECKING:
    import numpy.typing as npt


class TickInput:
    """Frames on the host, a row per slot; used again for every tick.

    Args:
        name: Of the graph's input.
        wanted: Its format.
        num_slots: Rows.
        pinned: Whether a CUDA device copies from it.
    """

    def __init__(self, name: str, wanted: Format, num_slots: int, *, pinned: bool = False) -> None:
        self._name = name
        buffer = _buffer(wanted, num_slots)
        self._buffer = buffer.pin_memory() if pinned else buffer
        self._delivered = np.zeros(1, dtype=np.int64)

    def frames(self, n: int) -> torch.Tensor:
        """The first ``n`` rows, valid until the next tick."""
        return self._buffer[:n]

    def fill(
        self, active: list[tuple[int, Session]], n: int, now_ns: int
    ) -> tuple[Tick, npt.NDArray[np.bool_], dict[int, tuple[int, int]]]:
        """Take one frame per active session.

        Args:
            active: Slots and sessions that advance.
            n: Rows of the tick.
            now_ns: Delivery of frames that no source gave: those after the end of an input.

        Returns:
            The tick, which rows were fed, and number and delivery of the frame in each slot.
        """
        tick = Tick(
            n=n,
            active=np.zeros(n, dtype=bool),
            end_codes=np.zeros(n, dtype=bool),
        )
        fed = np.zeros(n, dtype=bool)
        taken = {}
        buffer = self._buffer.numpy()
        for slot, session in active:
            tick.active[slot] = True
            if session.state is SessionState.DRAINING:
                told = session.num_tail_frames == 0 and session.settings.end_on_text is not None
                tick.end_codes[slot] = told
                fed[slot] = not told
                buffer[slot] = 0
                session.num_tail_frames += 1
                taken[slot] = session.next_frame, now_ns
            else:
                columns = {self._name: buffer[slot], TIMES: self._delivered}
                frame = session.inbox.take_into(columns) or 0
                taken[slot] = frame, int(self._delivered[0])
                fed[slot] = True
        return tick, fed, taken


def has_frame(session: Session) -> bool:
    """Whether a session that has a slot can advance."""
    return session.state is SessionState.DRAINING or len(session.inbox) > 0


def _buffer(wanted: Format, num_slots: int) -> torch.Tensor:
    if isinstance(wanted, Audio):
        return torch.zeros(num_slots, wanted.channels, wanted.frame_size)
    if isinstance(wanted, Codes):
        return torch.zeros(num_slots, wanted.num_codebooks, dtype=torch.int64)
    raise ValueError(f"a graph's input is audio or codes, got {wanted}")
