"""Turn-taking over layouts that are drawn by hand."""

from __future__ import annotations

import pytest

from moshi_pipe.metrics import turns
from moshi_pipe.metrics.conversation import (
    Conversation,
    to_json,
    turn_events,
    turn_metrics,
    word_metrics,
)
from moshi_pipe.metrics.words import (
    TimedWord,
    articulation_rate_wpm,
    speaking_rate_wpm,
    words_within,
)


def words(*times: tuple[float, float]) -> list[TimedWord]:
    return [TimedWord("word", start, end) for start, end in times]


def test_turns_hold_the_pauses_that_the_benchmark_lets_them_hold() -> None:
    speech = [(0, 1), (1.55, 2), (2.59, 3), (3.7, 4)]

    assert turns.user_turns(speech) == [(0, 3), (3.7, 4)]
    assert turns.model_turns(speech) == [(0, 1), (1.55, 2), (2.59, 3), (3.7, 4)]


def test_silence_is_a_pause_of_one_speaker_or_a_gap_between_two() -> None:
    found = turns.silences([(0, 1), (2, 3)], [(4, 5), (6, 7), (9, 10)])

    assert found.user_pauses == [(1, 2)]
    assert found.gaps == [(3, 4)]
    assert found.model_pauses == [(5, 6), (7, 9)]


def test_silence_after_an_overlap_belongs_to_who_spoke_last() -> None:
    found = turns.silences([(0, 3), (5, 6)], [(2, 4)])

    assert (found.user_pauses, found.model_pauses, found.gaps) == ([], [], [(4, 5)])


def test_overlap_is_the_time_of_both() -> None:
    assert turns.overlaps([(0, 3), (5, 6)], [(2, 5.5)]) == [(2, 3), (5, 5.5)]


def test_a_response_counts_from_the_last_turn_of_the_user_before_it() -> None:
    user = [(0, 1), (2, 3), (6, 7), (9, 10)]
    model = [(3.4, 5), (7.25, 8)]

    assert turns.responses(user, model) == [(3, 3.4), (7, 7.25)]


def test_a_model_that_began_before_the_user_ended_has_not_responded_yet() -> None:
    assert turns.responses([(0, 2)], [(1.5, 3), (4, 5)]) == [(2, 4)]
    assert turns.responses([(0, 2)], [(1.5, 3)]) == []


def test_the_model_stops_some_time_after_the_user_began() -> None:
    user, model = [(0, 1), (3, 6)], [(1.5, 3.75), (7, 8)]

    assert turns.stops(user, model) == [(3, 3.75)]


def test_of_stops_at_the_same_moment_the_shortest_counts() -> None:
    assert turns.stops([(0, 1), (1.2, 2)], [(0.5, 0.99990), (1.0, 3)]) == [(0.5, 0.9999), (1.2, 2)]
    assert turns.stops([(0, 1.0001), (1.0002, 2)], [(0, 1)]) == [(0, 1)]


@pytest.mark.parametrize(
    ("turn", "said", "takes"),
    [
        ((0, 1), None, True),
        ((0, 0.9), None, False),
        ((0, 0.9), words((0, 0.2), (0.2, 0.4), (0.4, 0.6)), False),
        ((0, 0.9), words((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8)), True),
    ],
)
def test_a_second_or_four_words_take_the_floor(
    turn: tuple[float, float], said: list[TimedWord] | None, takes: bool
) -> None:
    assert turns.takes_floor(turn, said) is takes


def test_each_turn_of_the_user_is_taken_over_or_not() -> None:
    user = [(0, 2), (5, 6), (10, 12), (15, 16)]
    model = [(2.5, 4), (6.5, 7), (11.5, 13)]  # an answer, a word, one that begins early

    taken = turns.take_overs(user, model)

    assert taken == [(2.5, 4), None, (11.5, 13), None]
    assert turns.floor_transfers_s(user, taken) == [0.5, -0.5]


def test_who_only_goes_on_has_taken_nothing_over() -> None:
    assert turns.take_overs([(3, 4)], [(0, 6)]) == [None]


