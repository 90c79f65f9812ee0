"""Rotary positions, ring caches of keys and values, and the mask over them.

Shape letters: B slot, T new position, H head, G head of a ring that queries share, E width of one
head, L ring capacity.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/{rope,transformer}.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional as F

from moshi_pipe.nn.huge_pages import HugePages

if TYPE_CHECKING:
    from torch import Tensor


_INT8_MAX: Final = 127
_BLOCK: Final = 512
"""Entries that torch's attention on a CPU takes at a time.

Whole blocks that are masked add zeros, so that leaving them out changes no bit; part of one would.
"""
_WORTH_PAGES: Final = 8 << 20  # bytes of a ring that is put into huge pages, which are whole
_WIDENED: Final = 1 << 18  # int8 entries that a CPU widens at once: 1 MB of float32 stays in cache


@dataclass(slots=True)
class KVRing:
    """Keys and values of one layer, in ring order.

    Attributes:
        keys_BHLE: Rotated keys.
        values_BHLE: Values.
        key_scales_BHL: Of int8 keys, float32; None where keys are numbers as they are.
        value_scales_BHL: Likewise.
    """

    keys_BHLE: Tensor
    values_BHLE: Tensor
    key_scales_BHL: Tensor | None = None
    value_scales_BHL: Tensor | None = None

    @classmethod
    def zeros(
        cls, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> KVRing:
        """Make an empty ring ``[B, H, L, E]``; int8 has a scale per slot, head and entry."""
        ring = cls(*(_zeros(shape, dtype, device) for _ in range(2)))
        if dtype == torch.int8:
            ring.key_scales_BHL = torch.zeros(shape[:3], device=device)
            ring.value_scales_BHL = torch.zeros(shape[:3], device=device)
        return ring

    def reset(self, rows: Tensor) -> None:
        """Zero the given slots."""
        for tensor in self._tensors():
            tensor.index_fill_(0, rows, 0)

    def snapshot(self, row: int, length: int) -> list[Tensor]:
        """Copy the first ``length`` entries of a slot to the host."""
        return [tensor[row, :, :length].to("cpu", copy=True) for tensor in self._tensors()]

    def restore(self, row: int, snapshot: list[Tensor]) -> None:
        """Put entries to the front of a slot that holds nothing."""
        for tensor, held in zip(self._tensors(), snapshot, strict=True):
            tensor[row, :, : held.shape[1]] = held.to(tensor.device)

    def _tensors(self) -> list[Tensor]:
        every = (self.keys_BHLE, self.values_BHLE, self.key_scales_BHL, self.value_scales_BHL)
        return [tensor for tensor in every if tensor is not None]


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


def _zeros(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    large = torch.Size(shape).numel() * dtype.itemsize >= _WORTH_PAGES
    if large and device.type == "cpu":
        return HugePages(chunk=0).zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def plan_positions(
    position_B: Tensor,
    num_new: int,
    *,
    capacity: int,
    context: int | None,
    head_dim: int,
    max_period: float | None,
    prefix: bool,
    whole_ring: bool = False,
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
        whole_ring: Read the ring to its end. Otherwise a CPU leaves out the blocks of it that no
            slot has filled yet.

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
    elif _by_blocks(position_B, capacity) and not whole_ring:
        end = int(position_B.max()) + num_new
        length = min(capacity, -(-end // _BLOCK) * _BLOCK)
    slot_L = torch.arange(length, device=position_B.device)
    last_B1 = query_BT[:, -1:]
    behind_BL = (last_B1 - slot_L) % capacity
    held_BL = last_B1 - behind_BL  # position that each entry holds; negative where none is
    distance_BTL = query_BT[:, :, None] - held_BL[:, None]
    seen = (held_BL[:, None] >= 0) & (distance_BTL >= 0)
    if context is not None:
        seen = seen & (distance_BTL < context)
    return Positions(write_BT, cos, sin, seen[:, None], length)


def _by_blocks(position_B: Tensor, capacity: int) -> bool:
    """Whether it pays, and is free, to ask for the furthest position."""
    on_cpu = position_B.device.type == "cpu" and not torch.compiler.is_compiling()
    return on_cpu and capacity > _BLOCK


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
    keys, key_scales = _write(k_BHTE, ring.keys_BHLE, ring.key_scales_BHL, positions)
    values, value_scales = _write(v_BHTE, ring.values_BHLE, ring.value_scales_BHL, positions)
    if key_scales is not None and value_scales is not None:
        mask = positions.mask_B1TL
        x_BHTE = _attend_int8(q_BHTE, keys, key_scales, values, value_scales, mask)
        return x_BHTE.transpose(1, 2).reshape(batch, num_new, num_heads * head_dim)
    repeat = num_heads // keys.shape[1]
    if repeat > 1:
        keys, values = keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
    if keys.dtype != q_BHTE.dtype:
        keys, values = keys.to(q_BHTE.dtype), values.to(q_BHTE.dtype)
    x_BHTE = F.scaled_dot_product_attention(q_BHTE, keys, values, positions.mask_B1TL)
    return x_BHTE.transpose(1, 2).reshape(batch, num_new, num_heads * head_dim)


def _write(
    new_BHTE: Tensor, held_BHLE: Tensor, scales_BHL: Tensor | None, positions: Positions
) -> tuple[Tensor, Tensor | None]:
    """Write new entries and return what is to be read, with its scales."""
    batch, num_heads, _, head_dim = new_BHTE.shape
    held = held_BHLE[:batch]
    index_BHT = positions.write_BT[:, None].expand(-1, num_heads, -1)
    scales = None if scales_BHL is None else scales_BHL[:batch]
    if scales is not None:
        new_BHTE, new_scales_BHT = _round_to_int8(new_BHTE)
        scales.scatter_(2, index_BHT, new_scales_BHT)
        scales = scales[:, :, : positions.length]
    index = index_BHT[..., None].expand(-1, -1, -1, head_dim)
    _bits(held).scatter_(2, index, _bits(new_BHTE.to(held.dtype)))
    return held[:, :, : positions.length], scales


def _bits(x: Tensor) -> Tensor:
    """Half-precision numbers as integers: a CPU's scatter would copy all of them to and fro."""
    return x.view(torch.int16) if x.dtype in (torch.bfloat16, torch.float16) else x


