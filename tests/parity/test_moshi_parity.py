"""The language model against the reference package, same random weights.

``numerics=reference`` on a CPU: logits are compared bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.golden import BASE_LM, CONDITIONED_LM, DELAYED_LM, STT_LM
from support.reference import moshi_pair

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.models.protocols import Controls
from moshi_pipe.models.spec import MOSHI_7B_CONFIG, LMSpec
from moshi_pipe.nn.moshi import Moshi

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CONFIGS = {
    "moshi": BASE_LM,
    "delays and low rank": DELAYED_LM,
    "stt": STT_LM,
    "kv repeat, rope_concat, layer norm": BASE_LM
    | {
        "kv_repeat": 2,
        "depformer_kv_repeat": 1,
        "positional_embedding": "rope_concat",
        "depformer_norm": "layer_norm",
        "norm": "layer_norm",
        "norm_emb": True,
        "bias_proj": True,
        "layer_scale": 0.1,
    },
}


class Ours:
    """Our model between delay lines, with the reference generator's interface."""

    def __init__(self, model: Moshi, num_slots: int, *, guidance: float | None = None) -> None:
        self.model, self.num_slots = model, num_slots
        self.line = DelayLine(model.spec, torch.device("cpu"))
        self.state = model.new_state(num_slots, 2 if guidance else 1)
        self.delays = self.line.new_state(num_slots)
        zeros, counts = torch.zeros(num_slots), torch.zeros(num_slots, dtype=torch.int64)
        weight = torch.full((num_slots,), guidance) if guidance else None
        self.controls = Controls(zeros, zeros, counts, counts, guidance_B=weight)
        self.logits_BV = torch.zeros(0)

    def step(self, user_BK: torch.Tensor, valid_B: torch.Tensor | None = None) -> torch.Tensor:
        if valid_B is None:
            valid_B = torch.ones(self.num_slots, dtype=torch.bool)
        column_BS = self.line.push_user(user_BK, valid_B, self.delays)
        step = self.model.step(column_BS, valid_B, self.controls, self.state)
        self.logits_BV = step.extra["text_logits_BV"]
        text_B, codes_BK = self.line.push_generated(
            step.text_B, step.codes_BK, valid_B, self.delays
        )
        return torch.cat([text_B[:, None], codes_BK], 1)

    def reset(self, slots: list[int]) -> None:
        if slots:
            self.model.reset(self.state, slots)
            self.line.reset(self.delays, slots)


def reference_generator(reference: Any, heard: list[torch.Tensor], **options: Any) -> Any:
    from moshi.models.lm import LMGen

    return LMGen(
        reference,
        support_out_of_sync=True,
        on_text_logits_hook=lambda logits: heard.append(logits.float().clone()[:, 0, 0]),
        **options,
    )


