"""Per-stream delays: from user codes to the model's next column, from samples to aligned frames.

Moshi speaks with delays ``[0, 0, 1, ...]``: the semantic code first, the acoustic codes of the
same 80 ms one frame later. A line of ``max_delay + 2`` columns per slot holds what is under way.

Shape letters: B slot, S stream (text, own, user), K codebook, R ring column.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/lm.py (LMGen._step).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moshi_pipe.models.spec import UNGENERATED
from moshi_pipe.nn.transfer import to_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from moshi_pipe.models.spec import LMSpec


@dataclass(slots=True)
class DelayState:
    """What the line remembers.

    Attributes:
        ring_BSR: Columns under way, int64, ``R = max_delay + 2``.
        num_steps_B: Model steps since the session began, int64; never wraps.
    """

    ring_BSR: Tensor
    num_steps_B: Tensor


class DelayLine:
    """Delays of all streams of one model, as tensors on the engine's device.

    Args:
        lm: Gives the delays, the initial column and the number of generated streams.
        device: Where the state lives.
    """

    def __init__(self, lm: LMSpec, device: torch.device) -> None:
        self._num_own = 1 + lm.num_generated
        self._num_user = lm.num_user
        self._max_delay = lm.max_delay
        self._device = device
        self._delay_S1 = torch.tensor(lm.delays, device=device)[:, None]
        self._initial_S = torch.tensor(lm.initial_codes, device=device)

    def new_state(self, num_slots: int) -> DelayState:
        """Make the state of ``num_slots`` sessions that have not begun."""
        num_streams = len(self._initial_S)
        ring = torch.full(
            (num_slots, num_streams, self._max_delay + 2), UNGENERATED, device=self._device
        )
        return DelayState(ring, torch.zeros(num_slots, dtype=torch.int64, device=self._device))

    def reset(self, state: DelayState, slots: Sequence[int]) -> None:
        """Begin anew in the named slots."""
        rows = to_rows(slots, self._device)
        state.ring_BSR.index_fill_(0, rows, UNGENERATED)
        state.num_steps_B.index_fill_(0, rows, 0)

    def snapshot(self, state: DelayState, slot: int) -> dict[str, Tensor]:
        """Copy a slot to the host."""
        return {
            "ring": state.ring_BSR[slot].to("cpu", copy=True),
            "num_steps": state.num_steps_B[slot].to("cpu", copy=True),
        }

    def restore(self, state: DelayState, slot: int, snapshot: Mapping[str, Tensor]) -> None:
        """Put a copy into a slot, whatever it held."""
        state.ring_BSR[slot] = snapshot["ring"].to(self._device)
        state.num_steps_B[slot] = snapshot["num_steps"].to(self._device)

    def push_user(self, codes_BK: Tensor, valid_B: Tensor, state: DelayState) -> Tensor:
        """Take what was heard in this frame and give the model's next input column.

        What is heard in a session's very first step never reaches the model: all streams are
        at their initial ids then.

        Args:
            codes_BK: User codes, int64; more than the model hears are dropped.
            valid_B: Slots that step, bool.
            state: Updated in place.

        Returns:
            Input column, int64 ``[B, S]``; initial ids where not valid.
        """
        batch = codes_BK.shape[0]
        ring_BSR = state.ring_BSR[:batch]
        step_B1 = state.num_steps_B[:batch, None]
        num_columns = ring_BSR.shape[-1]
        if self._num_user:
            write_BS1 = ((step_B1 + self._delay_S1[self._num_own :, 0]) % num_columns)[..., None]
            heard_BS1 = codes_BK[:, : self._num_user, None]
            _write(ring_BSR[:, self._num_own :], write_BS1, heard_BS1, valid_B)
        read_BS1 = (step_B1 % num_columns)[..., None].expand(-1, ring_BSR.shape[1], -1)
        column_BS = ring_BSR.gather(2, read_BS1)[..., 0]
        begun_BS = (step_B1 > self._delay_S1[:, 0]) & valid_B[:, None]
        return torch.where(begun_BS, column_BS, self._initial_S)

    def push_generated(
        self, text_B: Tensor, codes_BK: Tensor, valid_B: Tensor, state: DelayState
    ) -> tuple[Tensor, Tensor]:
        """Take what the model sampled and give the frame that is now complete.

        Args:
            text_B: Sampled text, int64.
            codes_BK: Sampled own codes, int64.
            valid_B: Slots that stepped, bool.
            state: Updated in place.

        Returns:
            Aligned text ``[B]`` and codes ``[B, K]``. They are complete once a session has made
            more than ``max_delay`` steps; before that they hold -2.
        """
        batch = text_B.shape[0]
        ring_BSR = state.ring_BSR[:batch, : self._num_own]
        state.num_steps_B[:batch] += valid_B
        step_B1 = state.num_steps_B[:batch, None]
        num_columns = ring_BSR.shape[-1]
        own_BS1 = torch.cat([text_B[:, None], codes_BK], dim=1)[..., None]
        write_BS1 = (step_B1 % num_columns)[..., None].expand_as(own_BS1)
        _write(ring_BSR, write_BS1, own_BS1, valid_B)
        own_delay_S = self._delay_S1[: self._num_own, 0]
        read_BS1 = ((step_B1 - self._max_delay + own_delay_S) % num_columns)[..., None]
        out_BS = ring_BSR.gather(2, read_BS1)[..., 0]
        complete_B1 = (step_B1 > self._max_delay) & valid_B[:, None]
        out_BS = torch.where(complete_B1, out_BS, UNGENERATED)
        return out_BS[:, 0], out_BS[:, 1:]


def _write(ring_BSR: Tensor, index_BS1: Tensor, value_BS1: Tensor, valid_B: Tensor) -> None:
    """Scatter one column per slot, leaving the slots that do not step alone."""
    old_BS1 = ring_BSR.gather(2, index_BS1)
    ring_BSR.scatter_(2, index_BS1, torch.where(valid_B[:, None, None], value_BS1, old_BS1))
