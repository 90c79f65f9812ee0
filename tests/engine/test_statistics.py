"""Histograms: percentiles at most 5 % high, of fixed size."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_pipe.engine.statistics import EngineStatistics, Histogram, Series


@given(st.lists(st.integers(1000, 10**11), min_size=1, max_size=200), st.sampled_from([50, 90, 99]))
def test_percentiles_are_never_low_and_at_most_5_percent_high(
    durations: list[int], percent: int
) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)

    exact = int(np.percentile(durations, percent, method="inverted_cdf"))

    assert exact <= histogram.percentile_ns(percent) <= exact * 1.05
    assert histogram.percentile_ns(100) == max(durations)


def test_numbers_come_out_in_ms() -> None:
    histogram = Histogram()
    for ms in (1, 2, 3):
        histogram.add(ms * 1_000_000)

    row = histogram.to_dict()

    assert row["count"] == 3
    assert row["mean_ms"] == 2.0
    assert row["max_ms"] == 3.0
    assert row["p50_ms"] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("duration_ns", [0, 1, 999, 1000, 1001, 10**11, 10**11 + 1, 10**15])
def test_durations_beyond_the_classes_are_counted_too(duration_ns: int) -> None:
    histogram = Histogram()
    histogram.add(duration_ns)

    assert histogram.percentile_ns(50) == duration_ns
    assert histogram.count == 1


def test_an_engine_tells_its_nodes_apart() -> None:
    statistics = EngineStatistics(ticks=2, frames=3, rows=8, sessions=1)
    statistics.nodes["lm"] = Histogram()
    statistics.nodes["lm"].add(4_000_000)

    told = statistics.to_dict()

    assert {key: told[key] for key in ("ticks", "frames", "rows", "sessions")} == {
        "ticks": 2,
        "frames": 3,
        "rows": 8,
        "sessions": 1,
    }
    assert told["nodes"]["lm"]["max_ms"] == 4.0
    assert told["tick"]["count"] == 0


def test_nothing_measured_is_zero_and_size_stays() -> None:
    histogram = Histogram()
    assert histogram.to_dict()["p99_ms"] == 0
    size = sys.getsizeof(histogram._counts)
    for _ in range(10_000):
        histogram.add(5_000_000)

    assert sys.getsizeof(histogram._counts) == size
    assert EngineStatistics().to_dict()["frames"] == 0


def test_classes_count_every_duration_once() -> None:
    histogram = Histogram()
    for ms in (1.0, 1.0, 50.0, 200_000.0):
        histogram.add(round(ms * 1e6))

    classes = histogram.classes()

    assert [count for _, count in classes] == [2, 1, 1]
    assert [bound for bound, _ in classes] == pytest.approx([1.0, 50.0, 200_000.0], rel=0.05)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**9), max_size=3000))
def test_a_series_keeps_means_and_maxima_of_equal_windows(durations: list[int]) -> None:
    series = Series()
    for duration in durations:
        series.add(duration)

    kept = series.to_dict()

    size, count = kept["ticks_per_window"], len(kept["mean_ms"])
    assert count < 256
    assert len(durations) - size < size * count <= len(durations)
    windows = [durations[i * size : (i + 1) * size] for i in range(count)]
    assert kept["max_ms"] == pytest.approx([max(w) / 1e6 for w in windows], abs=1e-4)
    assert kept["mean_ms"] == pytest.approx([sum(w) / size / 1e6 for w in windows], abs=1e-3)
