"""Statistics of the tokens and codes that a model makes.

Shape letters: K codebook, V cardinality.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def entropy_bits(counts_V: npt.ArrayLike) -> float | None:
    """Shannon entropy of the distribution that counts describe, in bits.

    Source: Shannon 1948, A Mathematical Theory of Communication, section 6.

    Returns:
        None where nothing was counted.
    """
    counts = np.asarray(counts_V, dtype=np.float64)
    counts = counts[counts > 0]
    if not counts.size:
        return None
    share = counts / counts.sum()
    return max(0.0, float(-(share * np.log2(share)).sum()))


class TextCounts:
    """Counts text tokens.

    Args:
        padding_id: The token of a frame in which no piece starts.
    """

    def __init__(self, padding_id: int) -> None:
        self._padding_id = padding_id
        self._counts: Counter[int] = Counter()

    def add(self, token: int) -> None:
        """Count one frame's token."""
        self._counts[token] += 1

    @property
    def padding_rate(self) -> float | None:
        """Share of frames that hold padding.

        Source: Défossez et al. 2024 (arXiv:2410.00037), section 3.4.4: the text stream is padded
        between words.
        """
        total = sum(self._counts.values())
        return self._counts[self._padding_id] / total if total else None

    @property
    def entropy_bits(self) -> float | None:
        """Entropy of the tokens that were made, padding included."""
        return entropy_bits(list(self._counts.values()))


class CodeCounts:
    """Counts codes per codebook.

    Args:
        num_codebooks: Codes in a column.
        cardinality: Codes that a codebook has.
    """

    def __init__(self, num_codebooks: int, cardinality: int) -> None:
        self._counts_KV = np.zeros((num_codebooks, cardinality), dtype=np.int64)
        self._books_K = np.arange(num_codebooks)

    def add(self, codes_K: npt.NDArray[np.int64]) -> None:
        """Count one column; codes that a codebook does not have are left out."""
        inside = (codes_K >= 0) & (codes_K < self._counts_KV.shape[1])
        self._counts_KV[self._books_K[inside], codes_K[inside]] += 1

    @property
    def entropy_bits(self) -> list[float | None]:
        """Entropy of each codebook's codes."""
        return [entropy_bits(counts_V) for counts_V in self._counts_KV]

    @property
    def usage(self) -> float | None:
        """Share of all codebooks' entries that came up at least once.

        Source: Kumar et al. 2023 (arXiv:2306.06546), on codebook collapse.
        """
        if not self._counts_KV.any():
            return None
        return float((self._counts_KV > 0).mean())
