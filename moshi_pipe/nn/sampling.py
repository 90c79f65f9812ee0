"""Choosing a token from logits, with randomness as an input.

Shape letters: B slot, V vocabulary, R noise draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def sample(
    logits_BV: Tensor, temperature_B: Tensor, top_k_B: Tensor, noise_BR: Tensor | None
) -> Tensor:
    """Draw one token per slot from the most likely ones.

    With probabilities ``p`` of the top-k candidates, sorted descending, and ``q`` exponential
    draws, the candidate with the largest ``p / q`` is taken: candidate i wins with probability
    proportional to ``p_i``. Greedy is temperature 0.

    Args:
        logits_BV: float32.
        temperature_B: float32; 0 is greedy.
        top_k_B: Candidates, int64; 0 means as many as there are draws. Equal probabilities are
            ordered as ``torch.topk`` orders them for this number of draws.
        noise_BR: Exponential(1) draws in candidate order; None when every slot is greedy.

    Returns:
        Tokens, int64 ``[B]``.

    Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/utils/sampling.py.
    """
    greedy_B = logits_BV.argmax(dim=-1)
    if noise_BR is None:
        return greedy_B
    num_candidates = min(noise_BR.shape[-1], logits_BV.shape[-1])
    divisor_B1 = torch.where(temperature_B > 0, temperature_B, 1.0)[:, None]
    probability_BV = torch.softmax(logits_BV / divisor_B1, dim=-1)
    top_BR, token_BR = torch.topk(probability_BV, num_candidates, dim=-1)
    rank_R = torch.arange(num_candidates, device=logits_BV.device)
    allowed_BR = (rank_R < top_k_B[:, None]) | (top_k_B[:, None] == 0)
    score_BR = torch.where(allowed_BR, top_BR, 0.0) / noise_BR[:, :num_candidates]
    sampled_B = token_BR.gather(-1, score_BR.argmax(dim=-1, keepdim=True))[:, 0]
    return torch.where(temperature_B > 0, sampled_B, greedy_B)


def penalize_recent(logits_BV: Tensor, recent_BW: Tensor, penalty_B: Tensor) -> Tensor:
    """Make recently used tokens less likely.

    Positive logits of those tokens are divided by the penalty, negative ones multiplied
    (Keskar et al. 2019, "CTRL", section 4.1, in the sign-aware form that became common).

    Args:
        logits_BV: float32.
        recent_BW: Recent tokens, int64; negative entries are empty.
        penalty_B: float32; 1 is off.

    Returns:
        float32 ``[B, V]``.
    """
    count_BV = torch.zeros_like(logits_BV)
    count_BV.scatter_add_(1, recent_BW.clamp(min=0), (recent_BW >= 0).to(logits_BV))
    seen_BV = count_BV > 0
    penalty_B1 = penalty_B[:, None]
    penalized = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, penalized, logits_BV)
