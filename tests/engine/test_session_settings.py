"""What a session may ask for, and what is said when it asks for something else."""

from __future__ import annotations

from typing import Any

import pytest

from moshi_pipe.engine.session_settings import choose_settings
from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.node import SessionSettings

RUN = SessionSettings(temperature=0.5, top_k=40, conditions={"voice": "low"})


def test_what_is_not_asked_for_is_that_of_the_run() -> None:
    assert choose_settings(RUN, {}, 7) == SessionSettings(
        seed=7, temperature=0.5, top_k=40, conditions={"voice": "low"}
    )
    got = choose_settings(RUN, {"temperature": 0, "text_top_k": 3, "first_frame": "none"}, 7)
    assert (got.temperature, got.text_top_k, got.first_frame, got.top_k) == (0, 3, "none", 40)
    assert RUN.seed == 0, "the run's own stay as they are"


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"temprature": 1}, "'temprature'"),
        ({"seed": 1}, "'seed'"),
        ({"temperature": -0.1}, "0 or more"),
        ({"temperature": float("nan")}, "0 or more"),
        ({"text_temperature": "hot"}, "'hot'"),
        ({"temperature": True}, "True"),
        ({"repetition_penalty": 0}, "above 0"),
        ({"top_k": 2.5}, "whole number"),
        ({"top_k": -1}, "0 or more"),
        ({"max_tail_frames": None}, "whole number"),
        ({"first_frame": "twice"}, "duplicate, reset, none"),
        ({"conditions": ["low"]}, "a value per condition"),
        ({"conditions": {"voice": 3}}, "a value per condition"),
        ({"temperature": "x" * 10_000}, "xxx"),
    ],
)
def test_what_it_cannot_have_is_said(asked: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_settings(RUN, asked, 7)
    assert what in str(caught.value)
    assert len(str(caught.value)) < 400
