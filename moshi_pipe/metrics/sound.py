"""How near one recording is to another: what a codec loses.

Shape letters: N PCM sample, F frequency bin, M mel band, T spectral frame.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    Samples = npt.NDArray[np.floating[Any]]

_WINDOW_S: Final = 2048 / 44_100  # as audiotools, at any rate
_NUM_MELS: Final = 80
_FLOOR: Final = 1e-5
_PESQ_RATE: Final = 16_000


def si_sdr_db(estimate_N: Samples, target_N: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, means taken out first.

    Source: Le Roux et al. 2019, SDR: half-baked or well done? (arXiv:1811.02508).

    Returns:
        NaN where either is silent; infinite for equal signals.
    """
    estimate = estimate_N.astype(np.float64) - np.mean(estimate_N, dtype=np.float64)
    target = target_N.astype(np.float64) - np.mean(target_N, dtype=np.float64)
    power = float(target @ target)
    if power == 0 or not estimate.any():
        return math.nan
    kept = (float(estimate @ target) / power) * target
    lost = estimate - kept
    noise = float(lost @ lost)
    if noise <= np.finfo(np.float64).eps * float(kept @ kept):
        return math.inf
    return 10 * math.log10(float(kept @ kept) / noise) if kept.any() else -math.inf


def log_mel_distance_db(estimate_N: Samples, target_N: Samples, sample_rate: int) -> float:
    """Mean absolute difference of two log-mel spectra in dB.

    80 bands of the magnitude, windows of 46 ms that overlap by three quarters, nothing below
    -100 dB. One bel more or less in each band is 20 dB, so this is 20 times the mel distance of
    the source, for one window length.

    Source: Kumar et al. 2023 (arXiv:2306.06546), objective metrics: mel distance.
    """
    one_MT = log_mel_db(estimate_N, sample_rate)
    other_MT = log_mel_db(target_N, sample_rate)
    return float(np.mean(np.abs(one_MT - other_MT)))


def log_mel_db(
    samples_N: Samples, sample_rate: int, num_mels: int = _NUM_MELS
) -> npt.NDArray[np.float64]:
    """Log-mel magnitudes in dB, ``[M, T]``; the audio is continued by its mirror at both ends."""
    size = _window_size(sample_rate)
    hop = size // 4
    padded_N = np.pad(samples_N.astype(np.float64), size // 2, mode="reflect")
    frames_TN = np.lib.stride_tricks.sliding_window_view(padded_N, size)[::hop]
    window_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    bank_MF = mel_bank(sample_rate, size, num_mels)
    mel_TM = np.abs(np.fft.rfft(frames_TN * window_N, axis=1)) @ bank_MF.T
    decibels: npt.NDArray[np.float64] = 20 * np.log10(np.maximum(mel_TM.T, _FLOOR))
    return decibels


def mel_bank(sample_rate: int, size: int, num_mels: int) -> npt.NDArray[np.float64]:
    """Triangles of equal area between 0 Hz and half the sample rate, ``[M, F]``.

    Source: Slaney 1998, Auditory Toolbox (Interval technical report 1998-010), mfcc: linear up to
    1 kHz, logarithmic above.
    """
    corners = _mel_to_hz(np.linspace(0, _hz_to_mel(sample_rate / 2), num_mels + 2))
    bins_F = np.fft.rfftfreq(size, 1 / sample_rate)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising_MF = (bins_F - low) / (middle - low)
    falling_MF = (high - bins_F) / (high - middle)
    bank_MF: npt.NDArray[np.float64] = np.maximum(0, np.minimum(rising_MF, falling_MF))
    return bank_MF * 2 / (high - low)


def stoi(estimate_N: Samples, target_N: Samples, sample_rate: int) -> float | None:
    """Short-time objective intelligibility, about 0 to 1; None without the package pystoi.

    Source: Taal et al. 2011, An Algorithm for Intelligibility Prediction of Time-Frequency
    Weighted Noisy Speech, IEEE TASLP 19(7); computed by pystoi.
    """
    if find_spec("pystoi") is None:
        return None
    import warnings

    from pystoi import stoi as compute

    with warnings.catch_warnings():
        # It warns, and returns 1e-5, where too little speech is left.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(compute(target_N, estimate_N, sample_rate))
        except RuntimeWarning:
            return math.nan


def pesq(estimate_N: Samples, target_N: Samples, sample_rate: int) -> float | None:
    """Wide-band perceptual evaluation of speech quality, 1 to 4.64; None without the package pesq.

    Source: ITU-T P.862.2 (2007), computed by pesq at 16 kHz.
    """
    if find_spec("pesq") is None:
        return None
    import soxr
    from pesq import PesqError
    from pesq import pesq as compute

    estimate_N, target_N = (
        soxr.resample(samples_N, sample_rate, _PESQ_RATE) for samples_N in (estimate_N, target_N)
    )
    try:
        return float(compute(_PESQ_RATE, target_N, estimate_N, "wb"))
    except PesqError:  # too short, or no speech in it
        return math.nan


def _window_size(sample_rate: int) -> int:
    """The power of two that is nearest to 46 ms."""
    return int(2 ** round(math.log2(_WINDOW_S * sample_rate)))


def _hz_to_mel(hz: float) -> float:
    if hz < 1000:
        return 3 * hz / 200
    return 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _mel_to_hz(mels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    above = 1000 * np.exp(math.log(6.4) / 27 * (mels - 15))
    hz: npt.NDArray[np.float64] = np.where(mels < 15, 200 * mels / 3, above)
    return hz
