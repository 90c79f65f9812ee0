"""Attention over a ring of int8 keys and values."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moshi_pipe.nn import attention
from moshi_pipe.nn.attention import KVRing, attend, plan_positions

BATCH, HEADS, CAPACITY, WIDTH = 2, 4, 12, 16


@pytest.mark.parametrize("at_once", [1, 1 << 18], ids=["head by head", "at once"])
@pytest.mark.parametrize("num_new", [1, 2])
@pytest.mark.parametrize("num_groups", [4, 2])
def test_scales_are_folded_in_where_they_belong(
    monkeypatch: pytest.MonkeyPatch, num_groups: int, num_new: int, at_once: int
) -> None:
    """What is computed is attention over the rounded numbers themselves, around the ring's end."""
    monkeypatch.setattr(attention, "_WIDENED", at_once)
    generator = torch.Generator().manual_seed(0)
    ring = KVRing.zeros((BATCH, num_groups, CAPACITY, WIDTH), torch.int8, torch.device("cpu"))
    position_B = torch.tensor([0, 5])  # slots of different ages
    for _ in range(20):
        q, k, v = (
            torch.randn(BATCH, heads, num_new, WIDTH, generator=generator)
            for heads in (HEADS, num_groups, num_groups)
        )
        positions = plan_positions(
            position_B,
            num_new,
            capacity=CAPACITY,
            context=CAPACITY,
            head_dim=WIDTH,
            max_period=None,
            prefix=False,
        )

        out = attend(q, k, v, ring, positions)

        keys, values = (
            (codes * scales[..., None]).repeat_interleave(HEADS // num_groups, 1)
            for codes, scales in (
                (ring.keys_BHLE, scales_of(ring.key_scales_BHL)),
                (ring.values_BHLE, scales_of(ring.value_scales_BHL)),
            )
        )
        wanted = F.scaled_dot_product_attention(q, keys, values, positions.mask_B1TL)
        flat = wanted.transpose(1, 2).reshape(BATCH, num_new, -1)
        torch.testing.assert_close(out, flat, rtol=1e-4, atol=1e-5)
        position_B = position_B + num_new


def test_rounding_is_to_half_a_step_and_zero_stays_zero() -> None:
    x = torch.randn(3, 2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    x[1, 1, 3] = 0

    codes, scales = attention._round_to_int8(x)

    assert codes.abs().max() == 127
    assert ((codes * scales[..., None] - x).abs() <= scales[..., None] * 0.501).all()
    assert not codes[1, 1, 3].any()


def scales_of(scales: torch.Tensor | None) -> torch.Tensor:
    assert scales is not None
    return scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_new", [1, 2])
@pytest.mark.parametrize("oldest", [0, 510, 511, 1022, 1400, 2000])
def test_blocks_that_nobody_has_filled_change_no_bit(
    oldest: int, num_new: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(oldest)
    capacity = 1300
    shape = (3, HEADS, capacity, WIDTH)
    held = torch.randn(2, *shape, generator=generator).to(dtype)
    q, k, v = torch.randn(3, 3, HEADS, num_new, WIDTH, generator=generator).to(dtype)
    made = []
    for whole_ring in (True, False):
        ring = KVRing(held[0].clone(), held[1].clone())
        positions = plan_positions(
            torch.tensor([0, oldest // 2, oldest]),
            num_new,
            capacity=capacity,
            context=capacity,
            head_dim=WIDTH,
            max_period=None,
            prefix=False,
            whole_ring=whole_ring,
        )
        made.append((positions.length, attend(q, k, v, ring, positions)))

    (whole, wanted), (length, out) = made
    assert whole == capacity
    assert (length < capacity) == (oldest + num_new <= 1024)
    assert torch.equal(out, wanted)
