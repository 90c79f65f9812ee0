"""Kernels of a transformer's step, for what torch does in many small ones.

A step of one position per slot is bound by launches and by the bytes of weights and rings: so what
lies between two products is one kernel, and attention reads only the filled part of a slot's ring,
in pieces of a fixed size, so that a slot's sums do not depend on the others.

Shape letters: B slot, T new position, H head of queries, G head of the ring, E width of one head,
L ring capacity, S piece of the ring, M row, D width, F hidden width.

Needs triton; imported by nothing unless it was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe.nn.attention import KVRing

_PIECE: Final = 512  # ring entries of one program: some hundred programs for one full slot of 7B
_BLOCK: Final = 64  # of which at once
_UNLIMITED: Final = 1 << 40
_INT8_MAX: Final = 127.0
ROTATIONS: Final = {"none": 0, "rope": 1, "rope_concat": 2}
"""How neighbours are paired, by the name of the positional embedding."""


def rms_norm(
    x_MD: Tensor, alpha_D: Tensor, eps: float, update_MD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add an update, and normalise the sum in float32.

    Args:
        x_MD: Contiguous.
        alpha_D: Scale, of ``D`` elements.
        eps: Added to the mean square.
        update_MD: As ``x_MD``; None adds nothing.

    Returns:
        The sum, which is ``x_MD`` itself without an update, and its norm.
    """
    rows, dim = x_MD.shape
    out_MD = torch.empty_like(x_MD)
    sum_MD = x_MD if update_MD is None else torch.empty_like(x_MD)
    _rms_norm[(rows,)](
        x_MD,
        x_MD if update_MD is None else update_MD.contiguous(),
        alpha_D,
        out_MD,
        sum_MD,
        dim,
        eps,
        ADD=update_MD is not None,
        BLOCK=triton.next_power_of_2(dim),
        num_warps=8 if dim >= 2048 else 4,
    )
    return sum_MD, out_MD


