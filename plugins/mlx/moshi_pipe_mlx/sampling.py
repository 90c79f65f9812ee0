"""Choosing tokens on the device: one round trip per frame, not one per code.

Shape letters: B slot, V vocabulary, R noise draw.
"""

from __future__ import annotations

import mlx.core as mx


def sample(
    logits_BV: mx.array, temperature_B: mx.array, top_k_B: mx.array, noise_BR: mx.array | None
) -> mx.array:
    """Draw one token per slot; the race of :func:`moshi_pipe.nn.sampling.sample`.

    Args:
        logits_BV: float32.
        temperature_B: float32; 0 is greedy.
        top_k_B: Candidates, int32; 0 means as many as there are draws.
        noise_BR: Exponential(1) draws in candidate order; None when every slot is greedy.

    Returns:
        Tokens, int32 ``[B]``. Where probabilities tie, the lower token is the earlier candidate;
        torch promises no order.
    """
    greedy_B = mx.argmax(logits_BV, axis=-1).astype(mx.int32)
    if noise_BR is None:
        return greedy_B
    num_candidates = min(noise_BR.shape[-1], logits_BV.shape[-1])
    divisor_B1 = mx.where(temperature_B > 0, temperature_B, 1.0)[:, None]
    probability_BV = mx.softmax(logits_BV / divisor_B1, axis=-1, precise=True)
    token_BR, top_BR = _most_likely(probability_BV, num_candidates)
    rank_R = mx.arange(num_candidates)
    allowed_BR = (rank_R < top_k_B[:, None]) | (top_k_B[:, None] == 0)
    score_BR = mx.where(allowed_BR, top_BR, 0.0) / noise_BR[:, :num_candidates]
    winner_B1 = mx.argmax(score_BR, axis=-1, keepdims=True)
    sampled_B = mx.take_along_axis(token_BR, winner_B1, axis=-1)[:, 0].astype(mx.int32)
    return mx.where(temperature_B > 0, sampled_B, greedy_B)


def _most_likely(probability_BV: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """Tokens and probabilities of the ``count`` most likely, most likely first."""
    candidates = mx.arange(probability_BV.shape[-1])[None]
    if count < probability_BV.shape[-1]:
        # Sorting 32 000 numbers takes eight times as long as choosing 250 and sorting those.
        part = mx.argpartition(-probability_BV, count - 1, axis=-1)[:, :count]
        candidates = mx.sort(part, axis=-1)  # by token, so that ties keep that order
        probability_BV = mx.take_along_axis(probability_BV, candidates, axis=-1)
    order_BR = mx.argsort(-probability_BV, axis=-1)
    candidates = mx.broadcast_to(candidates, probability_BV.shape)
    return (
        mx.take_along_axis(candidates, order_BR, axis=-1),
        mx.take_along_axis(probability_BV, order_BR, axis=-1),
    )


def penalize_recent(logits_BV: mx.array, seen_BV: mx.array, penalty_B: mx.array) -> mx.array:
    """Make recently used tokens less likely, as :func:`moshi_pipe.nn.sampling.penalize_recent`.

    Args:
        logits_BV: float32.
        seen_BV: Which tokens were used, bool.
        penalty_B: float32; 1 is off.
    """
    penalty_B1 = penalty_B[:, None]
    penalized = mx.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return mx.where(seen_BV, penalized, logits_BV)
