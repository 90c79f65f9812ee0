"""The stages of a dialogue: first-frame policies, end codes, seeds and refusals."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from support.golden import BASE_LM, TINY_MIMI, fill_golden

from moshi_pipe.engine.stages import DecodeStage, EncodeStage, LMStage
from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.node import SessionSettings, Tick, Value
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi

NUM_SLOTS = 4
RATE = Fraction(25, 2)


def make_lm_stage() -> LMStage:
    model = Moshi(LMSpec.from_config(BASE_LM), numerics="reference")
    fill_golden(model)
    stage = LMStage(model, frame_rate=RATE, max_candidates=10)
    stage.open(NUM_SLOTS)
    return stage


def make_codec() -> Mimi:
    model = Mimi(MimiSpec.from_config(TINY_MIMI))
    fill_golden(model)
    model.prepare()
    return model


def tick(*, active: list[int] = [0], end: list[int] = []) -> Tick:  # noqa: B006
    """A tick in which the named slots are active; ``end`` marks those fed end codes."""
    rows = np.arange(NUM_SLOTS)
    return Tick(
        n=NUM_SLOTS,
        active=np.isin(rows, active),
        end_codes=np.isin(rows, end),
    )


def heard(code: int, valid: list[int]) -> dict[str, Value]:
    mask = np.isin(np.arange(NUM_SLOTS), valid)
    return {"user_codes": Value(torch.full((NUM_SLOTS, 4), code), mask)}


def greedy(**options: object) -> SessionSettings:
    return SessionSettings(temperature=0, text_temperature=0, top_k=5, text_top_k=5, **options)  # type: ignore[arg-type]


def run(stage: LMStage, slot: int, settings: SessionSettings, codes: list[int]) -> list[object]:
    """One session's aligned frames; None where a frame is not complete."""
    stage.join(slot, settings)
    frames: list[object] = []
    for code in codes:
        out = stage.step(heard(code, [slot]), tick(active=[slot]))
        text, own = out["text"], out["codes"]
        complete = bool(text.valid[slot])
        frames.append([text.tensor[slot].item(), *own.tensor[slot].tolist()] if complete else None)
    stage.leave(slot)
    return frames


def test_duplicate_gives_a_frame_at_once_and_equals_hearing_the_first_one_twice() -> None:
    stage = make_lm_stage()

    duplicated = run(stage, 0, greedy(first_frame="duplicate"), [3, 9, 4, 7])
    by_hand = run(stage, 1, greedy(first_frame="none"), [3, 3, 9, 4, 7])

    assert duplicated[0] is not None
    assert duplicated == by_hand[1:]


def test_without_duplication_the_first_frame_is_lost_to_the_delay() -> None:
    frames = run(make_lm_stage(), 0, greedy(first_frame="reset"), [3, 9, 4])

    assert [frame is None for frame in frames] == [True, False, False]


def test_what_a_seed_says_depends_on_neither_slot_nor_company() -> None:
    stage = make_lm_stage()
    settings = SessionSettings(seed=5, top_k=10, text_top_k=10)

    first = run(stage, 0, settings, list(range(12)))
    other = run(stage, 3, settings, list(range(12)))
    different = run(stage, 3, SessionSettings(seed=6, top_k=10, text_top_k=10), list(range(12)))

    assert first == other
    assert first != different


def test_end_codes_replace_what_was_heard() -> None:
    stage = make_lm_stage()
    cardinality = 32
    by_hand = run(stage, 0, greedy(), [1, 2, cardinality, 3])

    stage.join(1, greedy())
    frames: list[object] = []
    for code in (1, 2, None, 3):
        ended = code is None
        inputs = heard(code or 0, [] if ended else [1])
        out = stage.step(inputs, tick(active=[1], end=[1] if ended else []))
        frames.append([out["text"].tensor[1].item(), *out["codes"].tensor[1].tolist()])
        assert out["text"].valid[1]

    assert frames == by_hand


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (greedy(first_frame="twice"), "wanted: duplicate, reset, none"),
        (greedy(guidance=2.0), "made without guidance"),
        (SessionSettings(top_k=11, text_top_k=5), "wanted: 1 to 10"),
        (SessionSettings(top_k=0, text_top_k=5), "unlimited"),
    ],
)
def test_settings_that_the_engine_was_not_made_for_are_refused(
    settings: SessionSettings, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_lm_stage().join(0, settings)


def test_reset_policy_forgets_the_first_encoded_frame() -> None:
    codec = make_codec()
    pcm = torch.rand(3, NUM_SLOTS, 1, 32, generator=torch.manual_seed(0)) - 0.5
    pcm[:, 1] = pcm[:, 0]
    stage = EncodeStage(codec)
    stage.open(NUM_SLOTS)
    stage.join(0, greedy(first_frame="reset"))
    valid = np.array([True, False, False, False])

    codes = [
        stage.step({"audio": Value(x, valid)}, tick(active=[0]))["codes"].tensor[0] for x in pcm
    ]

    stage.join(1, greedy(first_frame="none"))
    valid = np.array([False, True, False, False])
    fresh = [
        stage.step({"audio": Value(x, valid)}, tick(active=[1]))["codes"].tensor[1] for x in pcm[1:]
    ]
    assert torch.equal(torch.stack(codes[1:]), torch.stack(fresh))


def test_a_decoder_that_is_not_finite_names_its_slot() -> None:
    codec = make_codec()
    stage = DecodeStage(codec)
    stage.open(NUM_SLOTS)
    for slot in range(NUM_SLOTS):
        stage.join(slot, greedy())
    stage._state.resample[2] = torch.nan
    codes = Value(torch.zeros(NUM_SLOTS, 6, dtype=torch.int64), np.ones(NUM_SLOTS, dtype=bool))

    stage.step({"codes": codes}, tick(active=[0, 1, 2, 3]))

    assert stage.failed() == [2]