def test_backchannels_are_short_and_inside_the_others_turn() -> None:
    speech = [(1, 1.4), (2, 3.2), (4.8, 5.2), (7, 7.3)]

    assert turns.backchannels(speech, [(0, 5), (6, 8)]) == [(1, 1.4), (7, 7.3)]


def test_a_backchannel_has_two_words_at_most() -> None:
    said = words((1, 1.1), (1.1, 1.2), (1.2, 1.3), (7, 7.2))

    assert turns.backchannels([(1, 1.4), (7, 7.3)], [(0, 9)], said) == [(7, 7.3)]


def test_speaking_rate_counts_from_the_first_word_to_the_last() -> None:
    said = words((1, 1.2), (1.5, 1.8), (2.9, 3.0), (3.5, 4.0))

    assert speaking_rate_wpm(said) == 80
    assert speaking_rate_wpm([]) is None
    assert speaking_rate_wpm(words((1, 1))) is None


def test_articulation_rate_leaves_pauses_out() -> None:
    assert articulation_rate_wpm(4, 1.5) == 160
    assert articulation_rate_wpm(0, 1.5) is None
    assert articulation_rate_wpm(4, 0) is None


def test_words_that_reach_into_a_span_are_within_it() -> None:
    said = words((0, 1), (1, 2), (2.5, 3), (3.5, 4))

    assert words_within(said, 1.5, 3.2) == said[1:3]


def test_a_whole_conversation() -> None:
    heard = Conversation(
        20.0,
        user_speech=[(0, 2), (2.5, 4), (10, 13)],
        model_speech=[(2.1, 2.4), (4.5, 7), (7.25, 10.5)],
        model_words=words((2.1, 2.4), *((4.5 + i, 5 + i) for i in range(6))),
    )

    found = {name: value for name, (value, _) in turn_metrics(heard, turn_events(heard)).items()}

    assert found == {
        "duration_s": 20.0,
        "user_speech_s": 6.5,
        "user_turns": 2,
        "user_pauses": 0,  # the model spoke in it
        "user_pause_s": None,
        "model_speech_s": pytest.approx(6.05),
        "model_turns": 2,
        "model_pauses": 1,
        "model_pause_s": 0.25,
        "response_latency_s": 0.5,
        "first_response_s": 0.5,
        "take_over_rate": 0.5,
        "floor_transfer_s": 0.5,
        "stop_latency_s": pytest.approx((0.3 + 0.5) / 2),
        "overlaps": 1,
        "overlap_s": 0.5,
        "overlap_share": 0.025,
        "gaps": 3,
        "gap_s": pytest.approx(0.7 / 3),
        "user_backchannels": 0,
        "model_backchannels": 1,
        "model_backchannel_rate": 3,
    }


def test_words_of_both_sides_are_counted() -> None:
    heard = Conversation(
        20.0,
        user_speech=[(0, 2), (3, 4)],
        model_speech=[(5, 7)],
        user_words=words((0, 1), (1, 2), (3, 4)),
        model_words=words((5, 5.5), (6.5, 7)),
    )

    assert {name: value for name, (value, _) in word_metrics(heard).items()} == {
        "user_words": 3,
        "user_speaking_rate_wpm": 45,
        "user_articulation_rate_wpm": 60,
        "model_words": 2,
        "model_speaking_rate_wpm": 60,
        "model_articulation_rate_wpm": 60,
    }


def test_one_speaker_alone_takes_no_turns() -> None:
    heard = Conversation(5.0, user_speech=[(1, 2)])

    found = turn_metrics(heard, turn_events(heard))

    assert set(found) == {
        "duration_s",
        "user_speech_s",
        "user_turns",
        "user_pauses",
        "user_pause_s",
    }


def test_what_is_no_number_is_written_as_none() -> None:
    written = to_json({"a": (float("nan"), "s"), "b": (float("inf"), "dB"), "c": (2, "turns")})

    assert written == {
        "a": {"value": None, "unit": "s"},
        "b": {"value": None, "unit": "dB"},
        "c": {"value": 2, "unit": "turns"},
    }
