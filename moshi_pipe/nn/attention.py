"""Rotary positions, ring caches of keys and values, and the mask over them.

Shape letters: B slot, T new position, H head, E width of one head, L ring capacity.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/{rope,transformer}.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class KVRing:
    """Keys and values of one layer, in ring order.

    Attributes:
        keys_BHLE: Rotated keys.
        values_BHLE: Values.
    """

    keys_BHLE: Tensor
    values_BHLE: Tensor


@dataclass(slots=True)
class Positions:
    """What all layers of one step share; computed once.

    Attributes:
        write_BT: Ring index of each new position.
        cos_B1TE: Rotation, float32, ``E / 2`` wide; None without rotary positions.
        sin_B1TE: As ``cos_B1TE``.
        mask_B1TL: Which ring entries each new position sees; None when all of ``length`` do.
        length: Ring entries to read from the front.
    """

    write_BT: Tensor
    cos_B1TE: Tensor | None
    sin_B1TE: Tensor | None
    mask_B1TL: Tensor | None
    length: int


def plan_positions(
    position_B: Tensor,
    num_new: int,
    *,
    capacity: int,
    context: int | None,
    head_dim: int,
    max_period: float | None,
    prefix: bool,
) -> Positions:
    """Work out where new positions are written, how they rotate and what they see.

    New entries are written before attention, over the oldest ones once the ring is full: with two
    new positions per call, the first of them then sees ``context - 1`` entries, as the reference's.

    Args:
        position_B: Position of the first new entry, int64.
        num_new: ``T``.
        capacity: ``L``.
        context: How far back a position sees, itself included; None without a limit.
        head_dim: ``E``.
        max_period: Longest period of the rotation, None without rotary positions.
        prefix: Read only the filled part of the ring and, where that is the same, skip the mask.
            For a single slot on a CPU: it asks for the position on the host.

    Returns:
        The shared quantities.
    """
    steps_T = torch.arange(num_new, device=position_B.device)
    query_BT = position_B[:, None] + steps_T
    write_BT = query_BT % capacity
    cos = sin = None
    if max_period is not None:
        cos, sin = _rotation(position_B, num_new, head_dim, max_period)
    length = capacity
    if prefix:
        end = int(position_B[0]) + num_new
        length = min(end, capacity)
        if num_new == 1 and (context is None or capacity <= context):
            return Positions(write_BT, cos, sin, None, length)
    slot_L = torch.arange(length, device=position_B.device)
    last_B1 = query_BT[:, -1:]
    behind_BL = (last_B1 - slot_L) % capacity
    held_BL = last_B1 - behind_BL  # position that each entry holds; negative where none is
    distance_BTL = query_BT[:, :, None] - held_BL[:, None]
    seen = (held_BL[:, None] >= 0) & (distance_BTL >= 0)
    if context is not None:
        seen = seen & (distance_BTL < context)
    return Positions(write_BT, cos, sin, seen[:, None], length)


def rotate(x_BHTE: Tensor, positions: Positions, *, interleaved: bool) -> Tensor:
    """Rotate queries or keys by their positions, in float32.

    Args:
        x_BHTE: Queries or keys.
        positions: Of this step.
        interleaved: Pairs are neighbours ``(2e, 2e + 1)``; else ``(e, e + E / 2)``.
    """
    cos, sin = positions.cos_B1TE, positions.sin_B1TE
    if cos is None or sin is None:
        return x_BHTE
    half = x_BHTE.shape[-1] // 2
    if interleaved:
        pairs = x_BHTE.unflatten(-1, (half, 2))
        real, imag = pairs[..., 0].float(), pairs[..., 1].float()
    else:
        real, imag = x_BHTE[..., :half].float(), x_BHTE[..., half:].float()
    dtype = x_BHTE.dtype
    out_real = (real * cos - imag * sin).to(dtype)
    out_imag = (real * sin + imag * cos).to(dtype)
    if interleaved:
        return torch.stack([out_real, out_imag], dim=-1).flatten(-2)
    return torch.cat([out_real, out_imag], dim=-1)


def attend(
    q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, ring: KVRing, positions: Positions
) -> Tensor:
    """Write the new keys and values into the ring, then attend over it.

    Args:
        q_BHTE: Rotated queries.
        k_BHTE: Rotated keys, of as many heads as the ring has.
        v_BHTE: Values.
        ring: Updated in place; may hold more slots than B.
        positions: Of this step.

    Returns:
        ``[B, T, H * E]``.
    """
    batch, num_heads, num_new, head_dim = q_BHTE.shape
    keys, values = ring.keys_BHLE[:batch], ring.values_BHLE[:batch]
    index = positions.write_BT[:, None, :, None].expand(-1, keys.shape[1], -1, head_dim)
    keys.scatter_(2, index, k_BHTE.to(keys.dtype))
    values.scatter_(2, index, v_BHTE.to(values.dtype))
    if positions.length < keys.shape[2]:
        keys, values = keys[:, :, : positions.length], values[:, :, : positions.length]
    repeat = num_heads // keys.shape[1]
    if repeat > 1:
        keys, values = keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
    if keys.dtype != q_BHTE.dtype:
        keys, values = keys.to(q_BHTE.dtype), values.to(q_BHTE.dtype)
    x_BHTE = F.scaled_dot_product_attention(q_BHTE, keys, values, positions.mask_B1TL)
    return x_BHTE.transpose(1, 2).reshape(batch, num_new, num_heads * head_dim)


def _rotation(
    position_B: Tensor, num_new: int, head_dim: int, max_period: float
) -> tuple[Tensor, Tensor]:
    half_E = torch.arange(head_dim // 2, device=position_B.device, dtype=torch.float32)
    frequency_E = torch.exp(half_E * (-math.log(max_period) * 2 / head_dim))
    steps_T = torch.arange(num_new, device=position_B.device, dtype=torch.float32)
    time_B1T1 = (position_B.float().view(-1, 1) + steps_T).view(len(position_B), 1, num_new, 1)
    angle = frequency_E * time_B1T1
    return torch.cos(angle), torch.sin(angle)
