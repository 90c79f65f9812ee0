"""Conversations: the same from the same seed, and cut where they are interrupted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from moshi_pipe_nano import domain, words
from moshi_pipe_nano.clips import Assembler, Clips
from moshi_pipe_nano.codec_data import FRAME_SAMPLES, Pool, assistant_lines, user_lines
from moshi_pipe_nano.codes import Codes
from moshi_pipe_nano.conversation import OWN, USER, Plan, Planner, Stage, Turn
from moshi_pipe_nano.decoys import decoys
from moshi_pipe_nano.espeak import Span
from moshi_pipe_nano.options import DataOptions, Options
from moshi_pipe_nano.synthesis import Line, Recording

_FRAMES = 176
_WORD_S = 0.3


def spoken(line: Line) -> Recording:
    """A recording in which every word is a tone of the same length."""
    spans = tuple(
        Span(word, i * _WORD_S, (i + 1) * _WORD_S) for i, word in enumerate(line.text.split())
    )
    size = round(len(spans) * _WORD_S * 24_000)
    tone = (8_000 * np.sin(np.arange(size) / 20)).astype(np.int16)
    return Recording(line, tone, spans, spans)


@pytest.fixture(scope="module")
def pools() -> tuple[Pool, Pool]:
    device = torch.device("cpu")
    own = Pool([spoken(line) for line in assistant_lines(10, seed=0)], ["a"], device)
    user = Pool([spoken(line) for line in user_lines(40, seed=0, salads=False)], ["a"], device)
    return own, user


def test_the_same_seed_gives_the_same_plans_sound_and_labels(pools: tuple[Pool, Pool]) -> None:
    found = []
    for _ in range(2):
        planner, stage = Planner(*pools, _FRAMES), Stage(*pools, _FRAMES, seed=0)
        rng = np.random.default_rng(4)
        plans = [planner.draw(rng) for _ in range(3)]
        found.append((plans, stage.sound(plans, rng), [stage.labels(plan) for plan in plans]))
    (plans, sound, labels), (other_plans, other_sound, other_labels) = found
    assert plans == other_plans
    assert torch.equal(sound, other_sound)
    for one, other in zip(labels, other_labels, strict=True):
        assert np.array_equal(one.text, other.text)
        assert np.array_equal(one.speaking, other.speaking)


def test_answers_are_those_of_the_questions_and_begin_after_them(
    pools: tuple[Pool, Pool],
) -> None:
    own, user = pools
    planner, rng = Planner(own, user, _FRAMES), np.random.default_rng(1)
    seen = 0
    for _ in range(20):
        turns = planner.draw(rng).turns
        for asked, answer in itertools.pairwise(turns):
            if (asked.channel, answer.channel) == (USER, OWN):
                exchange = domain.exchanges()[user.lines[asked.which].exchange]
                assert own.lines[answer.which].text == exchange.answer
                assert answer.start > asked.start + user.lengths[asked.which]
                seen += 1
    assert seen > 10


def test_an_interrupted_answer_is_silent_and_wordless_after_its_end(
    pools: tuple[Pool, Pool],
) -> None:
    own, _ = pools
    which = next(i for i, line in enumerate(own.lines) if len(line.text.split()) >= 5)
    stop = 30 * FRAME_SAMPLES + round(0.75 * 24_000)
    plan = Plan([Turn(OWN, which, 30 * FRAME_SAMPLES, stop=stop)])
    stage = Stage(*pools, _FRAMES, seed=0)
    sound, labels = stage.sound([plan], np.random.default_rng(0)), stage.labels(plan)
    assert float(sound[0, OWN, stop:].abs().max()) == 0.0
    said = words.text_of(labels.text.tolist()).split()
    assert said == own.lines[which].text.split()[:3]
    assert not labels.speaking[stop // FRAME_SAMPLES + 4 :].any()


def test_a_word_is_a_frame_ahead_of_its_sound(pools: tuple[Pool, Pool]) -> None:
    plan = Plan([Turn(OWN, 0, 30 * FRAME_SAMPLES)])
    labels = Stage(*pools, _FRAMES, seed=0).labels(plan)
    at = np.flatnonzero(labels.text >= words.FIRST_WORD)
    assert at[0] == 29
    assert labels.text[28] == words.WORD_START


def test_put_together_conversations_hold_the_codes_of_their_sentences(
    pools: tuple[Pool, Pool],
) -> None:
    own, user = pools
    options = Options(data=DataOptions(num_frames=_FRAMES))
    clips = tuple(_numbered(pool, base) for pool, base in ((own, 1_000), (user, 2_000)))
    still, noise = np.zeros((2, _FRAMES), np.int16), np.ones((3, 2, _FRAMES), np.int16)
    maker = Assembler(own, user, (clips[0], clips[1]), still, noise, options)
    one, again = maker.conversation(7), maker.conversation(7)
    assert np.array_equal(one.own, again.own)
    rows = [maker.conversation(i) for i in range(20)]
    assert any((row.own >= 1_000).any() and (row.user >= 2_000).any() for row in rows)
    for row in rows:
        assert set(np.unique(row.own[row.own < 1_000])) <= {0}
        speaking = np.flatnonzero(row.speaking[:-1])
        assert (row.own[0, speaking] >= 1_000).mean() > 0.8 if len(speaking) else True


def _numbered(pool: Pool, base: int) -> Clips:
    sizes = pool.lengths // FRAME_SAMPLES + 9
    codes = [np.full((2, size), base + i, np.int16) for i, size in enumerate(sizes)]
    return Clips(codes, np.zeros(len(pool), np.int64))


def test_decoys_say_something_else_of_the_same_form_and_are_silent_elsewhere() -> None:
    text = np.full((3, 40), words.PADDING, np.int16)
    own = np.zeros((3, 2, 40), np.int16)
    speaking = np.zeros((3, 40), np.bool_)
    for row, said in enumerate(("one plus two is three", "four plus one is five", "goodbye")):
        for i, word in enumerate(said.split()):
            text[row, 9 + 3 * i] = words.token(word)
        end = 10 + 3 * len(said.split()) + row
        own[row, :, 10:end], speaking[row, 10:end] = 100 + row, True
    trained = np.ones(3, np.bool_)
    found = decoys(Codes(own, own, text, text, speaking, trained), seed=0)
    assert set(np.unique(found[0])) <= {0, 100, 101}
    assert set(np.unique(found[1])) <= {0, 100, 101}
    assert (found[:, :, :10] == 0).all()
