"""How many sessions at once an engine keeps up with.

A tick costs by the rows that it runs, whoever is in them: masked rows are computed too. So what a
tick of each size costs is measured once, before sessions come, and what all ticks cost now, in
relation to that, is followed while they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MEASURED: Final = 3  # ticks of each size, after one that warms up
_ENOUGH: Final = 2.0  # times the limit: larger ticks are not measured, but taken to cost more
_FOLLOWED: Final = 50  # ticks: some seconds
_MOST: Final = 4.0  # a single tick says no more than that it took so many times as long


class Capacity:
    """What ticks cost, and the sessions that this allows.

    Args:
        sizes: Rows that a tick can have, ascending; the last is all.
        limit_ns: Longest that a tick may take.
    """

    def __init__(self, sizes: Sequence[int], limit_ns: int) -> None:
        self._sizes = tuple(sizes)
        self._limit_ns = limit_ns
        self._cost_ns: dict[int, float] = {}
        self._load = 1.0

    def measure(self, tick: Callable[[int], int]) -> None:
        """Measure what ticks cost.

        Args:
            tick: Runs one of so many rows, each with a session; returns how long it took in ns.
        """
        for size in self._sizes:
            tick(size)
            # What disturbs a start passes; what stays is followed later.
            cost_ns = min(tick(size) for _ in range(_MEASURED))
            self._cost_ns[size] = max(1.0, cost_ns)
            if cost_ns > _ENOUGH * self._limit_ns:
                break
        last = max(self._cost_ns)
        for size in self._sizes:
            self._cost_ns.setdefault(size, self._cost_ns[last] * size / last)

    def add(self, size: int, duration_ns: int) -> None:
        """Follow a tick of so many rows."""
        if size in self._cost_ns:
            ratio = min(_MOST, duration_ns / self._cost_ns[size])
            self._load += (ratio - self._load) / _FOLLOWED

    @property
    def sessions(self) -> int:
        """Sessions at once for which a tick stays short enough; at least 1."""
        fits = (
            size
            for size in self._sizes
            if self._cost_ns.get(size, 0.0) * self._load <= self._limit_ns
        )
        return max(fits, default=1)
