"""The benchmark's rules at their edges."""

from __future__ import annotations

import numpy as np
import pytest

from moshi_pipe.metrics import duplex_bench as bench
from moshi_pipe.metrics.words import TimedWord


def words(*times: tuple[float, float]) -> list[TimedWord]:
    return [TimedWord("word", start, end) for start, end in times]


SHORT = words((1, 1.2), (1.3, 1.5), (1.6, 1.9))
FOUR = words((1, 1.1), (1.2, 1.3), (1.4, 1.5), (1.6, 1.7))


@pytest.mark.parametrize(
    ("said", "took"),
    [([], False), (SHORT, False), (FOUR, True), (words((1, 2)), True), (words((1, 1.9)), False)],
)
def test_a_second_or_four_words_take_over(said: list[TimedWord], took: bool) -> None:
    assert bench.took_over(said) is took


def test_latency_is_from_the_users_end_to_the_first_word_and_never_below_zero() -> None:
    assert bench.latency_s(FOUR, 0.25) == 0.75
    assert bench.latency_s(FOUR, 1.5) == 0
    assert bench.latency_s(SHORT, 0.25) is None


def test_short_sounds_are_backchannels() -> None:
    heard = bench.listening([(1, 1.4), (5, 5.8)], words((1, 1.3), (5, 5.2), (5.3, 5.6)))

    assert heard == bench.Listening(False, [(1, 1.4), (5, 5.8)])


@pytest.mark.parametrize(
    ("speech", "said"),
    [
        ([(0.2, 0.5), (1, 2)], words((1, 1.9))),  # a second
        ([(0.2, 0.5), (1, 1.9)], SHORT),  # three words in less
    ],
)
def test_more_takes_the_floor_and_voids_what_was_before(
    speech: list[tuple[float, float]], said: list[TimedWord]
) -> None:
    assert bench.listening(speech, said) == bench.Listening(True, [])


def test_what_comes_last_decides() -> None:
    assert bench.listening([(1, 2.5), (6, 6.4)], words((6, 6.3))) == bench.Listening(
        False, [(6, 6.4)]
    )


def test_three_seconds_end_the_search() -> None:
    heard = bench.listening([(1, 1.4), (2, 5.5), (8, 8.3)], words((1, 1.3)))

    assert heard == bench.Listening(True, [(1, 1.4)])


def test_no_backchannel_is_as_far_from_people_as_can_be() -> None:
    assert bench.divergence([], 10, [1, 1, 1]) == 1


def test_backchannels_when_people_make_them_are_near() -> None:
    reference = np.zeros(51)
    reference[10:13] = 1

    near = bench.divergence([(2.0, 2.5)], 10, list(reference))
    far = bench.divergence([(7.0, 7.5)], 10, list(reference))

    assert near == pytest.approx(0, abs=1e-4)
    assert far == pytest.approx(np.sqrt(np.log(2)), abs=1e-4)


def test_a_reference_of_other_length_is_stretched() -> None:
    assert bench.divergence([(0.0, 10.0)], 10, [1, 1]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_divergence_is_that_of_scipy(seed: int) -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    ones, others = np.random.default_rng(seed).random((2, 40))
    others[:7] = 0

    assert bench.jensen_shannon_distance(ones, others) == pytest.approx(
        distance.jensenshannon(ones, others), abs=1e-12
    )


def test_rates_before_and_after_part_at_the_word_that_is_under_way() -> None:
    said = words((0, 0.5), (0.5, 1.0), (1.0, 1.8), (2.0, 2.5), (2.5, 3.0))

    before, after = bench.rates_around_wpm(said, 1.5)

    assert before == 120  # two words in a second
    assert after == pytest.approx(90)  # three in two seconds


def test_an_answer_of_no_length_has_no_rate() -> None:
    answer = bench.Answer("backchannel", None, 0.0, [], [], [], [1.0])

    assert bench.score(answer)["fdb_backchannel_rate"] == (None, "1/s")


def test_rates_without_words_are_none() -> None:
    assert bench.rates_around_wpm([], 1.5) == (None, None)
    assert bench.rates_around_wpm(words((0, 0.5), (0.5, 1.0)), 5) == (120, None)
