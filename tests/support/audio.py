"""Recordings for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import soundfile

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


def babble(seconds: float, seed: int = 0, sample_rate: int = 24_000) -> npt.NDArray[np.float32]:
    """A gliding tone under slow loudness, with some noise: alive, and not speech. ``[N]``."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    phase = 2 * np.pi * (110 + 40 * seed % 90) * (t + 0.05 * np.sin(2 * np.pi * 2.5 * t))
    voice = np.sin(phase) + 0.5 * np.sin(3 * phase) + 0.05 * rng.standard_normal(t.size)
    return (0.2 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))).astype(np.float32)


def write_babble(path: Path, seconds: float, seed: int = 0, sample_rate: int = 24_000) -> Path:
    """Write :func:`babble` as 16-bit audio and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, babble(seconds, seed, sample_rate), sample_rate)
    return path
