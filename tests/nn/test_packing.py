"""Quantized forms to numbers and back."""

from __future__ import annotations

import pytest
import torch

from moshi_pipe.nn.packing import (
    Packed,
    join_blocks,
    pack_codes,
    quantize_affine,
    quantize_blocks,
    quantize_rows,
    split_blocks,
    unpack_codes,
)


@pytest.fixture
def weight() -> torch.Tensor:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    weight[3, :64] = 0.0
    weight[4] = weight[4].abs()
    weight[5] = -weight[5].abs()
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packed_codes_come_back(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (5, 64), generator=torch.Generator().manual_seed(bits))
    codes = codes.to(torch.uint8)

    octets = pack_codes(codes, bits)

    assert octets.shape == (5, 64 * bits // 8)
    assert torch.equal(unpack_codes(octets.view(torch.int32), bits), codes)


def test_the_first_code_lies_in_the_lowest_bits() -> None:
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.uint8)

    assert pack_codes(codes, 4).tolist() == [[0x21, 0x43, 0x65, 0x87]]


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 32)])
def test_affine_is_within_a_step(weight: torch.Tensor, bits: int, group: int) -> None:
    packed = quantize_affine(weight, bits, group)

    grouped = weight.bfloat16().float().view(16, -1, group)
    step = (grouped.amax(-1) - grouped.amin(-1)) / ((1 << bits) - 1)
    error = (packed.numbers().view(16, -1, group) - grouped).abs().amax(-1)
    # The end nearer zero may be cut by up to half a step more. Scales and biases are rounded to
    # bfloat16: 2^-9 of up to 2^bits steps.
    assert (error <= step * (1.0 + 2**bits * 2**-8) + 1e-6).all()
    assert packed.numbers()[3, :64].eq(0).all()


def test_rows_are_within_half_a_step(weight: torch.Tensor) -> None:
    codes, absmax_O = quantize_rows(weight)

    back = codes * (absmax_O / 127)[:, None]
    assert (back - weight).abs().max() <= 0.51 * absmax_O.max() / 127 + 1e-3
    assert codes.abs().max() == 127


def test_a_row_of_zeros_stays_zero() -> None:
    codes, absmax_O = quantize_rows(torch.zeros(2, 8))

    assert not codes.any()
    assert not absmax_O.any()


def test_blocks_come_back(weight: torch.Tensor) -> None:
    packed = quantize_blocks(weight)

    codes, scales = split_blocks(join_blocks(packed.codes, packed.scales))

    assert torch.equal(codes, packed.codes)
    assert torch.equal(scales, packed.scales)
    assert (packed.numbers() - weight).abs().max() < 0.02


def test_halves_in_a_block_go_away_from_zero() -> None:
    row = torch.zeros(1, 32)
    row[0, :4] = torch.tensor([127.0, 2.5, -2.5, 0.5])

    assert quantize_blocks(row).codes[0, :4].tolist() == [127, 3, -3, 1]


def test_centred_codes_have_the_same_numbers_with_biases(weight: torch.Tensor) -> None:
    packed = quantize_blocks(weight)

    affine = packed.affine()

    assert affine.codes.dtype == torch.uint8
    assert torch.equal(affine.numbers(), packed.numbers())
    assert affine.affine() is affine


def test_rows_done_apart_are_the_same(weight: torch.Tensor) -> None:
    whole = quantize_affine(weight, 4, 32)
    parts = [quantize_affine(rows, 4, 32) for rows in weight.split(5)]

    assert torch.equal(torch.cat([part.codes for part in parts]), whole.codes)
    assert torch.equal(torch.cat([part.scales for part in parts]), whole.scales)


def test_numbers_leave_the_codes_alone() -> None:
    codes = torch.ones(2, 32, dtype=torch.int8)
    packed = Packed(codes, torch.full((2, 1), 0.5), None, 8, 32)

    assert torch.equal(packed.numbers(), torch.full((2, 32), 0.5))
    assert torch.equal(codes, torch.ones(2, 32, dtype=torch.int8))