def gate(hidden_MF: Tensor) -> Tensor:
    """``silu(first half) * second half``, ``[M, 2 F]`` to ``[M, F]``."""
    rows, width = hidden_MF.shape
    out_MF = hidden_MF.new_empty(rows, width // 2)
    grid = (rows, triton.cdiv(width // 2, 1024))
    _gate[grid](hidden_MF.contiguous(), out_MF, width // 2, BLOCK=1024)
    return out_MF


def attend(
    projected_BTX: Tensor,
    ring: KVRing,
    position_B: Tensor,
    *,
    num_heads: int,
    positional_embedding: str,
    max_period: float,
    context: int | None,
) -> Tensor:
    """Rotate, write the new keys and values into the ring, and attend over what is in it.

    Args:
        projected_BTX: Queries, keys and values side by side, ``X = (H + 2 G) E``.
        ring: Updated in place; may hold more slots than B.
        position_B: Position of the first new entry, int64.
        num_heads: ``H``.
        positional_embedding: A key of :data:`ROTATIONS`.
        max_period: Longest period of the rotation.
        context: How far back a position sees, itself included; None without a limit.

    Returns:
        ``[B, T, H * E]``.
    """
    projected_BTX = projected_BTX.contiguous()
    batch, num_new, _ = projected_BTX.shape
    _, num_groups, capacity, head_dim = ring.keys_BHLE.shape
    int8 = ring.key_scales_BHL is not None
    q_BTHE = projected_BTX.new_empty(batch, num_new, num_heads, head_dim)
    key_scales = ring.keys_BHLE if ring.key_scales_BHL is None else ring.key_scales_BHL
    value_scales = ring.values_BHLE if ring.value_scales_BHL is None else ring.value_scales_BHL
    held = (ring.keys_BHLE, ring.values_BHLE, key_scales, value_scales)
    shape: dict[str, Any] = {"H": num_heads, "G": num_groups, "E": head_dim, "INT8": int8}
    _rotate_and_store[(batch * num_new, num_heads + 2 * num_groups)](
        projected_BTX,
        q_BTHE,
        *held,
        position_B,
        num_new,
        capacity,
        max_period,
        ROTATION=ROTATIONS[positional_embedding],
        num_warps=1,
        **shape,
    )
    num_pieces = triton.cdiv(capacity, _PIECE)
    out_BTX = projected_BTX.new_empty(batch, num_new, num_heads * head_dim)
    rows = batch * num_new * num_heads
    parts_MSE = out_BTX
    most_MS = sums_MS = position_B
    if num_pieces > 1:
        parts_MSE = torch.empty(rows, num_pieces, head_dim, device=out_BTX.device)
        most_MS = torch.empty(rows, num_pieces, device=out_BTX.device)
        sums_MS = torch.empty_like(most_MS)
    _attend[(batch * num_new, num_heads, num_pieces)](
        q_BTHE,
        *held,
        position_B,
        parts_MSE,
        most_MS,
        sums_MS,
        num_new,
        capacity,
        _UNLIMITED if context is None else context,
        head_dim**-0.5,
        PIECE=_PIECE,
        BLOCK=_BLOCK,
        WHOLE=num_pieces == 1,
        num_warps=4,
        **shape,
    )
    if num_pieces > 1:
        _join[(rows,)](
            parts_MSE,
            most_MS,
            sums_MS,
            out_BTX,
            num_pieces,
            E=head_dim,
            BLOCK=triton.next_power_of_2(num_pieces),
            num_warps=1,
        )
    return out_BTX


@triton.jit
def _rms_norm(x, update, alpha, out, total, D, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < D
    value = tl.load(x + row * D + at, mask=inside, other=0.0)
    if ADD:
        added = tl.load(update + row * D + at, mask=inside, other=0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)).to(value.dtype)
        tl.store(total + row * D + at, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / D + eps)
    weight = tl.load(alpha + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * D + at, (wide * (weight * scale)).to(value.dtype), mask=inside)


@triton.jit
def _gate(hidden, out, F, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < F
    gate = tl.load(hidden + row * 2 * F + at, mask=inside, other=0.0)
    value = tl.load(hidden + row * 2 * F + F + at, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    opened = (wide / (1 + tl.exp(-wide))).to(gate.dtype)
    made = opened.to(tl.float32) * value.to(tl.float32)
    tl.store(out + row * F + at, made.to(gate.dtype), mask=inside)


@triton.jit
def _rotate_and_store(
    projected,
    q_out,
    keys,
    values,
    key_scales,
    value_scales,
    position,
    T,
    L,
    max_period,
    H: tl.constexpr,
    G: tl.constexpr,
    E: tl.constexpr,
    ROTATION: tl.constexpr,
    INT8: tl.constexpr,
):
    """One head of one new position: a query goes to ``q_out``, the others into the ring."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = row // T
    now = tl.load(position + slot) + row % T
    half = tl.arange(0, E // 2)
    if ROTATION == 2:
        first, second = half, half + E // 2
    else:
        first, second = 2 * half, 2 * half + 1
    source = projected + (row * (H + 2 * G) + head) * E
    real = tl.load(source + first)
    imag = tl.load(source + second)
    if ROTATION > 0:
        if head < H + G:
            frequency = tl.exp(half.to(tl.float32) * (-tl.log(max_period * 1.0) * 2 / E))
            angle = frequency * now.to(tl.float32)
            cos, sin = tl.cos(angle), tl.sin(angle)
            wide_real, wide_imag = real.to(tl.float32), imag.to(tl.float32)
            real = (wide_real * cos - wide_imag * sin).to(real.dtype)
            imag = (wide_real * sin + wide_imag * cos).to(imag.dtype)
    if head < H:
        target = q_out + (row * H + head) * E
        tl.store(target + first, real)
        tl.store(target + second, imag)
    else:
        group = head - H
        place = now % L
        if group < G:
            entry = (slot * G + group) * L + place
            _store_entry(keys, key_scales, entry, real, imag, first, second, E, INT8)
        else:
            entry = (slot * G + group - G) * L + place
            _store_entry(values, value_scales, entry, real, imag, first, second, E, INT8)


@triton.jit
def _store_entry(
    held, scales, entry, real, imag, first, second, E: tl.constexpr, INT8: tl.constexpr
):
    if INT8:
        wide_real, wide_imag = real.to(tl.float32), imag.to(tl.float32)
        most = tl.maximum(tl.max(tl.abs(wide_real), axis=0), tl.max(tl.abs(wide_imag), axis=0))
        scale = most / 127.0
        tl.store(scales + entry, scale)
        divisor = tl.where(scale > 0, scale, 1.0)
        # Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, halves to even.
        whole_real = (wide_real / divisor + 12582912.0) - 12582912.0
        whole_imag = (wide_imag / divisor + 12582912.0) - 12582912.0
        tl.store(held + entry * E + first, whole_real.to(tl.int8))
        tl.store(held + entry * E + second, whole_imag.to(tl.int8))
    else:
        tl.store(held + entry * E + first, real)
        tl.store(held + entry * E + second, imag)


@triton.jit
def _attend(
    q,
    keys,
    values,
    key_scales,
    value_scales,
    position,
    parts,
    most_out,
    sums_out,
    T,
    L,
    context,
    scale,
    H: tl.constexpr,
    G: tl.constexpr,
    E: tl.constexpr,
    INT8: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """One head of one new position over one piece of the ring; the piece's own softmax."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    piece = tl.program_id(2)
    slot = row // T
    last = tl.load(position + slot) + T - 1
    query = last - (T - 1) + row % T
    ring = (slot * G + head // (H // G)) * L
    at = tl.arange(0, E)
    q_E = tl.load(q + (row * H + head) * E + at).to(tl.float32) * scale
    begin = piece * PIECE
    end = tl.minimum(tl.minimum(begin + PIECE, L), last + 1)
    newest = last % L
    most = tl.full((), -1e30, tl.float32)
    total = tl.full((), 0.0, tl.float32)
    sum_E = tl.zeros((E,), tl.float32)
    for start in range(begin, end, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        inside = entry < end
        behind = newest - entry
        behind = tl.where(behind < 0, behind + L, behind)
        distance = query - (last - behind)
        seen = inside & (behind <= last) & (distance >= 0) & (distance < context)
        place = (ring + entry)[:, None] * E + at[None, :]
        key = tl.load(keys + place, mask=inside[:, None], other=0).to(tl.float32)
        score = tl.sum(key * q_E[None, :], axis=1)
        if INT8:
            score = score * tl.load(key_scales + ring + entry, mask=inside, other=0.0)
        score = tl.where(seen, score, -1e38)
        highest = tl.maximum(most, tl.max(score, axis=0))
        weight = tl.exp(score - highest)
        fade = tl.exp(most - highest)
        total = total * fade + tl.sum(weight, axis=0)
        if INT8:
            weight = weight * tl.load(value_scales + ring + entry, mask=inside, other=0.0)
        value = tl.load(values + place, mask=inside[:, None], other=0).to(tl.float32)
        sum_E = sum_E * fade + tl.sum(weight[:, None] * value, axis=0)
        most = highest
    if WHOLE:
        made = sum_E / total
        tl.store(parts + (row * H + head) * E + at, made.to(parts.dtype.element_ty))
    else:
        part = (row * H + head) * tl.num_programs(2) + piece
        tl.store(parts + part * E + at, sum_E)
        tl.store(most_out + part, most)
        tl.store(sums_out + part, total)


@triton.jit
def _join(parts, most_in, sums_in, out, S, E: tl.constexpr, BLOCK: tl.constexpr):
    """The pieces' softmaxes as one."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, E)
    piece = tl.arange(0, BLOCK)
    inside = piece < S
    most = tl.load(most_in + row * S + piece, mask=inside, other=-1e30)
    weight = tl.exp(most - tl.max(most, axis=0))
    total = tl.sum(weight * tl.load(sums_in + row * S + piece, mask=inside, other=0.0), axis=0)
    place = (row * S + piece)[:, None] * E + at[None, :]
    part = tl.load(parts + place, mask=inside[:, None], other=0.0)
    made = tl.sum(weight[:, None] * part, axis=0) / total
    tl.store(out + row * E + at, made.to(out.dtype.element_ty))
