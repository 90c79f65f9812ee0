"""What a server has done so far, as plain numbers; :mod:`~moshi_pipe.server.metrics` shows them."""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from moshi_pipe.units import NS_PER_SECOND

BUCKETS_S: Final = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.16, 0.24, 0.5, 1.0, 2.0)
"""Upper bounds of the classes of durations, in seconds."""


class Durations:
    """Durations in the classes of :data:`BUCKETS_S`, and one above."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total_s = 0.0

    def add_ns(self, duration_ns: int) -> None:
        """Count one duration."""
        duration_s = duration_ns / NS_PER_SECOND
        self.counts[bisect.bisect_left(BUCKETS_S, duration_s)] += 1
        self.total_s += duration_s


@dataclass
class ServerCounts:
    """What a server has done so far; does not grow with it.

    Attributes:
        sessions: Conversations that ended, by why.
        frames: Frames of clients that were taken.
        answers: Answers with audio that were sent.
        skipped: Answers that found no room.
        dropped: Frames that the engine dropped.
        latency: From a frame's arrival to its answer, as the edge is given it.
        edges: What edge processes counted, by name and label: ``bad_messages.empty``.
        gauges: What is now, by edge process and name.
        edge_ends: Edge processes that ended and were started anew.
    """

    sessions: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    answers: int = 0
    skipped: int = 0
    dropped: int = 0
    latency: Durations = field(default_factory=Durations)
    edges: Counter[str] = field(default_factory=Counter)
    gauges: dict[int, dict[str, float]] = field(default_factory=dict)
    edge_ends: int = 0
