"""A short run of what ``scripts/fuzz.py`` does at length, and that it would find something."""

from __future__ import annotations

import random

import pytest

from scripts import fuzz as script
from scripts.fuzz import TARGETS, fuzz

INPUTS = 4_000


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_a_client_sends_breaks_or_grows_what_reads_it(name: str) -> None:
    verdict = fuzz(name, INPUTS, seed=1, limit_s=60)
    assert verdict.failure is None
    assert verdict.inputs == INPUTS


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_draws_the_same_inputs_again(name: str) -> None:
    make_draw, _ = TARGETS[name]
    first, second = (make_draw(random.Random(3)) for _ in range(2))
    assert [first() for _ in range(50)] == [second() for _ in range(50)]


def test_an_input_that_breaks_something_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(data: bytes) -> None:
        if 7 in data:
            raise KeyError(7)

    make_draw, _ = TARGETS["pcm"]
    monkeypatch.setitem(script.TARGETS, "pcm", (make_draw, lambda: take))
    verdict = fuzz("pcm", 1000)
    assert verdict.failure is not None
    first, _, shown = verdict.failure.partition("\n")
    assert first == f"input {verdict.inputs} of seed 0: KeyError: 7"
    assert 7 in bytes.fromhex(shown)


def test_what_keeps_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []
    make_draw, _ = TARGETS["messages"]
    monkeypatch.setitem(
        script.TARGETS,
        "messages",
        (make_draw, lambda: lambda data: kept.append(data + bytes(1000))),
    )
    verdict = fuzz("messages", 2000)
    assert verdict.failure == "it keeps memory: more than 512 KiB"