def user_codes(num_steps: int, num_slots: int, num_user: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 32, (num_steps, num_slots, num_user), generator=generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_bit_identical_over_three_contexts(name: str, dtype: torch.dtype) -> None:
    reference, model = moshi_pair(CONFIGS[name], dtype)
    logits: list[torch.Tensor] = []
    generator = reference_generator(reference, logits, use_sampling=False)
    ours = Ours(model, 1)
    with generator.streaming(1):
        for user_BK in user_codes(26, 1, model.spec.num_user):
            theirs = generator.step(user_BK[..., None])[..., 0]
            mine = ours.step(user_BK)
            assert torch.equal(ours.logits_BV, logits[-1])
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_and_resets_keep_every_slot_bit_identical(dtype: torch.dtype) -> None:
    num_slots = 4
    reference, model = moshi_pair(BASE_LM, dtype)
    logits: list[torch.Tensor] = []
    generator = reference_generator(reference, logits, use_sampling=False)
    ours = Ours(model, num_slots)
    rng = torch.Generator().manual_seed(5)
    with generator.streaming(num_slots):
        for user_BK in user_codes(30, num_slots, 4):
            valid_B = torch.rand(num_slots, generator=rng) < 0.7
            reset_B = torch.rand(num_slots, generator=rng) < 0.08
            generator.reset_streaming(reset_B)
            ours.reset(reset_B.nonzero().flatten().tolist())
            generator.set_exec_mask(valid_B)
            theirs = generator.step(user_BK[..., None])[..., 0]
            mine = ours.step(user_BK, valid_B)
            assert torch.equal(ours.logits_BV[valid_B], logits[-1][valid_B])
            assert torch.equal(mine[valid_B], theirs[valid_B])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("guidance", [1.7, 3.0])
@pytest.mark.parametrize("unwanted", ["very_bad", None])
def test_guidance_is_bit_identical(
    dtype: torch.dtype, guidance: float, unwanted: str | None
) -> None:
    from moshi.conditioners.base import ConditionAttributes

    reference, model = moshi_pair(CONDITIONED_LM, dtype)
    values = ["very_good", unwanted]
    tensors = reference.condition_provider.prepare_and_provide(
        [ConditionAttributes(text={"description": v}, tensor={}) for v in values]
    )
    logits: list[torch.Tensor] = []
    generator = reference_generator(
        reference, logits, use_sampling=False, cfg_coef=guidance, condition_tensors=tensors
    )
    ours = Ours(model, 1, guidance=guidance)
    conditions = {"description": "very_good"} | ({"description!": unwanted} if unwanted else {})
    model.reset(ours.state, [0], conditions)
    with generator.streaming(1):
        for user_BK in user_codes(20, 1, 4):
            theirs = generator.step(user_BK[..., None])[..., 0]
            mine = ours.step(user_BK)
            assert torch.equal(ours.logits_BV, logits[-1])
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sampled_tokens_are_equal_when_the_draws_are_shared(dtype: torch.dtype) -> None:
    """The reference draws from torch's generator: text first, then each codebook.

    Text and audio have one top-k here: bfloat16 logits often tie, and the order in which torch's
    topk lists ties depends on k.
    """
    reference, model = moshi_pair(BASE_LM, dtype)
    generator = reference_generator(reference, [], temp=0.8, temp_text=0.7, top_k=10, top_k_text=10)
    ours = Ours(model, 1)
    ours.controls = Controls(
        torch.tensor([0.8]), torch.tensor([0.7]), torch.tensor([10]), torch.tensor([10])
    )
    draws = torch.Generator().manual_seed(11)
    torch.manual_seed(11)
    with generator.streaming(1):
        for user_BK in user_codes(40, 1, 4):
            noise = torch.ones(1, 5, 10)
            for row in range(5):
                noise[:, row].copy_(torch.empty(1, 10).exponential_(1, generator=draws))
            ours.controls.noise_BKR = noise
            theirs = generator.step(user_BK[..., None])[..., 0]
            assert torch.equal(ours.step(user_BK), theirs)


def test_teacher_forced_logits_equal_the_training_forward() -> None:
    reference, model = moshi_pair(BASE_LM)
    codes_BST = torch.from_numpy(np.random.default_rng(0).integers(-1, 32, (1, 9, 24)))
    expected = reference(codes_BST).text_logits[0, 0]
    delays, initial = model.spec.delays, model.spec.initial_codes
    state, valid_B = model.new_state(1), torch.ones(1, dtype=torch.bool)
    zeros, counts = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    for t in range(24):
        column = [
            initial[s] if t == 0 or t - 1 - delays[s] < 0 else codes_BST[0, s, t - 1 - delays[s]]
            for s in range(9)
        ]
        step = model.step(
            torch.tensor([column]), valid_B, Controls(zeros, zeros, counts, counts), state
        )
        torch.testing.assert_close(step.extra["text_logits_BV"][0], expected[t], rtol=0, atol=1e-4)


def test_every_tensor_of_the_7b_model_has_the_reference_name_and_shape() -> None:
    from moshi.models.loaders import get_moshi_lm

    reference = get_moshi_lm(None, dict(MOSHI_7B_CONFIG), device="meta", dtype=torch.bfloat16)
    with torch.device("meta"):
        ours = Moshi(LMSpec.from_config(MOSHI_7B_CONFIG))

    assert shapes(ours) == shapes(reference)
    assert sum(t.numel() for t in ours.state_dict().values()) == 7_687_729_152


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
