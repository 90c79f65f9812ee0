"""Statistics of tokens that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moshi_pipe.metrics.tokens import CodeCounts, TextCounts, entropy_bits


def test_entropy_of_known_distributions() -> None:
    assert entropy_bits([1, 1, 1, 1]) == 2
    assert entropy_bits([2, 1, 1]) == 1.5
    assert entropy_bits([7]) == 0
    assert entropy_bits([0, 0]) is None


def test_the_entropy_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = np.random.default_rng(0).integers(0, 9, 50)

    assert entropy_bits(counts) == pytest.approx(stats.entropy(counts, base=2))


def test_padding_is_a_share_of_frames() -> None:
    counts = TextCounts(padding_id=3)
    assert (counts.padding_rate, counts.entropy_bits) == (None, None)

    for token in (3, 3, 3, 9, 3, 3, 0, 3):
        counts.add(token)

    assert counts.padding_rate == 0.75
    assert counts.entropy_bits == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.125)))


def test_codes_are_counted_per_codebook() -> None:
    counts = CodeCounts(2, 4)
    assert counts.usage is None

    for column in ([0, 1], [1, 1], [2, 1], [3, 1]):
        counts.add(np.array(column))
    counts.add(np.array([4, -1]))  # no codes

    assert counts.entropy_bits == [2, 0]
    assert counts.usage == 5 / 8
