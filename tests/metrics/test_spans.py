"""Spans against the slow way: a set of milliseconds."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from moshi_pipe.metrics.spans import between, intersection, joined, long_enough, shifted, total_s

RAW = st.lists(
    st.tuples(st.integers(0, 200), st.integers(1, 30)).map(lambda one: (one[0], sum(one))),
    max_size=12,
)


def ticks(spans: list[tuple[int, int]]) -> set[int]:
    return {tick for start, end in spans for tick in range(start, end)}


@given(RAW)
def test_joined_covers_the_same_time_in_order_and_apart(raw: list[tuple[int, int]]) -> None:
    spans = joined(raw)

    assert ticks(spans) == ticks(raw)  # type: ignore[arg-type]
    assert all(one[1] < other[0] for one, other in pairwise(spans))


@given(RAW, RAW)
def test_intersection_is_the_time_of_both(
    ones: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    both = intersection(joined(ones), joined(others))

    assert ticks(both) == ticks(ones) & ticks(others)  # type: ignore[arg-type]
    assert total_s(both) == len(ticks(ones) & ticks(others))


def test_a_gap_of_exactly_the_limit_is_closed() -> None:
    assert joined([(0, 1), (1.5, 2), (2.6, 3)], 0.5) == [(0, 2), (2.6, 3)]


def test_what_lies_between() -> None:
    assert between([(0, 1), (2, 3), (5, 6)]) == [(1, 2), (3, 5)]
    assert between([(0, 1)]) == []


def test_short_spans_are_left_out() -> None:
    assert long_enough([(0, 0.5), (1, 2), (3, 3.75)], 0.75) == [(1, 2), (3, 3.75)]


def test_spans_move_to_another_line_and_are_cut_to_it() -> None:
    spans = [(0.0, 0.5), (0.75, 2.0), (3.0, 9.0), (9.5, 10.0)]

    assert shifted(spans, 1.0, 5.0) == [(0.0, 1.0), (2.0, 5.0)]
