"""Kernels of our own against torch's operations; run by ``test_fused.py`` in an interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.golden import BASE_LM, TINY_MIMI, fill_golden

from moshi_pipe.models.protocols import Controls
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi
from moshi_pipe.nn.quantized import Int4Linear, Int8Linear, quantize_int4, quantize_int8

OFF = 2e-5


def make_lm(*, fused: bool, dtype: torch.dtype = torch.float32, **config: Any) -> Moshi:
    kv_dtype = config.pop("kv_dtype", None)
    # An interpreter is slow: few layers, and a ring that is full early.
    small = {"num_layers": 1, "depformer_num_layers": 1, "context": 2}
    model = Moshi(LMSpec.from_config(BASE_LM | small | config), kv_dtype=kv_dtype)
    fill_golden(model)
    if fused:
        model.use_kernels()
    return model.to(dtype)


def logits(model: Moshi, num_steps: int = 4) -> torch.Tensor:
    """Text logits and audible choices of two slots, of which one pauses."""
    state = model.new_state(4)
    zeros, counts = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    rows = []
    for step in range(num_steps):
        column = [[(7 * step + 3 * k + slot) % 31 for k in range(9)] for slot in range(2)]
        valid_B = torch.tensor([True, step % 3 > 0])
        controls = Controls(zeros, zeros, counts, counts)
        made = model.step(torch.tensor(column), valid_B, controls, state)
        rows.append(made.extra["text_logits_BV"].clone())
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("config", "piece"),
    [
        ({}, 2),
        ({"kv_repeat": 2, "positional_embedding": "rope_concat", "layer_scale": 0.1}, 1),
        ({"norm": "layer_norm", "positional_embedding": "none"}, 2),
        ({"kv_dtype": torch.int8}, 1),
    ],
)
def test_a_language_model_step_is_torchs(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], piece: int
) -> None:
    from moshi_pipe.nn import triton_kernels

    monkeypatch.setattr(triton_kernels, "_PIECE", piece)
    monkeypatch.setattr(triton_kernels, "_BLOCK", 2)
    wanted, got = logits(make_lm(fused=False, **config)), logits(make_lm(fused=True, **config))
    assert torch.dist(got, wanted) < OFF * wanted.norm()


def test_bfloat16_rounds_where_torch_does() -> None:
    wanted = logits(make_lm(fused=False, dtype=torch.bfloat16))
    got = logits(make_lm(fused=True, dtype=torch.bfloat16))
    assert torch.dist(got, wanted) < 0.01 * wanted.norm()


def test_a_codec_gives_the_same_codes_and_sound() -> None:
    made = []
    for fused in (False, True):
        window = TINY_MIMI["transformer"] | {"context": 4}
        codec = Mimi(MimiSpec.from_config(TINY_MIMI | {"transformer": window}))
        fill_golden(codec)
        codec.prepare()
        if fused:
            codec.use_kernels()
        encoder, decoder = codec.new_encoder_state(1), codec.new_decoder_state(1)
        valid_B = torch.ones(1, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        codes, sound = [], []
        for _ in range(4):  # the window is full after 2
            pcm_BCN = torch.rand(1, 1, codec.spec.frame_size, generator=generator) - 0.5
            codes.append(codec.encode(pcm_BCN, valid_B, encoder))
            sound.append(codec.decode(codes[-1], valid_B, decoder))
        made.append((torch.stack(codes), torch.stack(sound)))
    (wanted_codes, wanted), (got_codes, got) = made
    assert torch.equal(got_codes, wanted_codes)
    assert torch.dist(got, wanted) < OFF * wanted.norm()


@pytest.mark.parametrize("rows", [1, 17])
def test_products_are_those_of_widened_weights(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from moshi_pipe.nn import triton_products
    from moshi_pipe.nn.triton_products import multiply_int4, multiply_int8

    monkeypatch.setattr(triton_products, "_OPERANDS", torch.float32)  # no bfloat16 here
    generator = torch.Generator().manual_seed(0)
    weight_OD = torch.randn(40, 96, generator=generator)
    x_MD = torch.randn(rows, 96, generator=generator)
    eight = Int8Linear(*quantize_int8(weight_OD))
    four = Int4Linear(*quantize_int4(weight_OD, 32))
    got = multiply_int8(x_MD, eight.weight, eight.scale_O)
    wanted = x_MD @ eight.widened().t()
    assert torch.dist(got, wanted) < 1e-5 * wanted.norm()
    got = multiply_int4(x_MD, four.weight, four.weight_scales, four.weight_biases, 32)
    wanted = x_MD @ four.widened().t()
    assert torch.dist(got, wanted) < 1e-5 * wanted.norm()


def test_a_slot_reads_its_own_entries_alone() -> None:
    model = make_lm(fused=True)
    state = model.new_state(2)
    for ring in state.temporal.rings:  # what was never written may be anything
        ring.keys_BHLE[:, :, 1:] = torch.nan
        ring.values_BHLE[:, :, 1:] = torch.nan
    zeros, counts = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    column_BS = torch.ones(2, 9, dtype=torch.int64)
    valid_B = torch.ones(2, dtype=torch.bool)
    step = model.step(column_BS, valid_B, Controls(zeros, zeros, counts, counts), state)
    assert step.finite_B.all()
