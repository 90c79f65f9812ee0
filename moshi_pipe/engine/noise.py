"""Randomness as a function of seed, frame and draw, the same on every backend.

Every model step of a session reads its own stretch of a counter-based generator, so what a session
draws depends on nothing but its seed: not on its slot, its batch mates or how often it was resumed.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox-4x64-10), in
NumPy's implementation, whose raw output is fixed by the algorithm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_MANTISSA_BITS = 53


def fill_exponential(out: npt.NDArray[np.float32], *, seed: int, step: int) -> None:
    """Fill ``out`` with the Exponential(1) draws of one model step.

    Draw i is ``-log(((raw_i >> 11) + 0.5) / 2^53)`` of raw word i, never zero and never infinite.

    Args:
        out: Any shape, float32, filled in C order.
        seed: The session's seed, any int; its low 128 bits count.
        step: Model steps since the session began.
    """
    # The counter's low word counts blocks of four words inside a step, the next one counts steps.
    generator = np.random.Philox(key=seed % 2**128, counter=[0, step, 0, 0])
    raw = generator.random_raw(out.size) >> np.uint64(64 - _MANTISSA_BITS)
    uniform = (raw.astype(np.float64) + 0.5) * 2.0**-_MANTISSA_BITS
    out[...] = -np.log(uniform).reshape(out.shape)
