"""When each node of a tick ran: by the engine's clock, on CUDA by the device's own events.

A node on CUDA only queues its work; the host's time would say nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.engine.clock import Clock

Mark = Any
"""A moment, understood by the timer that made it."""


class NodeTimer(Protocol):
    """Marks moments, and says later when they were."""

    def mark(self) -> Mark:
        """Now."""

    def spans(self, marks: Sequence[tuple[Mark, Mark]]) -> list[tuple[int, int]]:
        """Begin and end of each pair on the engine's clock in ns, once all results are there."""


def make_timer(clock: Clock, device: torch.device) -> NodeTimer:
    """Make the timer of a device."""
    return DeviceTimer(clock) if device.type == "cuda" else HostTimer(clock)


class HostTimer:
    """Nodes that have ended when they return."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def mark(self) -> int:
        """The clock's time."""
        return self._clock.now_ns()

    def spans(self, marks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """As they were marked."""
        return list(marks)


class DeviceTimer:
    """Nodes that queue their work on the current CUDA stream."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def mark(self) -> torch.cuda.Event:
        """An event behind what was queued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def spans(
        self, marks: Sequence[tuple[torch.cuda.Event, torch.cuda.Event]]
    ) -> list[tuple[int, int]]:
        """Counted back from now, which is when the last one ended."""
        if not marks:
            return []
        last = marks[-1][1]
        last.synchronize()
        now_ns = self._clock.now_ns()

        def at_ns(event: torch.cuda.Event) -> int:
            return now_ns - int(event.elapsed_time(last) * 1e6)

        return [(at_ns(begin), at_ns(end)) for begin, end in marks]
