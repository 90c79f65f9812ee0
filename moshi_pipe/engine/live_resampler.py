"""A resampler for live audio: it keeps back less than a millisecond, and its ratio may change.

Made for this: soxr's streams hold up to 40 ms back, and its variable ratio loses the upper half of
the band unless it goes well up (docs/decisions/0006).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_CROSSINGS: Final = 16  # of the sinc on each side
_PHASES: Final = 4096  # the nearest is taken: off by 1/8192 of a sample at most
_BETA: Final = 8.0  # of the Kaiser window: about 80 dB
_PASS: Final = 0.94  # of the lower of both Nyquist frequencies


class LiveResampler:
    """Windowed-sinc interpolation at positions that advance by the ratio of the rates.

    Any chunking gives the same samples up to rounding. The result is aligned with the input:
    sample i of it lies at i times the ratio; the last :attr:`delay_s` of the input are still to
    come.

    Source: Julius O. Smith, Digital Audio Resampling, ccrma.stanford.edu/~jos/resample.

    Args:
        rate_in: Hz of the input.
        rate_out: Hz of the result.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self._ratio = rate_in / rate_out
        self.step = self._ratio  # samples of the input per sample of the result
        self._table_PT = _table(min(1.0, rate_out / rate_in))
        taps = self._table_PT.shape[1]
        self.delay_s = taps / 2 / rate_in
        self._kept_N: npt.NDArray[np.float32] = np.zeros(taps // 2 - 1, np.float32)
        self._at = 0.0  # of the next result, in samples of what is kept

    def correct(self, correction: float) -> None:
        """Take the input faster by this part of its rate from now on; 0 is the nominal ratio."""
        self.step = self._ratio * (1 + correction)

    def push(self, samples_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Take samples, float32 ``[N]``, and give those that can be computed now."""
        kept_N = np.concatenate([self._kept_N, samples_N])
        taps = self._table_PT.shape[1]
        end = kept_N.size - taps + 1  # positions below this have all their samples
        at_M = np.arange(self._at, end, self.step)
        at_M = at_M[at_M < end]  # the sum of steps is rounded
        self._at += self.step * at_M.size
        first_M = at_M.astype(np.int64)
        out_M = self._interpolate(kept_N, first_M, at_M - first_M)
        done = min(int(self._at), kept_N.size)
        self._kept_N = kept_N[done:]
        self._at -= done
        return out_M

    def _interpolate(
        self,
        kept_N: npt.NDArray[np.float32],
        first_M: npt.NDArray[np.int64],
        part_M: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float32]:
        if not first_M.size:
            return np.zeros(0, np.float32)
        windows_NT = np.lib.stride_tricks.sliding_window_view(kept_N, self._table_PT.shape[1])
        row_M = (part_M * _PHASES + 0.5).astype(np.int64)
        out_M: npt.NDArray[np.float32]
        if self.step == 1.0:  # one phase for all, and every sample is a first one
            out_M = windows_NT[first_M[0] : first_M[-1] + 1] @ self._table_PT[row_M[0]]
        else:
            out_M = np.einsum("mt,mt->m", windows_NT[first_M], self._table_PT[row_M])
        return out_M


@lru_cache(maxsize=8)
def _table(cut: float) -> npt.NDArray[np.float32]:
    """Filters by phase ``[phases + 1, taps]``; ``cut`` is 1, or the part of the band that stays."""
    half = math.ceil(_CROSSINGS / cut)
    offset_T = np.arange(-half + 1, half + 1)
    phase_P1 = np.arange(_PHASES + 1)[:, None] / _PHASES
    time_PT = offset_T - phase_P1
    window_PT = np.i0(_BETA * np.sqrt(np.clip(1 - (time_PT / half) ** 2, 0, None))) / np.i0(_BETA)
    width = cut * _PASS
    table_PT = width * np.sinc(width * time_PT) * window_PT
    table_PT /= table_PT.sum(axis=1, keepdims=True)
    filters_PT: npt.NDArray[np.float32] = table_PT.astype(np.float32)
    return filters_PT
