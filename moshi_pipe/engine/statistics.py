"""Numbers about a run that do not grow with it."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any, Final

from moshi_pipe.units import NS_PER_MS

# Bounds from 1 us to 100 s, 48 per decade: a percentile is at most 5 % high.
_PER_DECADE: Final = 48
_BOUNDS_NS: Final = tuple(round(1000 * 10 ** (i / _PER_DECADE)) for i in range(8 * _PER_DECADE + 1))

_WINDOWS: Final = 256


class Histogram:
    """Durations in logarithmic classes; fixed size."""

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS_NS) + 1)
        self.count = 0
        self.total_ns = 0
        self.max_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        self._counts[bisect.bisect_left(_BOUNDS_NS, duration_ns)] += 1
        self.count += 1
        self.total_ns += duration_ns
        self.max_ns = max(self.max_ns, duration_ns)

    def percentile_ns(self, percent: float) -> int:
        """Upper bound of the class that holds this percentile, at most the largest value; or 0."""
        wanted = percent / 100 * self.count
        seen = 0
        for i, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_BOUNDS_NS[i], self.max_ns) if i < len(_BOUNDS_NS) else self.max_ns
        return 0

    def classes(self) -> list[tuple[float, int]]:
        """Upper bound in ms and count of each class that is not empty, shortest first."""
        bounds = (*_BOUNDS_NS, max(self.max_ns, _BOUNDS_NS[-1]))
        return [
            (round(bound / NS_PER_MS, 4), count)
            for bound, count in zip(bounds, self._counts, strict=True)
            if count
        ]

    def to_dict(self) -> dict[str, float]:
        """Count; sum, mean, percentiles and maximum in ms."""
        mean = self.total_ns / self.count if self.count else 0
        values = {
            "total_ms": self.total_ns,
            "mean_ms": mean,
            "p50_ms": self.percentile_ns(50),
            "p90_ms": self.percentile_ns(90),
            "p99_ms": self.percentile_ns(99),
            "max_ms": self.max_ns,
        }
        return {"count": self.count} | {k: round(v / NS_PER_MS, 4) for k, v in values.items()}


class Series:
    """A growing series in equal windows; fixed size, windows double when they fill."""

    def __init__(self) -> None:
        self._size = 1
        self._means: list[float] = []
        self._most: list[int] = []
        self._sum = self._max = self._count = 0

    def add(self, duration_ns: int) -> None:
        """Append a duration."""
        self._sum += duration_ns
        self._max = max(self._max, duration_ns)
        self._count += 1
        if self._count < self._size:
            return
        self._means.append(self._sum / self._count)
        self._most.append(self._max)
        self._sum = self._max = self._count = 0
        if len(self._means) == _WINDOWS:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(a + b) / 2 for a, b in pairs]
            self._most = [max(pair) for pair in zip(self._most[::2], self._most[1::2], strict=True)]
            self._size *= 2

    def to_dict(self) -> dict[str, Any]:
        """Ticks per window; mean and maximum of each window that is full, in ms."""
        return {
            "ticks_per_window": self._size,
            "mean_ms": [round(mean / NS_PER_MS, 4) for mean in self._means],
            "max_ms": [round(most / NS_PER_MS, 4) for most in self._most],
        }


@dataclass(slots=True)
class EngineStatistics:
    """What an engine did.

    Attributes:
        nodes: Time per tick and node.
        tick: Time per tick, copies included.
        series: The same over the run.
        overhead: Time per tick outside of nodes: copies, rings and accounts.
        ticks: Ticks.
        frames: Frames over all sessions.
        rows: Rows run over all ticks, idle ones included.
        sessions: Sessions that joined.
    """

    nodes: dict[str, Histogram] = field(default_factory=dict)
    tick: Histogram = field(default_factory=Histogram)
    series: Series = field(default_factory=Series)
    overhead: Histogram = field(default_factory=Histogram)
    ticks: int = 0
    frames: int = 0
    rows: int = 0
    sessions: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, for the report."""
        return {
            "ticks": self.ticks,
            "frames": self.frames,
            "rows": self.rows,
            "sessions": self.sessions,
            "tick": self.tick.to_dict(),
            "overhead": self.overhead.to_dict(),
            "nodes": {name: histogram.to_dict() for name, histogram in self.nodes.items()},
        }
