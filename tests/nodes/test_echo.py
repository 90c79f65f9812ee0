"""How much of the speaker the echo filters take out, and what they leave of the person."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from support.audio import babble

from moshi_pipe.errors import BackendError
from moshi_pipe.nodes.echo import Canceller, Ducker, EchoFilter, PlayedAudio, make_filter

RATE = 24_000
BLOCK = RATE // 50


def through(echo: EchoFilter, heard_N: np.ndarray, played_N: np.ndarray) -> np.ndarray:
    whole = heard_N.size // BLOCK * BLOCK
    parts = [
        echo.process(heard_N[i : i + BLOCK], played_N[i : i + BLOCK])
        for i in range(0, whole, BLOCK)
    ]
    return np.concatenate(parts)


def loop(played_N: np.ndarray, delay_ms: int) -> np.ndarray:
    """A room: the speaker comes back later and weaker, by two paths."""
    room_N = np.zeros_like(played_N)
    for extra_ms, gain in ((0, 0.5), (17, 0.15)):
        delay = (delay_ms + extra_ms) * RATE // 1000
        room_N[delay:] += gain * played_N[:-delay]
    return room_N


def reduction_db(before_N: np.ndarray, after_N: np.ndarray) -> float:
    half = after_N.size // 2
    before, after = np.square(before_N[half : after_N.size]), np.square(after_N[half:])
    return float(10 * np.log10(before.mean() / max(float(after.mean()), 1e-12)))


@pytest.mark.parametrize("delay_ms", [40, 120, 250])
def test_the_canceller_takes_out_an_echo_of_any_delay(delay_ms: int) -> None:
    pytest.importorskip("pywebrtc_audio")
    played_N = babble(8.0, seed=3)
    heard_N = loop(played_N, delay_ms)

    clean_N = through(Canceller(RATE), heard_N, played_N)

    assert reduction_db(heard_N, clean_N) > 30


def test_the_canceller_leaves_the_person() -> None:
    pytest.importorskip("pywebrtc_audio")
    played_N = babble(8.0, seed=3)
    played_N[4 * RATE :] = 0
    person_N = babble(8.0, seed=11)
    person_N[: 4 * RATE] = 0
    heard_N = loop(played_N, 120) + person_N

    clean_N = through(Canceller(RATE), heard_N, played_N)

    last = slice(5 * RATE, 7 * RATE)
    kept = np.square(clean_N[last]).mean() / np.square(person_N[last]).mean()
    assert 10 * np.log10(kept) > -3


def test_ducking_turns_down_while_the_speaker_plays_and_a_little_longer() -> None:
    played_N = np.zeros(2 * RATE, np.float32)
    played_N[RATE // 2 : RATE] = 0.3
    heard_N = np.full(2 * RATE, 0.5, np.float32)

    out_N = through(Ducker(RATE), heard_N, played_N)

    assert out_N[: RATE // 2].min() == 0.5
    assert out_N[RATE // 2 + BLOCK : RATE + RATE // 5].max() == pytest.approx(0.015)
    assert out_N[-BLOCK:].max() == 0.5
    assert np.abs(np.diff(out_N)).max() < 0.002  # ramps, no clicks


def test_off_changes_nothing() -> None:
    heard_N = babble(0.1)

    assert np.array_equal(make_filter("off", RATE).process(heard_N, heard_N), heard_N)


def test_a_missing_canceller_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pywebrtc_audio", None)

    with pytest.raises(BackendError) as error:
        make_filter("cancel", RATE)

    assert "moshi-pipe[echo]" in str(error.value)
    assert "source.echo=duck" in str(error.value)


def test_played_audio_comes_back_in_order_and_is_bounded() -> None:
    played = PlayedAudio(RATE)
    played.put(np.arange(100, dtype=np.float32))

    assert played.take(60).tolist() == list(range(60))
    assert played.take(60).tolist() == [*range(60, 100), *[0] * 20]

    played.put(np.arange(RATE, dtype=np.float32))
    assert played.take(1)[0] == RATE // 2  # half a second is kept, the newest
