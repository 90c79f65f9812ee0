"""Whether a live engine keeps up, and if not, why.

Times are readings of the engine's clock in nanoseconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from moshi_pipe.engine.statistics import Histogram
from moshi_pipe.units import NS_PER_MS

CAUSES: Final = ("steady", "growing", "contended", "device")
"""What late ticks have in common: all cost the same; they cost more and more; some cost far more
than the rest, as when something else uses the machine; or ticks are in time and frames are not."""

_KEEP_TICKS: Final = 750  # a minute
_WINDOWS: Final = 64
_GROWTH: Final = 1.2  # of a late tick over an early one
_GROWTH_NS: Final = 2 * NS_PER_MS
_FAR_MORE: Final = 1.5  # times the median
_FAR_MORE_MS: Final = 5.0
_LATE_DELIVERY: Final = 1.5  # frames between two deliveries


@dataclass(frozen=True, slots=True)
class TickTimes:
    """When a tick happened.

    Attributes:
        start_ns: Its start.
        end_ns: When its outputs were on the host.
        nodes: Begin and end of each node, in the order of the schedule.
        frames: Session, frame number and time of delivery of each frame that it took.
    """

    start_ns: int
    end_ns: int
    nodes: tuple[tuple[int, int], ...]
    frames: tuple[tuple[str, int, int], ...]

    @property
    def model_ns(self) -> int:
        """Time inside the nodes."""
        return sum(end - begin for begin, end in self.nodes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a run was late, or that it was not.

    Attributes:
        cause: One of :data:`CAUSES`.
        in_time: Whether nothing was late, dropped or missing.
        text: The same in a sentence, with its numbers.
    """

    cause: str
    in_time: bool
    text: str


class Trend:
    """Means of a growing series over equal windows; fixed size, windows double when they fill."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._size = 16
        self._sum = 0
        self._count = 0

    def add(self, value: int) -> None:
        """Append a value."""
        self._sum += value
        self._count += 1
        if self._count < self._size:
            return
        self._means.append(self._sum / self._count)
        self._sum = self._count = 0
        if len(self._means) == _WINDOWS:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(a + b) / 2 for a, b in pairs]
            self._size *= 2

    def ends(self) -> tuple[float, float] | None:
        """Mean over the first and over the last quarter; None when there is too little."""
        quarter = len(self._means) // 4
        if not quarter:
            return None
        return sum(self._means[:quarter]) / quarter, sum(self._means[-quarter:]) / quarter


class Lateness:
    """Statistics of live ticks; does not grow with the run.

    Args:
        frame_ns: Duration of a frame.
        budget_ns: From a frame's delivery to its deadline.
    """

    def __init__(self, frame_ns: int, budget_ns: int) -> None:
        self.frame_ns = frame_ns
        self.budget_ns = budget_ns
        self.lag = Histogram()  # from delivery to the start of the tick
        self.answer = Histogram()  # from delivery to the end of the tick
        self.tick = Histogram()
        self.delivery = Histogram()  # between two frames of a session
        self.num_late = 0  # frames whose tick ended after their deadline
        self.num_delivered_late = 0
        self.recent: deque[TickTimes] = deque(maxlen=_KEEP_TICKS)
        self._trend = Trend()
        self._last_delivery: dict[str, int] = {}

    def add(self, times: TickTimes) -> list[tuple[str, int, int]]:
        """Count a tick.

        Returns:
            Session, frame and ns after its deadline of each frame that was late.
        """
        duration_ns = times.end_ns - times.start_ns
        self.tick.add(duration_ns)
        self._trend.add(duration_ns)
        self.recent.append(times)
        late = []
        for session, frame, delivered_ns in times.frames:
            self.lag.add(times.start_ns - delivered_ns)
            self.answer.add(times.end_ns - delivered_ns)
            self._count_delivery(session, delivered_ns)
            over_ns = times.end_ns - delivered_ns - self.budget_ns
            if over_ns > 0:
                late.append((session, frame, over_ns))
        self.num_late += len(late)
        return late

    def forget(self, session: str) -> None:
        """A session is over."""
        self._last_delivery.pop(session, None)

    def verdict(self, *, dropped: int = 0, underruns: int = 0) -> Verdict:
        """Say what the lateness of the run was.

        Args:
            dropped: Frames that were not processed because they were too old.
            underruns: Times that a speaker had nothing to play.
        """
        median_ms = self.tick.percentile_ns(50) / NS_PER_MS
        frame_ms = self.frame_ns / NS_PER_MS
        took = f"half of all ticks took {median_ms:.0f} ms or less, a frame lasts {frame_ms:.0f} ms"
        trouble = _trouble(self.num_late, dropped, underruns)
        if not trouble:
            return Verdict("steady", True, f"in time: {took}")
        ends = self._trend.ends()
        if ends is not None and ends[1] > ends[0] * _GROWTH and ends[1] - ends[0] > _GROWTH_NS:
            first, last = (round(end / NS_PER_MS) for end in ends)
            grew = f"a tick grew from {first} to {last} ms: something in the model's state grows"
            return Verdict("growing", False, f"{trouble}; {grew}")
        if median_ms > frame_ms:
            return Verdict("steady", False, f"{trouble}; {took}: too much for this machine")
        limit_ms = max(_FAR_MORE * median_ms, median_ms + _FAR_MORE_MS)
        p99_ms = self.tick.percentile_ns(99) / NS_PER_MS
        if self.num_late and max(p99_ms, self.tick.max_ns / NS_PER_MS) > limit_ms:
            most_ms = self.tick.max_ns / NS_PER_MS
            text = f"{took}, but some {most_ms:.0f} ms: something else uses the machine"
            return Verdict("contended", False, f"{trouble}; {text}")
        late = self.num_delivered_late
        device = f"ticks were in time; {late} frames came from the device half a frame late or more"
        return Verdict("device", False, f"{trouble}; {device}")

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, for the report."""
        return {
            "late": self.num_late,
            "budget_ms": self.budget_ns / NS_PER_MS,
            "lag": self.lag.to_dict(),
            "answer": self.answer.to_dict(),
            "delivery": self.delivery.to_dict(),
        }

    def _count_delivery(self, session: str, delivered_ns: int) -> None:
        before = self._last_delivery.get(session)
        self._last_delivery[session] = delivered_ns
        if before is None:
            return
        self.delivery.add(delivered_ns - before)
        if delivered_ns - before > _LATE_DELIVERY * self.frame_ns:
            self.num_delivered_late += 1


def _trouble(late: int, dropped: int, underruns: int) -> str:
    """What went wrong, in numbers; empty when nothing did."""
    counts = ((late, "frames late"), (dropped, "dropped"), (underruns, "underruns"))
    return ", ".join(f"{count} {what}" for count, what in counts if count)
