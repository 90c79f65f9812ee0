"""Who has the floor: turns, response times and overlaps, from the segments of two speakers."""

from __future__ import annotations

import heapq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, in seconds from the first sample."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A speaker took the floor.

    Attributes:
        speaker: Who.
        start_s: When.
        after: Who had it before; None at the beginning.
        gap_ms: From the end of the other's last segment to the start of this one: the response
            time; below zero where the speaker began before the other had ended.
    """

    speaker: str
    start_s: float
    after: str | None
    gap_ms: float | None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Both spoke.

    Attributes:
        start_s: From when.
        end_s: Until when.
        speaker: Who spoke into the other's speech.
        took_turn: Whether this speaker went on after the other had ended; False for a word said
            in between, such as "mhm".
    """

    start_s: float
    end_s: float
    speaker: str
    took_turn: bool


class TurnTracker:
    """Orders the segments of all speakers by their start and derives what happened between them.

    A segment that begins while another has the floor and ends before that one is said in
    between and takes no turn.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[float, float, str]] = []
        self._holder: str | None = None
        self._end_s = 0.0

    def add(self, speaker: str, segment: Segment) -> None:
        """Take a segment that has ended."""
        heapq.heappush(self._waiting, (segment.start_s, segment.end_s, speaker))

    def settle(self, until_s: float) -> list[Turn | Overlap]:
        """Give what is known once no further segment can begin before ``until_s``."""
        events: list[Turn | Overlap] = []
        while self._waiting and self._waiting[0][0] <= until_s:
            start_s, end_s, speaker = heapq.heappop(self._waiting)
            events += self._follow(speaker, start_s, end_s)
        return events

    def _follow(self, speaker: str, start_s: float, end_s: float) -> list[Turn | Overlap]:
        if speaker == self._holder:
            self._end_s = end_s
            return []
        events: list[Turn | Overlap] = []
        takes = self._holder is None or end_s > self._end_s
        if self._holder is not None and start_s < self._end_s:
            events.append(Overlap(start_s, min(end_s, self._end_s), speaker, takes))
        if takes:
            gap_ms = None if self._holder is None else round(1000 * (start_s - self._end_s), 1)
            events.append(Turn(speaker, start_s, self._holder, gap_ms))
            self._holder, self._end_s = speaker, end_s
        return events
