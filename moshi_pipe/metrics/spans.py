"""Spans of time: ``(start, end)`` in seconds, in order, none touching the next."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Span = tuple[float, float]


def joined(spans: Iterable[Span], gap_s: float = 0.0) -> list[Span]:
    """The union of spans; those that lie at most ``gap_s`` apart become one."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start - out[-1][1] <= gap_s:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def long_enough(spans: Iterable[Span], min_s: float) -> list[Span]:
    """Spans that last ``min_s`` or more."""
    return [(start, end) for start, end in spans if end - start >= min_s]


def intersection(ones: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """When both hold."""
    out: list[Span] = []
    i = j = 0
    while i < len(ones) and j < len(others):
        start = max(ones[i][0], others[j][0])
        end = min(ones[i][1], others[j][1])
        if end > start:
            out.append((start, end))
        if ones[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return out


def between(spans: Sequence[Span]) -> list[Span]:
    """What lies between spans."""
    return [(one[1], other[0]) for one, other in pairwise(spans)]


def total_s(spans: Iterable[Span]) -> float:
    """Sum of their lengths."""
    return sum(end - start for start, end in spans)


def shifted(spans: Iterable[Span], by_s: float, end_s: float) -> list[Span]:
    """Spans on another time line, as far as they lie inside ``[0, end_s]`` of it.

    Args:
        spans: On a line that begins ``by_s`` earlier.
        by_s: Subtracted from all times.
        end_s: End of the other line.
    """
    moved = [(max(0.0, start - by_s), min(end_s, end - by_s)) for start, end in spans]
    return [(start, end) for start, end in moved if end > start]
