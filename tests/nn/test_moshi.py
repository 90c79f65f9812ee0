"""The language model's promises: slots, masks, resets, sampling and non-finite rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import BASE_LM, CONDITIONED_LM, fill_golden

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.engine.noise import fill_exponential
from moshi_pipe.errors import CheckpointError, ConfigError
from moshi_pipe.models.protocols import Controls
from moshi_pipe.models.spec import LMSpec
from moshi_pipe.nn.moshi import Moshi
from moshi_pipe.nn.sampling import penalize_recent, sample

if TYPE_CHECKING:
    from collections.abc import Sequence

NUM_SLOTS = 4
NUM_DRAWS = 10


def make_moshi(numerics: str = "reference", kv_dtype: torch.dtype | None = None) -> Moshi:
    model = Moshi(LMSpec.from_config(BASE_LM), numerics=numerics, kv_dtype=kv_dtype)
    fill_golden(model)
    return model


MODELS = {name: make_moshi(name) for name in ("reference", "fast")}
MODELS["int8 ring"] = make_moshi("fast", torch.int8)


@pytest.mark.parametrize("numerics", list(MODELS))
@settings(max_examples=12, deadline=None)
@given(
    schedule=st.lists(
        st.tuples(*[st.sampled_from(["run", "run", "idle", "reset"])] * NUM_SLOTS),
        min_size=3,
        max_size=14,
    )
)
def test_a_session_is_bit_equal_in_any_slot_and_company(
    numerics: str, schedule: list[tuple[str, ...]]
) -> None:
    together = run_schedule(MODELS[numerics], schedule, range(NUM_SLOTS))

    for slot in range(NUM_SLOTS):
        lone = [("idle", row[slot], "idle", "idle") for row in schedule]
        alone = run_schedule(MODELS[numerics], lone, [slot] * NUM_SLOTS)
        assert together[slot] == alone[1], f"slot {slot}"


def run_schedule(
    model: Moshi, schedule: Sequence[tuple[str, ...]], seeds: object
) -> list[list[object]]:
    """Sampled generation; stream and noise of a slot follow from its seed. Logits are compared."""
    seed_of = list(seeds)  # type: ignore[call-overload]
    line = DelayLine(model.spec, torch.device("cpu"))
    state, delays = model.new_state(NUM_SLOTS), line.new_state(NUM_SLOTS)
    temperature = torch.full((NUM_SLOTS,), 0.8)
    top_k = torch.full((NUM_SLOTS,), NUM_DRAWS)
    noise = np.ones((NUM_SLOTS, 5, NUM_DRAWS), dtype=np.float32)
    out: list[list[object]] = [[] for _ in range(NUM_SLOTS)]
    for t, row in enumerate(schedule):
        resets = [i for i, action in enumerate(row) if action == "reset"]
        if resets:
            model.reset(state, resets)
            line.reset(delays, resets)
        for slot in range(NUM_SLOTS):
            fill_exponential(noise[slot], seed=seed_of[slot], step=t)
        user = [[(7 * t + 3 * i + 11 * s + 1) % 32 for i in range(4)] for s in seed_of]
        valid_B = torch.tensor([action == "run" for action in row])
        column_BS = line.push_user(torch.tensor(user), valid_B, delays)
        controls = Controls(temperature, temperature, top_k, top_k, torch.from_numpy(noise))
        step = model.step(column_BS, valid_B, controls, state)
        line.push_generated(step.text_B, step.codes_BK, valid_B, delays)
        for slot in range(NUM_SLOTS):
            if row[slot] == "run":
                logits = step.extra["text_logits_BV"][slot].tolist()
                out[slot].append((step.text_B[slot].item(), step.codes_BK[slot].tolist(), logits))
    return out


def teacher_forced_logits(model: Moshi, num_slots: int = 1, num_steps: int = 30) -> torch.Tensor:
    """Text logits of the given columns, the same in every slot: ``[steps, slots, V]``."""
    state, valid_B = model.new_state(num_slots), torch.ones(num_slots, dtype=torch.bool)
    columns = torch.randint(-1, 32, (num_steps, 1, 9), generator=torch.manual_seed(0))
    return torch.stack(
        [
            model.step(column_BS.repeat(num_slots, 1), valid_B, greedy(num_slots), state).extra[
                "text_logits_BV"
            ]
            for column_BS in columns
        ]
    )


def test_fast_and_reference_forms_agree_on_teacher_forced_logits() -> None:
    reference, fast = (teacher_forced_logits(MODELS[name]) for name in ("reference", "fast"))

    torch.testing.assert_close(fast, reference, rtol=0, atol=2e-5)


@pytest.mark.parametrize("num_slots", [1, 4])
def test_an_int8_ring_changes_logits_by_little(num_slots: int) -> None:
    reference = teacher_forced_logits(MODELS["reference"], num_slots)

    rounded = teacher_forced_logits(MODELS["int8 ring"], num_slots)

    off = torch.dist(rounded, reference) / torch.linalg.vector_norm(reference)
    assert 0 < off < 0.01


def greedy(num_slots: int) -> Controls:
    zeros, counts = torch.zeros(num_slots), torch.zeros(num_slots, dtype=torch.int64)
    return Controls(zeros, zeros, counts, counts)


def test_a_row_that_is_not_finite_is_named_and_harms_no_other() -> None:
    model = MODELS["reference"]
    clean, poisoned = model.new_state(4), model.new_state(4)
    valid_B = torch.ones(4, dtype=torch.bool)
    column_BS = torch.full((4, 9), 5)
    for state in (clean, poisoned):
        model.step(column_BS, valid_B, greedy(4), state)
    poisoned.temporal.rings[0].values_BHLE[2] = torch.nan

    good = model.step(column_BS, valid_B, greedy(4), clean)
    bad = model.step(column_BS, valid_B, greedy(4), poisoned)

    assert bad.finite_B.tolist() == [True, True, False, True]
    others = [0, 1, 3]
    key = "text_logits_BV"
    assert torch.equal(bad.extra[key][others], good.extra[key][others])
    model.reset(poisoned, [2])
    assert model.step(column_BS, valid_B, greedy(4), poisoned).finite_B.all()


def test_forced_text_reaches_the_depth_transformer() -> None:
    model = MODELS["reference"]
    valid_B = torch.ones(1, dtype=torch.bool)
    column_BS = torch.full((1, 9), 5)
    free = model.step(column_BS, valid_B, greedy(1), model.new_state(1))
    controls = greedy(1)
    controls.forced_text_B = torch.tensor([(free.text_B.item() + 1) % 48])

    forced = model.step(column_BS, valid_B, controls, model.new_state(1))

    assert forced.text_B.tolist() == controls.forced_text_B.tolist()
    assert forced.codes_BK.tolist() != free.codes_BK.tolist()


def test_missing_and_unknown_conditions_are_refused() -> None:
    model = Moshi(LMSpec.from_config(CONDITIONED_LM))
    fill_golden(model)
    state = model.new_state(1)

    with pytest.raises(ConfigError, match=r"set conditions\.description=VALUE"):
        model.reset(state, [0])
    with pytest.raises(ConfigError, match="did you mean 'very_good'"):
        model.reset(state, [0], {"description": "verygood"})
    with pytest.raises(ConfigError, match="takes no conditions"):
        MODELS["fast"].reset(MODELS["fast"].new_state(1), [0], {"description": "good"})


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]]).expand(20_000, -1)
    noise = np.empty((20_000, 3), dtype=np.float32)
    fill_exponential(noise, seed=1, step=0)
    ones = torch.ones(20_000)

    token = sample(logits, ones, ones.long() * 3, torch.from_numpy(noise))

    expected = torch.softmax(torch.tensor([2.0, 1.0, 0.0]), -1)
    observed = torch.bincount(token, minlength=4)[:3] / 20_000
    torch.testing.assert_close(observed, expected, rtol=0, atol=0.015)
    assert (token < 3).all()


def test_each_slot_keeps_its_own_temperature_and_top_k() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9, 2.8]]).repeat(3, 1)
    noise = torch.tensor([[9.0, 0.1, 1.0, 1.0]]).repeat(3, 1)  # the second candidate wins

    token = sample(logits, torch.tensor([0.0, 1.0, 1.0]), torch.tensor([4, 4, 1]), noise)

    assert token.tolist() == [1, 2, 1]


def test_recent_tokens_become_less_likely_whatever_their_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])

    out = penalize_recent(logits, torch.tensor([[0, 1, -2]]), torch.tensor([2.0]))

    assert out.tolist() == [[1.0, -4.0, 1.0]]


def test_a_wrong_delay_count_says_how_many_are_wanted() -> None:
    with pytest.raises(CheckpointError, match="9: the text stream and n_q=8 codebooks"):
        LMSpec.from_config(BASE_LM | {"delays": [0, 1]})


def test_unknown_config_keys_are_named_with_the_closest_one() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'num_heads'"):
        LMSpec.from_config(BASE_LM | {"num_head": 4})
