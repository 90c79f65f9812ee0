"""Delays against their definition, written the slow way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import BASE_LM, DELAYED_LM, STT_LM

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.engine.noise import fill_exponential
from moshi_pipe.models.spec import LMSpec

SPECS = {
    name: LMSpec.from_config(config)
    for name, config in {"moshi": BASE_LM, "delay 2": DELAYED_LM, "stt": STT_LM}.items()
}
LONG = 40
PINNED = [0.9304734, 1.3856555, 0.3372811, 0.4118996]


class SlowLine:
    """One session: every stream is a list indexed by time."""

    def __init__(self, spec: LMSpec) -> None:
        self.spec = spec
        self.time = 0
        self.streams: list[dict[int, int]] = [{} for _ in range(spec.num_streams)]

    def step(self, user: list[int], text: int, codes: list[int]) -> tuple[list[int], list[int]]:
        spec, t = self.spec, self.time
        first_user = 1 + spec.num_generated
        for k, code in enumerate(user):
            self.streams[first_user + k][t + spec.delays[first_user + k]] = code
        column = [
            spec.initial_codes[s] if t <= spec.delays[s] else self.streams[s][t]
            for s in range(spec.num_streams)
        ]
        self.time += 1
        for s, value in enumerate([text, *codes]):
            self.streams[s][self.time] = value
        if self.time <= spec.max_delay:
            return column, [-2] * (1 + spec.num_generated)
        aligned = [
            self.streams[s][self.time - spec.max_delay + spec.delays[s]]
            for s in range(1 + spec.num_generated)
        ]
        return column, aligned


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=20, deadline=None)
@given(masks=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=LONG))
def test_delay_line_equals_its_definition(name: str, masks: list[tuple[bool, ...]]) -> None:
    spec = SPECS[name]
    line = DelayLine(spec, torch.device("cpu"))
    state = line.new_state(3)
    slow = [SlowLine(spec) for _ in range(3)]
    rng = np.random.default_rng(0)
    for mask in masks:
        valid_B = torch.tensor(mask)
        user = rng.integers(0, 32, (3, spec.num_user))
        text = rng.integers(0, 48, 3)
        codes = rng.integers(0, 32, (3, spec.num_generated))
        column_BS = line.push_user(torch.from_numpy(user), valid_B, state)
        text_B, codes_BK = line.push_generated(
            torch.from_numpy(text), torch.from_numpy(codes), valid_B, state
        )
        for slot in np.flatnonzero(mask):
            column, aligned = slow[slot].step(
                user[slot].tolist(), int(text[slot]), codes[slot].tolist()
            )
            assert column_BS[slot].tolist() == column
            assert [text_B[slot].item(), *codes_BK[slot].tolist()] == aligned


def test_a_reset_slot_begins_anew_and_the_others_go_on() -> None:
    spec = SPECS["moshi"]
    line = DelayLine(spec, torch.device("cpu"))
    state, both = line.new_state(2), torch.ones(2, dtype=torch.bool)
    for i in range(3):
        line.push_user(torch.full((2, 4), i), both, state)
        line.push_generated(torch.full((2,), i), torch.full((2, 4), i), both, state)

    line.reset(state, [1])
    column_BS = line.push_user(torch.full((2, 4), 9), both, state)

    assert column_BS[0].tolist() == [2, 2, 2, 2, 2, 9, 2, 2, 2]
    assert column_BS[1].tolist() == list(spec.initial_codes)


def test_noise_depends_on_seed_and_step_alone() -> None:
    a, b, c = (np.empty((5, 10), dtype=np.float32) for _ in range(3))

    fill_exponential(a, seed=7, step=3)
    fill_exponential(b, seed=7, step=3)
    fill_exponential(c, seed=7, step=4)

    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_noise_is_the_same_on_every_machine() -> None:
    """Pinned: a change here changes what every seed says."""
    out = np.empty(4, dtype=np.float32)

    fill_exponential(out, seed=1234, step=5)

    assert out.tolist() == pytest.approx(PINNED, rel=1e-6)


def test_noise_is_exponential() -> None:
    out = np.empty(200_000, dtype=np.float32)

    fill_exponential(out, seed=0, step=0)

    assert out.min() > 0
    assert np.isfinite(out).all()
    assert out.mean() == pytest.approx(1, abs=0.01)
    assert out.var() == pytest.approx(1, abs=0.02)
