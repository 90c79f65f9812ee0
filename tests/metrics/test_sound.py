"""Nearness of recordings: by hand, and beside other implementations."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.speech import RATE, needs_espeak, speech, tone

from moshi_pipe.metrics import sound

if TYPE_CHECKING:
    import numpy.typing as npt

NOISE_N = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32) * 0.1


def test_si_sdr_is_the_power_of_signal_to_noise_when_they_share_nothing() -> None:
    target_N = tone(1, (0, 1))
    noise_N = np.roll(target_N, RATE // 300 // 4)  # a quarter of a period: no correlation

    assert sound.si_sdr_db(target_N + 0.1 * noise_N, target_N) == pytest.approx(20, abs=0.01)


def test_si_sdr_does_not_care_for_scale_or_offset() -> None:
    target_N = NOISE_N[:RATE]
    estimate_N = target_N + NOISE_N[RATE:]

    plain = sound.si_sdr_db(estimate_N, target_N)

    assert plain == pytest.approx(0, abs=0.2)
    assert sound.si_sdr_db(3 * estimate_N + 0.5, target_N) == pytest.approx(plain, abs=1e-4)


def test_si_sdr_of_equal_and_of_silent_signals() -> None:
    silence_N = np.zeros(RATE, np.float32)

    assert sound.si_sdr_db(NOISE_N, 2 * NOISE_N) == math.inf
    assert math.isnan(sound.si_sdr_db(NOISE_N[:RATE], silence_N))
    assert math.isnan(sound.si_sdr_db(silence_N, NOISE_N[:RATE]))


def test_si_sdr_is_that_of_torchmetrics() -> None:
    pytest.importorskip("torchmetrics")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio as theirs

    target_N = NOISE_N[:RATE] + tone(1, (0.2, 0.9))
    estimate_N = target_N + 0.3 * NOISE_N[RATE:]

    wanted = theirs(
        torch.from_numpy(estimate_N).double(), torch.from_numpy(target_N).double(), zero_mean=True
    )

    assert sound.si_sdr_db(estimate_N, target_N) == pytest.approx(float(wanted), abs=1e-6)


def test_half_the_amplitude_is_six_decibels_in_every_band() -> None:
    distance = sound.log_mel_distance_db(NOISE_N, 0.5 * NOISE_N, RATE)

    assert distance == pytest.approx(20 * math.log10(2), abs=1e-3)
    assert sound.log_mel_distance_db(NOISE_N, NOISE_N, RATE) == 0


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
def test_the_log_mel_spectrum_is_that_of_librosa(rate: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        librosa = pytest.importorskip("librosa")
        size = {16_000: 1024, 24_000: 1024, 48_000: 2048}[rate]
        mel_MT = librosa.feature.melspectrogram(
            y=NOISE_N.astype(np.float64),
            sr=rate,
            n_fft=size,
            hop_length=size // 4,
            n_mels=80,
            power=1.0,
            pad_mode="reflect",
        )

    ours_MT = sound.log_mel_db(NOISE_N, rate)

    assert ours_MT.shape == mel_MT.shape
    np.testing.assert_allclose(ours_MT, 20 * np.log10(np.maximum(mel_MT, 1e-5)), atol=1e-4)


@needs_espeak
def test_intelligibility_falls_with_noise() -> None:
    pytest.importorskip("pystoi")
    target_N = speech("The quick brown fox jumps over the lazy dog.")
    noise_N = np.resize(NOISE_N, target_N.size)

    clean, noisy = (sound.stoi(target_N + k * noise_N, target_N, RATE) for k in (0.0, 3.0))

    assert clean == pytest.approx(1, abs=1e-3)
    assert noisy is not None
    assert 0 < noisy < 0.7


@needs_espeak
def test_quality_falls_with_noise() -> None:
    pytest.importorskip("pesq")
    target_N = speech("The quick brown fox jumps over the lazy dog.")
    noise_N = np.resize(NOISE_N, target_N.size)

    clean, noisy = (sound.pesq(target_N + k * noise_N, target_N, RATE) for k in (0.0, 0.3))

    assert clean == pytest.approx(4.64, abs=0.02)
    assert noisy is not None
    assert 1 <= noisy < 2.5


@pytest.mark.parametrize(("package", "measure"), [("pystoi", sound.stoi), ("pesq", sound.pesq)])
def test_too_little_speech_has_no_quality(package: str, measure: object) -> None:
    pytest.importorskip(package)
    short_N: npt.NDArray[np.float32] = NOISE_N[:2400]

    assert callable(measure)
    assert math.isnan(measure(short_N, short_N, RATE))


@pytest.mark.parametrize("measure", [sound.stoi, sound.pesq])
def test_without_its_package_a_measure_is_none(
    measure: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moshi_pipe.metrics.sound.find_spec", lambda _: None)

    assert callable(measure)
    assert measure(NOISE_N, NOISE_N, RATE) is None
