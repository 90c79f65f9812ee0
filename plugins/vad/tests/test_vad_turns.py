"""Turns, response times and overlaps from segments that are given."""

from __future__ import annotations

import itertools

import pytest
from moshi_pipe_vad.turns import Overlap, Segment, Turn, TurnTracker

LATE = 1e9


def events_of(*segments: tuple[str, float, float]) -> list[Turn | Overlap]:
    tracker = TurnTracker()
    for speaker, start_s, end_s in segments:
        tracker.add(speaker, Segment(start_s, end_s))
    return tracker.settle(LATE)


def test_an_answer_is_a_turn_with_its_response_time() -> None:
    assert events_of(("user", 1, 2), ("model", 2.25, 4), ("user", 5, 6)) == [
        Turn("user", 1, None, None),
        Turn("model", 2.25, "user", 250.0),
        Turn("user", 5, "model", 1000.0),
    ]


def test_pauses_of_one_speaker_are_no_turns_and_the_gap_counts_from_the_last_segment() -> None:
    assert events_of(("user", 0, 1), ("user", 2, 3), ("model", 3.5, 4))[1:] == [
        Turn("model", 3.5, "user", 500.0)
    ]


def test_who_begins_early_and_goes_on_has_taken_the_turn() -> None:
    assert events_of(("user", 0, 2), ("model", 1.5, 4))[1:] == [
        Overlap(1.5, 2, "model", took_turn=True),
        Turn("model", 1.5, "user", -500.0),
    ]


def test_a_word_in_between_takes_no_turn() -> None:
    assert events_of(("user", 0, 4), ("model", 1, 1.5), ("user", 5, 6), ("model", 7, 8)) == [
        Turn("user", 0, None, None),
        Overlap(1, 1.5, "model", took_turn=False),
        Turn("model", 7, "user", 1000.0),
    ]


def test_the_order_in_which_segments_end_changes_nothing() -> None:
    segments = [("user", 0.0, 4.0), ("model", 1.0, 1.5), ("model", 3.5, 6.0), ("user", 5.0, 5.5)]
    wanted = events_of(*segments)

    assert all(events_of(*order) == wanted for order in itertools.permutations(segments))
    assert len(wanted) == 5


def test_the_sum_of_overlaps_is_the_time_that_both_speak() -> None:
    import random

    rng = random.Random(3)
    for _ in range(200):
        segments, both = [], [set[int](), set[int]()]
        for side, speaker in enumerate(("user", "model")):
            at = 0
            for _ in range(rng.randrange(6)):
                start = at + rng.randrange(1, 20)
                at = start + rng.randrange(1, 20)
                segments.append((speaker, float(start), float(at)))
                both[side].update(range(start, at))

        overlaps = [event for event in events_of(*segments) if isinstance(event, Overlap)]

        assert sum(e.end_s - e.start_s for e in overlaps) == len(both[0] & both[1])


def test_nothing_is_said_before_it_is_sure() -> None:
    tracker = TurnTracker()
    tracker.add("model", Segment(3, 4))

    assert tracker.settle(2.9) == []
    tracker.add("user", Segment(2.95, 3.5))
    assert tracker.settle(3.0)[0] == Turn("user", 2.95, None, None)
    assert tracker.settle(LATE) == []


@pytest.mark.parametrize("speaker", ["user", "model"])
def test_one_speaker_alone_takes_one_turn(speaker: str) -> None:
    assert events_of((speaker, 0, 1), (speaker, 2, 3)) == [Turn(speaker, 0, None, None)]
