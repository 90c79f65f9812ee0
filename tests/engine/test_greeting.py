"""What a model says before it is spoken to is left out, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moshi_pipe.engine.greeting import Greeting

PAD, WORD, START = 3, 7, 0


def kept(num_padding: int | None, tokens: list[int | None]) -> tuple[list[int], Greeting]:
    """Frames whose outputs are passed on, and what left the others out."""
    greeting = Greeting(num_padding)
    frames = []
    for frame, token in enumerate(tokens):
        row: dict[str, Any] = {"audio": np.ones(3), "codes": np.ones(2), "user_audio": np.ones(3)}
        if token is not None:
            row["text"] = np.array(token)
        given = greeting.without(dict(row))
        assert "user_audio" in given
        if set(given) == set(row):
            frames.append(frame)
        else:
            assert set(given) == {"user_audio"}
    return frames, greeting


@pytest.mark.parametrize(
    ("tokens", "wanted", "said"),
    [
        ([START, WORD, PAD, WORD, PAD, PAD, PAD, WORD, PAD], [7, 8], 4),
        ([PAD, PAD, PAD, WORD, WORD], [3, 4], 0),
        ([None, None, WORD, PAD, PAD, PAD, WORD], [6], 3),
        ([PAD, PAD, START, PAD, PAD, PAD, WORD], [6], 3),
        ([WORD] * 5, [], 5),
    ],
    ids=["greets", "waits", "begins late", "announces a word", "never ends"],
)
def test_a_greeting_ends_with_padding(
    tokens: list[int | None], wanted: list[int], said: int
) -> None:
    frames, greeting = kept(3, tokens)

    assert frames == wanted
    assert greeting.num_frames == said


def test_nothing_is_left_out_unless_asked() -> None:
    frames, greeting = kept(None, [WORD, PAD, WORD])

    assert frames == [0, 1, 2]
    assert greeting.num_frames == 0
