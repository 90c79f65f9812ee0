"""Quantized weights in the forms of the released files: to numbers and back.

Every function works on whole rows, so that a matrix can be done a few rows at a time, with the
same result. Numbers are float32; the forms follow the tools that made the released files.

Shape letters: O out, D in, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK: Final = 32
"""Numbers in a block of GGUF's Q8_0."""
BLOCK_BYTES: Final = 34
"""A float16 scale and 32 codes."""

_TINY: Final = 1e-7  # mlx: no scale is smaller


@dataclass(frozen=True, slots=True)
class Packed:
    """A quantized matrix without loss: ``w = codes * scales + biases`` per group.

    Attributes:
        codes: ``[O, D]``; int8 and centred on zero without biases, else uint8.
        scales: ``[O, G]`` in the file's float type; int8 rows have one group.
        biases: ``[O, G]``, or None.
        bits: Of a code.
        group: Neighbours in a row that share a scale, ``D / G``.
    """

    codes: Tensor
    scales: Tensor
    biases: Tensor | None
    bits: int
    group: int

    def numbers(self) -> Tensor:
        """The matrix in float32, ``[O, D]``."""
        grouped = self.codes.view(len(self.codes), -1, self.group).float()
        wide = grouped.mul_(self.scales.float()[:, :, None])
        if self.biases is not None:
            wide.add_(self.biases.float()[:, :, None])
        return wide.flatten(1)

    def affine(self) -> Packed:
        """The same numbers with biases and codes from zero up, as MLX has them.

        It is exact: a bias is 128 times its scale, unless that is too large for the scale's type.
        """
        if self.biases is not None:
            return self
        half = 1 << (self.bits - 1)
        codes = (self.codes.short() + half).to(torch.uint8)
        return Packed(codes, self.scales, self.scales * -half, self.bits, self.group)


def unpack_codes(words: Tensor, bits: int) -> Tensor:
    """Take codes out of MLX's packed words: one stream of bits, lowest first.

    Args:
        words: ``[O, D * bits / 32]`` of any 4-byte type.
        bits: Of a code, 2 to 8.

    Returns:
        uint8 ``[O, D]``.
    """
    octets = words.contiguous().view(torch.uint8)
    if bits == 8:
        return octets
    if bits == 4:
        return torch.stack([octets & 15, octets >> 4], dim=-1).flatten(1)
    # Eight codes take `bits` bytes, whatever a code takes.
    runs = octets.view(len(words), -1, bits).long()
    shifts = 8 * torch.arange(bits, device=words.device)
    stream = (runs << shifts).sum(-1, keepdim=True)
    codes = (stream >> (bits * torch.arange(8, device=words.device))) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(1)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes as MLX does; the opposite of :func:`unpack_codes`.

    Args:
        codes: uint8 ``[O, D]``, ``D * bits`` a multiple of 32.
        bits: Of a code, 2 to 8.

    Returns:
        uint8 ``[O, D * bits / 8]``: the bytes of the words, lowest first.
    """
    if bits == 8:
        return codes.contiguous()
    if bits == 4:
        pairs = codes.view(len(codes), -1, 2)
        return pairs[:, :, 0] | (pairs[:, :, 1] << 4)
    runs = codes.view(len(codes), -1, 8).long() << (bits * torch.arange(8, device=codes.device))
    stream = runs.sum(-1, keepdim=True)
    octets = (stream >> (8 * torch.arange(bits, device=codes.device))) & 255
    return octets.to(torch.uint8).flatten(1)


def split_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Take codes and scales out of Q8_0 blocks.

    Args:
        blocks: uint8 ``[O, D / 32 * 34]``.

    Returns:
        int8 codes ``[O, D]`` and float16 scales ``[O, D / 32]``.
    """
    by_block = blocks.view(len(blocks), -1, BLOCK_BYTES)
    scales = by_block[:, :, :2].contiguous().view(torch.float16).squeeze(-1)
    return by_block[:, :, 2:].contiguous().view(torch.int8).flatten(1), scales


def join_blocks(codes: Tensor, scales: Tensor) -> Tensor:
    """Make Q8_0 blocks, uint8 ``[O, D / 32 * 34]``; the opposite of :func:`split_blocks`."""
    by_block = codes.contiguous().view(torch.uint8).view(len(codes), -1, BLOCK)
    heads = scales.half().contiguous().unsqueeze(-1).view(torch.uint8)
    return torch.cat([heads, by_block], dim=-1).flatten(1)


def quantize_rows(weight_OD: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to int8 with one scale per row, as the released PyTorch q8 files are.

    Source: bitsandbytes 0.49 functional.int8_vectorwise_quant on float16 weights.

    Returns:
        int8 codes ``[O, D]`` and the float32 absmax of each row ``[O]``: ``w = code * absmax/127``.
    """
    half = weight_OD.half().float()
    absmax_O = half.abs().amax(1)
    safe = torch.where(absmax_O > 0, absmax_O, torch.ones_like(absmax_O))
    codes = torch.round(half * (127 / safe)[:, None]).to(torch.int8)
    return codes, absmax_O


def quantize_affine(weight_OD: Tensor, bits: int, group: int) -> Packed:
    """Quantize as MLX does, from bfloat16 to bfloat16 scales and biases.

    The end of a group that is farther from zero is met exactly, and zero is a code.

    Source: ml-explore/mlx mlx/backend/cpu/quantized.cpp, affine quantize.
    """
    most = (1 << bits) - 1
    grouped = weight_OD.bfloat16().float().view(len(weight_OD), -1, group)
    low, high = grouped.amin(-1), grouped.amax(-1)
    below = low.abs() > high.abs()
    scales = ((high - low) / most).clamp_(min=_TINY)
    scales = torch.where(below, scales, -scales)
    edge = torch.where(below, low, high)
    at_edge = torch.round(edge / scales)
    centred = at_edge != 0
    scales = torch.where(centred, edge / at_edge, scales)
    biases = torch.where(centred, edge, torch.zeros_like(edge))
    codes = torch.round((grouped - biases[:, :, None]) / scales[:, :, None]).clamp_(0, most)
    return Packed(
        codes.to(torch.uint8).flatten(1), scales.bfloat16(), biases.bfloat16(), bits, group
    )


def quantize_blocks(weight_OD: Tensor) -> Packed:
    """Quantize to the codes and float16 scales of Q8_0.

    Source: ggml-org/ggml src/ggml-quants.c, quantize_row_q8_0_ref; candle does the same.
    """
    blocks = weight_OD.float().view(len(weight_OD), -1, BLOCK)
    scales = blocks.abs().amax(-1) / 127
    inverse = torch.where(scales > 0, 1 / scales, torch.zeros_like(scales))
    scaled = blocks * inverse[:, :, None]
    # Halves go away from zero, unlike those of torch.round.
    codes = torch.trunc(scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled))
    return Packed(codes.to(torch.int8).flatten(1), scales.half(), None, 8, BLOCK)
