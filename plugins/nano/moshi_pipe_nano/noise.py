"""What microphones add: coloured noise, and levels.

Shape letters: B recording, N sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from moshi_pipe_nano.espeak import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy.typing as npt

_BEDS: Final = 8
_BED_S: Final = 20
NOISE_DB: Final = (-75.0, -42.0)
"""Level of the noise, rms relative to full scale; speech is near -20 dB before its gain."""

_GAIN_DB: Final = (-10.0, 4.0)
_QUIET_SHARE: Final = 0.2


class NoiseBeds:
    """Recordings of noise with spectra from white to ``1 / f``, rms 1.

    Args:
        seed: Of the noise.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        size = _BED_S * SAMPLE_RATE
        frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
        beds = []
        for i in range(_BEDS):
            slope = i / (_BEDS - 1)
            spectrum = np.fft.rfft(rng.standard_normal(size)) / np.maximum(frequency, 40) ** slope
            bed = np.fft.irfft(spectrum, size)
            beds.append((bed / bed.std()).astype(np.float32))
        self._beds = beds

    def draw(self, num_samples: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """Noise at a random level, float32 ``[N]``; exact silence in a fifth of the cases."""
        if rng.random() < _QUIET_SHARE:
            return np.zeros(num_samples, np.float32)
        bed = self._beds[rng.integers(len(self._beds))]
        level = np.float32(10 ** (rng.uniform(*NOISE_DB) / 20))
        return np.resize(np.roll(bed, int(rng.integers(len(bed)))), num_samples) * level


def draw_gain(rng: np.random.Generator) -> np.float32:
    """Gain of a speaker, as a factor."""
    return np.float32(10 ** (rng.uniform(*_GAIN_DB) / 20))