def _round_to_int8(x_BHTE: Tensor) -> tuple[Tensor, Tensor]:
    """Entries as int8 with a float32 scale each, by the largest magnitude of an entry."""
    x_BHTE = x_BHTE.float()
    scale_BHT1 = x_BHTE.abs().amax(-1, keepdim=True) / _INT8_MAX
    codes = torch.where(scale_BHT1 > 0, x_BHTE / scale_BHT1, 0).round().to(torch.int8)
    return codes, scale_BHT1.squeeze(-1)


def _attend_int8(
    q_BHTE: Tensor,
    keys_BGLE: Tensor,
    key_scales_BGL: Tensor,
    values_BGLE: Tensor,
    value_scales_BGL: Tensor,
    mask_B1TL: Tensor | None,
) -> Tensor:
    """Attend over int8 entries; G heads of the ring serve H heads of queries.

    Scales multiply scores and probabilities, so entries are only widened; on a CPU a few heads at
    a time, because a whole ring of float32 would go through memory three times.
    """
    batch, num_heads, num_new, head_dim = q_BHTE.shape
    num_groups, length = keys_BGLE.shape[1:3]
    q_BGRE = q_BHTE.reshape(batch, num_groups, -1, head_dim) * head_dim**-0.5  # R: heads x T
    mask = None if mask_B1TL is None else mask_B1TL[:, :, None]  # [B, 1, 1, T, L]
    on_cpu = q_BHTE.device.type == "cpu"
    at_once = max(1, _WIDENED // (batch * length * head_dim)) if on_cpu else num_groups
    parts = []
    for first in range(0, num_groups, at_once):
        part = slice(first, first + at_once)
        keys, values = keys_BGLE[:, part].to(q_BHTE.dtype), values_BGLE[:, part].to(q_BHTE.dtype)
        scores_BGRL = (q_BGRE[:, part] @ keys.transpose(-1, -2)).float()
        scores_BGRL = scores_BGRL * key_scales_BGL[:, part, None]
        if mask is not None:
            heads_by_time = scores_BGRL.unflatten(2, (-1, num_new))
            scores_BGRL = heads_by_time.masked_fill(~mask, -torch.inf).flatten(2, 3)
        weights = scores_BGRL.softmax(-1) * value_scales_BGL[:, part, None]
        parts.append(weights.to(values.dtype) @ values)
    return torch.cat(parts, dim=1).reshape(batch, num_heads, num_new, head_dim)


def _rotation(
    position_B: Tensor, num_new: int, head_dim: int, max_period: float
) -> tuple[Tensor, Tensor]:
    half_E = torch.arange(head_dim // 2, device=position_B.device, dtype=torch.float32)
    frequency_E = torch.exp(half_E * (-math.log(max_period) * 2 / head_dim))
    steps_T = torch.arange(num_new, device=position_B.device, dtype=torch.float32)
    time_B1T1 = (position_B.float().view(-1, 1) + steps_T).view(len(position_B), 1, num_new, 1)
    angle = frequency_E * time_B1T1
    return torch.cos(angle), torch.sin(angle)
