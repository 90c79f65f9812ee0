"""The small trained model in the package: it answers, the same way every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moshi_pipe.api import Model, load
from moshi_pipe.models.checkpoint import packaged_folder

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "three_plus_four.wav"
QUESTION_END_S = 2.1  # of the example
LIMIT_MB = 15


@pytest.fixture(scope="module")
def model() -> Model:
    return load("nano")


def answer(model: Model) -> tuple[str, np.ndarray]:
    with model.session(seed=1) as session:
        frames = list(session.run(EXAMPLE))
    sound = [frame.audio[0] for frame in frames if frame.audio is not None]
    return "".join(frame.text for frame in frames).strip(), np.concatenate(sound)


def test_it_answers_in_text_and_in_sound_after_the_question(model: Model) -> None:
    text, sound = answer(model)
    assert text == "three plus four is seven"
    end = round(QUESTION_END_S * model.sample_rate)
    assert np.abs(sound[: end // 2]).max() < 0.05
    assert np.abs(sound[end:]).max() > 0.1


def test_the_same_question_and_seed_give_the_same_bytes(model: Model) -> None:
    (text, sound), (other_text, other_sound) = answer(model), answer(model)
    assert text == other_text
    assert sound.tobytes() == other_sound.tobytes()


def test_its_weights_were_trained_and_are_small(model: Model) -> None:
    assert not any("random" in warning for warning in model.warnings)
    files = packaged_folder("nano").iterdir()
    assert sum(path.stat().st_size for path in files) < LIMIT_MB * 1e6
