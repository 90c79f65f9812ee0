"""Where sums are in a text, and where they lie on the line of numbers.

A model that learns eighty sums by heart says nothing sensible of the other twenty. A head that
only training has asks the state, where a result is due, whether each part of the sum and the
result are above each number: that is easy for a state in which numbers lie in a row, and in such
a row a sum that was never heard has its place.

Shape letters: B conversation, T frame, M frame of any conversation, D width, P part of a sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as F

from moshi_pipe_nano import domain, words
from moshi_pipe_nano.shapes import TEXT_CARDINALITY

if TYPE_CHECKING:
    from torch import Tensor, nn

THRESHOLDS: Final = (9, 9, 18)
"""Numbers that the first part, the second part and the result are compared with, 0 on."""

_FORM: Final = ("is", None, "plus", None)  # the words before a result, the last one first


def is_result(text_BT: Tensor) -> Tensor:
    """Which frames hold the first word after an "is": what was not heard but must be known."""
    before_BT = text_BT.gather(1, _word_before(text_BT).clamp(min=0))
    known_BT = (_word_before(text_BT) >= 0) & (before_BT == words.token("is"))
    return (text_BT >= words.FIRST_WORD) & known_BT


def parts(text_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of conversations.

    Returns:
        Which frames hold the result of a sum, bool ``[B, T]``; first part, second part and result
        at each frame, int64 ``[B, T, P]``, without meaning elsewhere.
    """
    number_V = _numbers(text_BT.device)
    before_BT = _word_before(text_BT)
    at_BT = torch.arange(text_BT.shape[1], device=text_BT.device).expand_as(text_BT)
    found = [number_V[text_BT]]
    is_sum_BT = found[0] >= 0
    for word in _FORM:
        at_BT = torch.where(at_BT < 0, -1, before_BT.gather(1, at_BT.clamp(min=0)))
        token_BT = torch.where(at_BT < 0, words.PADDING, text_BT.gather(1, at_BT.clamp(min=0)))
        if word is None:
            found.append(number_V[token_BT])
            is_sum_BT = is_sum_BT & (found[-1] >= 0)
        else:
            is_sum_BT = is_sum_BT & (token_BT == words.token(word))
    return is_sum_BT, torch.stack([found[2], found[1], found[0]], dim=-1)


def loss(head: nn.Module, state_BTD: Tensor, text_BT: Tensor, asked_B: Tensor) -> Tensor:
    """Binary cross-entropy of every threshold where a result is due, of some conversations."""
    is_sum_BT, parts_BTP = parts(text_BT)
    is_sum_BT = is_sum_BT & asked_B[:, None]
    logits = head(state_BTD[is_sum_BT])
    above = [
        parts_BTP[is_sum_BT][:, p, None] > torch.arange(count, device=text_BT.device)
        for p, count in enumerate(THRESHOLDS)
    ]
    wanted = torch.cat(above, dim=1).to(logits.dtype)
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
    return each / max(wanted.numel(), 1)


def _word_before(text_BT: Tensor) -> Tensor:
    """Frame of the last word before each frame; -1 where there is none."""
    at_BT = torch.arange(text_BT.shape[1], device=text_BT.device).expand_as(text_BT)
    last_BT = torch.where(text_BT >= words.FIRST_WORD, at_BT, -1).cummax(1).values.roll(1, 1)
    last_BT[:, 0] = -1
    return last_BT


def _numbers(device: torch.device) -> Tensor:
    """What each token counts, int64 ``[V]``; -1 where it is no number."""
    values = torch.full((TEXT_CARDINALITY,), -1)
    for number, word in enumerate(domain.NUMBERS):
        values[words.token(word)] = number
    return values.to(device)
