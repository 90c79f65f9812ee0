"""Histograms: percentiles within 5 %, of fixed size."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_pipe.engine.statistics import EngineStatistics, Histogram


@given(st.lists(st.integers(1000, 10**11), min_size=1, max_size=200), st.sampled_from([50, 90, 99]))
def test_percentiles_are_never_low_and_at_most_a_class_high(
    durations: list[int], percent: int
) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)

    exact = int(np.percentile(durations, percent, method="inverted_cdf"))

    assert exact <= histogram.percentile_ns(percent) <= exact * 1.11
    assert histogram.percentile_ns(100) == max(durations)


def test_numbers_come_out_in_ms() -> None:
    histogram = Histogram()
    for ms in (1, 2, 3):
        histogram.add(ms * 1_000_000)

    row = histogram.to_dict()

    assert row["count"] == 3
    assert row["mean_ms"] == 2.0
    assert row["max_ms"] == 3.0
    assert row["p50_ms"] == pytest.approx(2.0, rel=0.11)


def test_nothing_measured_is_zero_and_size_stays() -> None:
    histogram = Histogram()
    assert histogram.to_dict()["p99_ms"] == 0
    size = sys.getsizeof(histogram._counts)
    for _ in range(10_000):
        histogram.add(5_000_000)

    assert sys.getsizeof(histogram._counts) == size
    assert EngineStatistics().to_dict()["frames"] == 0
