"""Speech for tests: espeak-ng's, and tones where any sound will do."""

from __future__ import annotations

import io
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
import soundfile
import soxr

if TYPE_CHECKING:
    import numpy.typing as npt

RATE: Final = 24_000

needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="espeak-ng makes the speech"
)


@cache
def speech(text: str, rate: int = RATE, voice: str = "en-us") -> npt.NDArray[np.float32]:
    """A sentence, without silence around it, ``[N]``."""
    command = ["espeak-ng", "-v", voice, "--stdout", text]
    said = subprocess.run(command, capture_output=True, check=True).stdout
    pcm_N, own_rate = soundfile.read(io.BytesIO(said), dtype="float32")
    resampled_N: npt.NDArray[np.float32] = soxr.resample(pcm_N, own_rate, rate)
    loud = np.flatnonzero(np.abs(resampled_N) > 0.02)
    return resampled_N[loud[0] : loud[-1]]


def tone(seconds: float, *spans: tuple[float, float], rate: int = RATE) -> npt.NDArray[np.float32]:
    """A tone in the spans, silence elsewhere, ``[N]``."""
    t = np.arange(round(seconds * rate)) / rate
    heard = np.any([(start <= t) & (t < end) for start, end in spans], axis=0) if spans else 0
    return (0.5 * np.sin(2 * np.pi * 300 * t) * heard).astype(np.float32)


def placed(
    seconds: float, *pieces: tuple[float, npt.NDArray[np.float32]], rate: int = RATE
) -> npt.NDArray[np.float32]:
    """Pieces of sound at their times, silence elsewhere, ``[N]``."""
    pcm_N = np.zeros(round(seconds * rate), np.float32)
    for at_s, piece_N in pieces:
        start = round(at_s * rate)
        pcm_N[start : start + piece_N.size] += piece_N[: pcm_N.size - start]
    return pcm_N
