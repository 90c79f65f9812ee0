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
    pcm_CN: npt.NDArray[np.float32], rate: int, cuts: list[int], **silence: float
) -> npt.NDArray[np.float32]:
    reframer = Reframer(rate, 24_000, FRAME, **silence)
    frames = []
    for chunk_CN in np.split(pcm_CN, sorted(cuts), axis=1):
        frames += [frame.copy() for frame in reframer.push(chunk_CN)]
    frames += [frame.copy() for frame in reframer.finish()]
    return np.concatenate(frames, axis=1)[0] if frames else np.zeros(0, np.float32)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([8000, 16_000, 24_000, 44_100, 48_000]),
    st.lists(st.floats(0, 1), max_size=12),
    st.sampled_from([1, 2]),
)
def test_any_chunking_gives_the_same_frames(rate: int, places: list[float], channels: int) -> None:
    pcm_CN = np.stack([babble(0.7, seed, rate) for seed in range(channels)])
    cuts = [round(place * pcm_CN.shape[1]) for place in places]

    assert np.array_equal(frames_of(pcm_CN, rate, cuts), frames_of(pcm_CN, rate, []))


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


def test_nothing_gives_no_frames() -> None:
    assert frames_of(np.zeros((1, 0), np.float32), 24_000, []).size == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    pcm = babble(0.1)
    pcm[7] = bad

    with pytest.raises(InputError, match="NaN or infinite"):
        frames_of(pcm[None], 24_000, [])
