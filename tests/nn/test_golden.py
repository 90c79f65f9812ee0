"""Numbers recorded from the reference package, reproduced without it.

Recorded with kyutai-labs/moshi 0.2.13 and torch 2.13 on a CPU from the weights of
``support.golden``; one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.golden import (
    BASE_LM,
    CONDITIONED_LM,
    DELAYED_LM,
    STT_LM,
    TINY_MIMI,
    fill_golden,
    golden_audio,
    golden_user_codes,
)

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.models.protocols import Controls
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi

if TYPE_CHECKING:
    from collections.abc import Callable

ONE = torch.ones(1, dtype=torch.bool)

OFFLINE_CODES = """
6 6 6 16 16 22 22 22 2 16 22 22 22 22 22 16
11 11 11 11 13 2 2 11 11 16 13 2 12 11 16 16
1 1 18 1 1 1 18 18 18 11 11 18 1 18 18 11
18 18 18 21 21 21 18 18 11 11 11 23 21 18 21 11
15 12 14 12 12 15 14 14 19 14 19 12 13 14 12 15
18 20 9 18 9 6 9 9 4 9 4 10 9 9 20 23
"""
STREAMED_CODES = """
6 6 6 16 16 22 22 6 2 16 22 22 22 22 22 16
11 11 11 11 13 2 2 11 11 11 13 2 12 11 16 16
1 1 18 1 1 1 18 18 18 1 11 18 1 18 18 11
18 18 18 21 21 21 18 18 11 21 11 23 21 18 21 11
15 12 14 12 12 15 14 14 19 12 19 12 13 14 12 15
18 20 9 18 9 6 9 9 4 18 4 10 9 20 20 23
"""
BASE_FRAMES = """
None | 43 16 22 3 26 | 43 16 30 4 22 | 43 10 7 3 9 | 11 29 4 3 16 | 43 19 22 29 26
| 33 29 22 4 9 | 17 16 3 13 28 | 40 19 6 14 1 | 2 11 12 19 16 | 5 30 24 31 0 | 35 11 19 25 29
| 37 8 2 8 31 | 17 19 6 8 14 | 29 19 12 13 20 | 14 7 3 8 17 | 26 30 18 8 3 | 14 9 22 6 26
| 5 19 29 0 6 | 38 16 17 13 3 | 22 30 28 17 16 | 26 3 25 15 3 | 40 13 26 4 0 | 44 7 19 30 14
"""
DELAYED_FRAMES = """
None | None | 43 0 16 25 10 | 43 16 31 3 10 | 43 8 22 4 6 | 43 3 7 4 13 | 7 21 0 25 25
| 43 27 6 8 16 | 27 8 0 31 18 | 25 2 29 20 5 | 5 11 20 31 1 | 30 9 20 28 18 | 15 5 31 20 31
| 15 19 20 8 3 | 37 8 1 15 0 | 14 22 7 12 17 | 39 3 5 4 28 | 6 7 14 8 14 | 18 21 23 24 26
| 11 3 16 11 31 | 15 16 29 17 12 | 36 9 6 8 12 | 13 24 9 6 12 | 6 4 7 4 28
"""
GUIDED_FRAMES = """
None | 43 8 16 6 13 | 46 3 31 2 16 | 18 23 22 30 13 | 46 9 4 25 26 | 43 21 27 9 9
| 12 22 22 9 18 | 46 3 15 4 0 | 46 9 16 3 4 | 46 9 31 12 16 | 43 23 4 28 18 | 43 6 16 30 11
| 46 21 31 9 5 | 43 16 16 11 25 | 46 21 12 25 4 | 18 21 9 6 9
"""
SAMPLED_FRAMES = """
None | 43 16 19 9 26 | 43 23 4 2 16 | 20 27 18 2 4 | 14 9 2 5 22 | 43 0 31 11 29
| 0 3 9 22 12 | 12 10 28 14 1 | 42 3 6 22 16 | 20 9 29 13 2 | 2 1 20 24 31 | 17 29 19 8 15
"""


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    model = Mimi(MimiSpec.from_config(TINY_MIMI))
    fill_golden(model)
    model.prepare()
    return model


def test_offline_latents_and_codes_are_the_recorded_ones(mimi: Mimi) -> None:
    latent_BTD = mimi.latent(golden_audio(), ONE, mimi.new_encoder_state(1, 16))
    codes_BKT = mimi.encode(golden_audio(), ONE, mimi.new_encoder_state(1, 16))

    assert latent_BTD.mean().item() == pytest.approx(0.041774, abs=2e-6)
    assert latent_BTD.square().mean().sqrt().item() == pytest.approx(0.54669, abs=1e-5)
    assert latent_BTD[0, :6, 0].tolist() == pytest.approx(
        [0.09663, 0.04917, 0.09531, 0.19718, 0.55774, 0.57761], abs=1e-5
    )
    assert latent_BTD[0, -3:, -1].tolist() == pytest.approx([0.42674, 0.31154, 0.00489], abs=1e-5)
    assert codes_BKT[0].tolist() == _table(OFFLINE_CODES)


def test_streamed_codes_show_the_recorded_window_effect(mimi: Mimi) -> None:
    codes_BKT = _stream_codes(mimi)

    assert codes_BKT[0].tolist() == _table(STREAMED_CODES)


def test_decoded_waveforms_are_the_recorded_ones(mimi: Mimi) -> None:
    offline = mimi.decode(
        torch.tensor(_table(OFFLINE_CODES))[None], ONE, mimi.new_decoder_state(1, 16)
    )
    state = mimi.new_decoder_state(1)
    streamed_codes = torch.tensor(_table(STREAMED_CODES))[None]
    streamed = torch.cat([mimi.decode(c, ONE, state) for c in streamed_codes.unbind(-1)], -1)

    assert offline.mean().item() == pytest.approx(-0.072493, abs=2e-6)
    assert offline[0, 0, :6].tolist() == pytest.approx(
        [-0.02333, -0.07176, -0.04019, -0.02785, -0.00413, -0.0893], abs=1e-5
    )
    assert offline[0, 0, -3:].tolist() == pytest.approx([-0.00259, -0.1485, 0.07511], abs=1e-5)
    assert streamed.square().mean().sqrt().item() == pytest.approx(0.218653, abs=2e-6)
    assert streamed[0, 0, -3:].tolist() == pytest.approx([-0.00955, -0.09241, 0.0403], abs=1e-5)


@pytest.mark.parametrize(
    ("numerics", "dtype", "first", "last"),
    [
        (
            numerics,
            dtype,
            first,
            last,
        )
        for numerics in ("reference", "fast")
        for dtype, first, last in (
            (
                torch.float32,
                [0.0961, -0.5938, 0.94, 0.364, 0.8478, 0.5753],
                [0.4581, 0.3234, -0.407, -0.466, 1.062, -1.9413],
            ),
            (
                torch.bfloat16,
                [0.0806, -0.5898, 0.9336, 0.3652, 0.8594, 0.5625],
                [0.457, 0.3281, -0.4023, -0.4688, 1.0781, -1.9453],
            ),
        )
    ],
)
def test_dialogue_model_speaks_the_recorded_tokens(
    numerics: str, dtype: torch.dtype, first: list[float], last: list[float]
) -> None:
    frames, logits, _ = _generate(BASE_LM, 24, dtype=dtype, numerics=numerics)

    assert frames == _frames(BASE_FRAMES)
    # the fast form may round a bfloat16 sum differently: one unit in the last place is 2^-8
    tolerance = 1e-4 if dtype == torch.float32 or numerics == "reference" else 8e-3
    assert logits[0] == pytest.approx(first, abs=tolerance)
    assert logits[-1] == pytest.approx(last, abs=tolerance)


def test_schedules_low_rank_tables_and_longer_delays_give_the_recorded_tokens() -> None:
    frames, logits, _ = _generate(DELAYED_LM, 24)

    assert frames == _frames(DELAYED_FRAMES)
    assert logits[-1] == pytest.approx([-0.2679, -0.31, -0.3155, 0.7086, 0.4245, -0.685], abs=1e-4)


def test_guidance_and_conditions_give_the_recorded_tokens() -> None:
    conditions = {"description": "very_good", "description!": "very_bad"}

    frames, logits, _ = _generate(CONDITIONED_LM, 16, conditions=conditions, guidance=3.0)

    assert frames == _frames(GUIDED_FRAMES)
    assert logits[0] == pytest.approx([0.007, 1.014, 0.7628, 0.0478, 0.7432, 1.0291], abs=1e-4)
    assert logits[-1] == pytest.approx(
        [0.3034, -1.3938, 0.2289, -1.2987, -0.4658, 1.2466], abs=1e-4
    )


def test_speech_to_text_writes_the_recorded_tokens_and_turn_heads() -> None:
    frames, _, extra = _generate(STT_LM, 12)

    assert [frame[0] for frame in frames if frame] == [43, 20, 0, 2, 9, 4, 24, 4, 28, 28, 2, 38]
    assert extra["extra_heads"][0][0].tolist() == pytest.approx(
        [0.02141, 0.16514, 0.13408, 0.21097, 0.16838, 0.30002], abs=1e-5
    )


@pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="draws are those of torch 2.13"
)
def test_sampling_with_the_recorded_draws_gives_the_recorded_tokens() -> None:
    draws = torch.Generator().manual_seed(1234)

    def sampling() -> Controls:
        noise = torch.ones(1, 5, 10)
        for row, top_k in enumerate([5, 10, 10, 10, 10]):
            noise[0, row, :top_k].exponential_(1, generator=draws)
        return Controls(
            torch.tensor([0.8]),
            torch.tensor([0.7]),
            torch.tensor([10]),
            torch.tensor([5]),
            noise_BKR=noise,
        )

    frames, _, _ = _generate(BASE_LM, 12, sampling=sampling)

    assert frames == _frames(SAMPLED_FRAMES)


def _stream_codes(mimi: Mimi) -> torch.Tensor:
    state = mimi.new_encoder_state(1)
    frames = golden_audio().split(mimi.spec.frame_size, dim=-1)
    return torch.stack([mimi.encode(frame, ONE, state) for frame in frames], -1)


def _generate(
    config: dict[str, Any],
    num_steps: int,
    *,
    dtype: torch.dtype = torch.float32,
    numerics: str = "reference",
    conditions: dict[str, str] | None = None,
    guidance: float | None = None,
    sampling: Callable[[], Controls] | None = None,
) -> tuple[list[list[int] | None], list[list[float]], dict[str, Any]]:
    """Generation by hand, greedy unless ``sampling`` says how: delay line, model, delay line."""
    spec = LMSpec.from_config(config)
    model = Moshi(spec, numerics=numerics)
    fill_golden(model)
    model.to(dtype)
    if model.condition_provider is not None:
        model.condition_provider.float()
    line = DelayLine(spec, torch.device("cpu"))
    state, delays = model.new_state(1, 2 if guidance else 1), line.new_state(1)
    model.reset(state, [0], conditions)
    zeros, counts = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    weight = torch.tensor([guidance]) if guidance else None
    controls = Controls(zeros, zeros, counts, counts, guidance_B=weight)
    frames: list[list[int] | None] = []
    logits: list[list[float]] = []
    extra: dict[str, Any] = {}
    for i in range(num_steps):
        column_BS = line.push_user(golden_user_codes(i, spec.num_user), ONE, delays)
        step = model.step(column_BS, ONE, sampling() if sampling else controls, state)
        text_B, codes_BK = line.push_generated(step.text_B, step.codes_BK, ONE, delays)
        complete = i >= spec.max_delay
        frames.append([*text_B.tolist(), *codes_BK[0].tolist()] if complete else None)
        logits.append(step.extra["text_logits_BV"][0, :6].tolist())
        extra = step.extra
    return frames, logits, extra


def _table(text: str) -> list[list[int]]:
    return [[int(n) for n in line.split()] for line in text.strip().splitlines()]


def _frames(text: str) -> list[list[int] | None]:
    cells = (cell.strip() for cell in text.replace("\n", " ").split("|"))
    return [None if cell == "None" else [int(n) for n in cell.split()] for cell in cells]
