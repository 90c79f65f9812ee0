"""The mu-law of telephones: 14 bits of sound in 8.

Source: ITU-T Recommendation G.711 (11/88), table 2a and 2b. Values are those of the table times
four, so that they fill 16 bits.

Shape letters: N PCM sample.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from moshi_pipe_telephone.messages import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["SAMPLE_RATE", "SILENCE", "decode", "encode"]

SILENCE: Final = 0xFF
"""The code of zero."""

_BIAS: Final = 33 * 4  # makes the segments powers of two
_LARGEST: Final = 8158 * 4 + 3  # the last value below the virtual decision value 8159


def decode(data: bytes) -> npt.NDArray[np.float32]:
    """Turn codes into samples, float32 ``[N]`` in [-1, 1]."""
    samples_N: npt.NDArray[np.float32] = _decoded()[np.frombuffer(data, np.uint8)]
    return samples_N


def encode(samples_N: npt.NDArray[np.float32]) -> bytes:
    """Turn samples, float32 ``[N]``, into codes; those beyond [-1, 1] are clipped."""
    scaled_N = np.clip(np.rint(samples_N * 32768.0), -32768, 32767).astype(np.int32)
    coded: bytes = _encoded()[scaled_N + 32768].tobytes()
    return coded


@lru_cache(maxsize=1)
def _decoded() -> npt.NDArray[np.float32]:
    """Sample per code, ``[256]``."""
    bits = ~np.arange(256) & 0xFF  # sent inverted
    segment, step = bits >> 4 & 7, bits & 15
    size = (((step << 3) + _BIAS) << segment) - _BIAS
    values: npt.NDArray[np.float32] = (np.where(bits & 0x80, -size, size) / 32768).astype(
        np.float32
    )
    return values


@lru_cache(maxsize=1)
def _encoded() -> npt.NDArray[np.uint8]:
    """Code per 16-bit value, from -32768 on, ``[65536]``."""
    values = np.arange(-32768, 32768)
    size = np.minimum(np.abs(values), _LARGEST) + _BIAS
    segment = np.floor(np.log2(size)).astype(np.int64) - 7
    step = size >> segment + 3 & 15
    bits = np.where(values < 0, 0x80, 0) | segment << 4 | step
    codes: npt.NDArray[np.uint8] = (~bits & 0xFF).astype(np.uint8)
    return codes
