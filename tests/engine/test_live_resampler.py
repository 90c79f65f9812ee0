"""The live resampler against soxr's best, its delay, and its change of ratio."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_pipe.engine.live_resampler import LiveResampler


def band_limited(rate: int, seconds: float, lowest: int) -> np.ndarray:
    noise = np.random.default_rng(rate).standard_normal(round(rate * seconds))
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(noise.size, 1 / rate) > 0.4 * lowest] = 0
    return np.fft.irfft(spectrum, noise.size).astype(np.float32)


@pytest.mark.parametrize("correction", [0.0, 3e-4, -2e-3])
@pytest.mark.parametrize(
    ("rate_in", "rate_out"),
    [(48_000, 24_000), (44_100, 24_000), (16_000, 24_000), (24_000, 24_000), (24_000, 44_100)],
)
def test_it_equals_an_offline_resampler(rate_in: int, rate_out: int, correction: float) -> None:
    given_N = band_limited(rate_in, 1.0, min(rate_in, rate_out))
    resampler = LiveResampler(rate_in, rate_out)
    resampler.correct(correction)

    got_N = resampler.push(given_N)

    best_N = soxr.resample(given_N, rate_in * (1 + correction), rate_out, quality="VHQ")
    middle = slice(1000, got_N.size - 1000)
    error = np.square(got_N[middle] - best_N[middle]).mean()
    assert 10 * np.log10(np.square(best_N[middle]).mean() / error) > 55
    missing = (best_N.size - got_N.size) / rate_out
    assert abs(missing - resampler.delay_s) < 2 / rate_out
    assert resampler.delay_s < 0.0011


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=20), st.sampled_from([16_000, 44_100]))
def test_any_chunking_gives_the_same(chunks: list[int], rate: int) -> None:
    given_N = band_limited(rate, 0.3, rate)[: sum(chunks)]
    whole = LiveResampler(rate, 24_000)
    pieces = LiveResampler(rate, 24_000)
    ends = np.cumsum(chunks)

    want_N = whole.push(given_N)
    got_N = np.concatenate(
        [pieces.push(given_N[end - n : end]) for n, end in zip(chunks, ends, strict=True)]
    )

    assert abs(got_N.size - want_N.size) <= 1  # a position may fall on either side of a sample
    size = min(got_N.size, want_N.size)
    np.testing.assert_allclose(got_N[:size], want_N[:size], atol=2e-4)


def test_a_change_of_ratio_is_no_click() -> None:
    resampler = LiveResampler(24_000, 24_000)
    time_N = np.arange(48_000) / 24_000
    tone_N = np.sin(2 * np.pi * 440 * time_N).astype(np.float32)
    made = []
    for i in range(25):
        resampler.correct(0.005 if i % 2 else -0.005)
        made.append(resampler.push(tone_N[i * 1920 : (i + 1) * 1920]))

    steps_N = np.abs(np.diff(np.concatenate(made)[50:]))

    assert steps_N.max() < 1.01 * 2 * np.pi * 440 * 1.005 / 24_000


def test_nothing_in_gives_nothing_out() -> None:
    assert LiveResampler(48_000, 24_000).push(np.zeros(0, np.float32)).size == 0
