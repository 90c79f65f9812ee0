"""Products by weights of 8 or 4 bits that are widened where they are multiplied, not in memory.

Few rows at a time: reading the weights is what costs.

Shape letters: M row, D in, O out, G group.

Needs triton; imported by nothing unless it was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

_OPERANDS = torch.bfloat16  # what the matrix units multiply
_ROWS: Final = 16  # the least that the matrix units take
_NARROW: Final = 8192  # outputs; below, smaller tiles keep all multiprocessors busy


def multiply_int8(x_MD: Tensor, codes_OD: Tensor, scale_O: Tensor) -> Tensor:
    """``x @ (codes * scale).T``, with ``x`` in bfloat16 and sums in float32.

    Args:
        x_MD: Any floating type.
        codes_OD: int8.
        scale_O: float32.

    Returns:
        float32 ``[M, O]``.
    """
    x_MD = x_MD.to(_OPERANDS).contiguous()
    rows, dim_in = x_MD.shape
    dim_out = codes_OD.shape[0]
    y_MO = torch.empty(rows, dim_out, dtype=torch.float32, device=x_MD.device)
    tile = 16 if dim_out < _NARROW else 32
    grid = (triton.cdiv(dim_out, tile), triton.cdiv(rows, _ROWS))
    _int8[grid](
        x_MD, codes_OD, scale_O, y_MO, rows, dim_in, dim_out,
        ROWS=_ROWS, TILE=tile, BLOCK=256, num_stages=4,
    )  # fmt: skip
    return y_MO


def multiply_int4(
    x_MD: Tensor, pairs_OD: Tensor, scales_OG: Tensor, biases_OG: Tensor, group: int
) -> Tensor:
    """``x @ (codes * scale + bias).T`` by groups, with ``x`` in bfloat16 and sums in float32.

    Args:
        x_MD: Any floating type.
        pairs_OD: uint8 ``[O, D / 2]``, the even element in the low half.
        scales_OG: bfloat16.
        biases_OG: bfloat16.
        group: Elements that share a scale, even.

    Returns:
        float32 ``[M, O]``.
    """
    x_MD = x_MD.to(_OPERANDS).contiguous()
    rows, dim_in = x_MD.shape
    dim_out = pairs_OD.shape[0]
    y_MO = torch.empty(rows, dim_out, dtype=torch.float32, device=x_MD.device)
    tile = 16 if dim_out < _NARROW else 32
    grid = (triton.cdiv(dim_out, tile), triton.cdiv(rows, _ROWS))
    _int4[grid](
        x_MD, pairs_OD, scales_OG, biases_OG, y_MO, rows, dim_in // 2, dim_out,
        scales_OG.shape[1], group // 2, ROWS=_ROWS, TILE=tile, BLOCK=128, num_stages=4,
    )  # fmt: skip
    return y_MO


@triton.jit
def _int8(x, codes, scale, y, M, D, O, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, D, BLOCK):
        place = start + at
        x_place = row[:, None] * D + place[None, :]
        x_mask = (row[:, None] < M) & (place[None, :] < D)
        x_part = tl.load(x + x_place, mask=x_mask, other=0.0)
        w_place = out[:, None].to(tl.int64) * D + place[None, :]
        w_mask = (out[:, None] < O) & (place[None, :] < D)
        w_part = tl.load(codes + w_place, mask=w_mask, other=0).to(x_part.dtype)
        total = tl.dot(x_part, tl.trans(w_part), total)
    worth = tl.load(scale + out, mask=out < O, other=0.0)
    y_mask = (row[:, None] < M) & (out[None, :] < O)
    tl.store(y + row[:, None] * O + out[None, :], total * worth[None, :], mask=y_mask)


@triton.jit
def _int4(
    x,
    pairs,
    scales,
    biases,
    y,
    M,
    HALF,
    O,
    G,
    HALF_GROUP,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    out = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, TILE), tl.float32)
    for start in range(0, HALF, BLOCK):
        place = start + at
        x_place = row[:, None] * 2 * HALF + 2 * place[None, :]
        x_mask = (row[:, None] < M) & (place[None, :] < HALF)
        x_even = tl.load(x + x_place, mask=x_mask, other=0.0)
        x_odd = tl.load(x + x_place + 1, mask=x_mask, other=0.0)
        w_mask = (out[:, None] < O) & (place[None, :] < HALF)
        w_place = out[:, None].to(tl.int64) * HALF + place[None, :]
        pair = tl.load(pairs + w_place, mask=w_mask, other=0).to(tl.int32)
        s_place = out[:, None].to(tl.int64) * G + (place // HALF_GROUP)[None, :]
        worth = tl.load(scales + s_place, mask=w_mask, other=0.0).to(tl.float32)
        bias = tl.load(biases + s_place, mask=w_mask, other=0.0).to(tl.float32)
        even = ((pair & 15).to(tl.float32) * worth + bias).to(x_even.dtype)
        odd = ((pair >> 4).to(tl.float32) * worth + bias).to(x_even.dtype)
        total = tl.dot(x_even, tl.trans(even), total)
        total = tl.dot(x_odd, tl.trans(odd), total)
    y_mask = (row[:, None] < M) & (out[None, :] < O)
    tl.store(y + row[:, None] * O + out[None, :], total, mask=y_mask)
