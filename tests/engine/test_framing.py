"""From chunks to frames: any chunking gives the same frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.audio import babble

from moshi_pipe.engine.framing import Reframer
from moshi_pipe.errors import InputError

FRAME = 1920


def frames_of(
    pcm_CN: npt.NDArray[np.float32],
    rate: int,
    cuts: list[int],
    *,
    lead_s: float = 0.0,
    tail_s: float = 0.0,
) -> npt.NDArray[np.float32]:
    reframer = Reframer(rate, 24_000, FRAME, lead_s=lead_s, tail_s=tail_s)
    frames = []
    for chunk_CN in np.split(pcm_CN, sorted(cuts), axis=1):
        frames += [frame.copy() for frame in reframer.push(chunk_CN)]
    frames += [frame.copy() for frame in reframer.finish()]
    return np.concatenate(frames, axis=1)[0] if frames else np.zeros(0, np.float32)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([8000, 16_000, 22_050, 24_000, 44_100, 48_000]) | st.integers(4000, 96_000),
    st.lists(st.floats(0, 1), max_size=12),
    st.sampled_from([1, 2]),
    st.sampled_from([0.0, 0.01, 0.1]),
)
def test_any_chunking_gives_the_same_frames(
    rate: int, places: list[float], channels: int, silence_s: float
) -> None:
    pcm_CN = np.stack([babble(0.7, seed, rate) for seed in range(channels)])
    cuts = [round(place * pcm_CN.shape[1]) for place in places]
    silence = {"lead_s": silence_s, "tail_s": 2 * silence_s}

    assert np.array_equal(
        frames_of(pcm_CN, rate, cuts, **silence), frames_of(pcm_CN, rate, [], **silence)
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5000), max_size=6), st.integers(0, 4000), st.integers(0, 4000))
def test_without_resampling_every_sample_arrives_where_it_belongs(
    sizes: list[int], lead: int, tail: int
) -> None:
    pcm = np.arange(1, sum(sizes) + 1, dtype=np.float32)
    silence = {"lead_s": lead / 24_000, "tail_s": tail / 24_000}

    out = frames_of(pcm[None], 24_000, list(np.cumsum(sizes)), **silence)

    num_frames = -(-(lead + pcm.size + tail) // FRAME)
    expected = np.zeros(num_frames * FRAME, np.float32)
    expected[lead : lead + pcm.size] = pcm
    assert np.array_equal(out, expected)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([8000, 11_025, 16_000, 22_050, 44_100, 48_000]), st.integers(1, 30_000))
def test_resampled_audio_has_the_length_that_its_rate_says(rate: int, size: int) -> None:
    reframer = Reframer(rate, 24_000, 1)
    pcm_CN = np.ones((1, size), np.float32)

    made = sum(1 for _ in reframer.push(pcm_CN)) + sum(1 for _ in reframer.finish())

    assert abs(made - size * 24_000 / rate) <= 0.5


def test_a_chunk_may_be_filled_anew_by_its_giver() -> None:
    pcm = babble(0.4)
    buffer_CN = np.zeros((1, 1000), np.float32)
    reframer = Reframer(24_000, 24_000, FRAME)
    frames = []
    for start in range(0, pcm.size // 1000 * 1000, 1000):
        buffer_CN[0] = pcm[start : start + 1000]
        frames += [frame.copy() for frame in reframer.push(buffer_CN)]
        buffer_CN[:] = 9

    out = np.concatenate(frames, axis=1)[0]
    assert np.array_equal(out, pcm[: out.size])


def test_audio_at_the_right_rate_passes_unchanged_between_silences() -> None:
    pcm = babble(0.5)

    out = frames_of(pcm[None], 24_000, [], lead_s=0.1, tail_s=0.2)

    assert len(out) == FRAME * 10
    assert not out[:2400].any()
    assert np.array_equal(out[2400 : 2400 + pcm.size], pcm)
    assert not out[2400 + pcm.size :].any()


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_resampled_audio_keeps_its_length_and_its_tone(rate: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)

    out = frames_of(tone[None], rate, [])

    assert len(out) == FRAME * 13
    assert not out[24_000 + 4 :].any()
    expected = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    np.testing.assert_allclose(out[2000:22_000], expected[2000:22_000], atol=2e-3)


def test_channels_are_mixed_evenly() -> None:
    pcm_CN = np.stack([np.full(FRAME, 0.5), np.full(FRAME, -0.1)]).astype(np.float32)

    assert frames_of(pcm_CN, 24_000, []) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("size", "padding"), [(0, 0), (1, FRAME - 1), (FRAME, 0), (FRAME + 20, 1900)]
)
def test_what_fills_the_last_frame_is_known(size: int, padding: int) -> None:
    reframer = Reframer(24_000, 24_000, FRAME)

    frames = [*reframer.push(np.ones((1, size), np.float32)), *reframer.finish()]

    assert len(frames) * FRAME == size + padding
    assert reframer.padding == padding


def test_nothing_gives_no_frames() -> None:
    assert frames_of(np.zeros((1, 0), np.float32), 24_000, []).size == 0


@pytest.mark.parametrize("rate", [24_000, 44_100])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float, rate: int) -> None:
    pcm = babble(0.1)
    pcm[7] = bad

    with pytest.raises(InputError, match=r"^the audio has samples that are NaN or infinite$"):
        frames_of(pcm[None], rate, [])
