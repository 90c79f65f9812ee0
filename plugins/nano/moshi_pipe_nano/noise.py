"""What microphones add: coloured noise, and levels.

Shape letters: B recording, N sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from moshi_pipe_nano.espeak import SAMPLE_RATE

if TYPE_CHECKING:
    from torch import Tensor

_BEDS: Final = 8
_BED_S: Final = 20
NOISE_DB: Final = (-75.0, -42.0)
"""Level of the noise, rms relative to full scale; speech is near -20 dB before its gain."""

GAIN_DB: Final = (-10.0, 4.0)
_QUIET_SHARE: Final = 0.2


class NoiseBeds:
    """Recordings of noise with spectra from white to ``1 / f``, rms 1.

    Args:
        seed: Of the noise.
        device: Where it is kept.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        rng = np.random.default_rng(seed)
        size = _BED_S * SAMPLE_RATE
        frequency = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
        beds = []
        for i in range(_BEDS):
            slope = i / (_BEDS - 1)
            spectrum = np.fft.rfft(rng.standard_normal(size)) / np.maximum(frequency, 40) ** slope
            bed = np.fft.irfft(spectrum, size)
            beds.append((bed / bed.std()).astype(np.float32))
        self._beds = torch.from_numpy(np.stack(beds)).to(device)

    def draw(self, count: int, num_samples: int, rng: np.random.Generator) -> Tensor:
        """Noise ``[B, N]`` at random levels; exact silence in a fifth of the cases."""
        device, size = self._beds.device, self._beds.shape[1]
        level = 10 ** (rng.uniform(*NOISE_DB, count) / 20) * (rng.random(count) >= _QUIET_SHARE)
        which = rng.integers(_BEDS, size=count) * size
        start = torch.from_numpy(rng.integers(size, size=count)).to(device)
        index = (start[:, None] + torch.arange(num_samples, device=device)) % size
        index += torch.from_numpy(which).to(device)[:, None]
        levels = torch.from_numpy(level.astype(np.float32)).to(device)
        return self._beds.view(-1)[index] * levels[:, None]


def draw_gain(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Gains of speakers, as factors."""
    gains = 10 ** (rng.uniform(*GAIN_DB, count) / 20)
    return gains.astype(np.float32)
