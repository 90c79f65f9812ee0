"""The rules of Full-Duplex-Bench v1 and v1.5, one recording at a time.

Written anew from what its scripts compute, so that a run knows its scores without them; see
``docs/evaluation.md`` for how to run the scripts themselves.

Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/evaluation; Lin et al. 2025 (arXiv:2503.04721 and
arXiv:2507.23159).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from moshi_pipe.metrics.activity import ActivityOptions
from moshi_pipe.metrics.spans import total_s
from moshi_pipe.metrics.turns import (
    BACKCHANNEL_WORDS,
    TURN_S,
    TURN_WORDS,
    model_turns,
    responses,
    stops,
    user_turns,
)
from moshi_pipe.metrics.words import TimedWord, speaking_rate_wpm, words_within

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from moshi_pipe.metrics.conversation import Metrics
    from moshi_pipe.metrics.spans import Span

SPEECH: Final = ActivityOptions(min_silence_s=0.1, min_speech_s=0.25, pad_s=0.03)
"""What the scripts take for speech: silero's own defaults.

Source: snakers4/silero-vad src/silero_vad/utils_vad.py, ``get_speech_timestamps``.
"""

_FORMAL_S: Final = 3.0  # speech longer than this ends the search for back-channels
_WINDOW_S: Final = 0.2
_EPSILON: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Listening:
    """How a model listened.

    Attributes:
        took_over: Whether it took the floor.
        backchannels: Short sounds that it made without doing so.
    """

    took_over: bool
    backchannels: list[Span]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one input of the benchmark, in seconds from the input's start.

    Attributes:
        kind: What the task asks for; see :data:`moshi_pipe.nodes.fdb_layout.ANNOTATIONS`.
        event_s: Times of the annotation; None where there is none, or the input is without it.
        duration_s: Length of the input.
        words: What the model says.
        user_speech: When the user speaks.
        model_speech: When the model does.
        reference: When people make back-channels, for this sample; None where that is not known.
    """

    kind: str
    event_s: tuple[float, float] | None
    duration_s: float
    words: Sequence[TimedWord]
    user_speech: Sequence[Span]
    model_speech: Sequence[Span]
    reference: Sequence[float] | None = None


def score(answer: Answer) -> Metrics:
    """What the benchmark's scripts say of an answer; their results are means over samples.

    Take-over is 0 or 1. Latency is None where the floor is not taken.
    """
    if answer.kind == "overlap":
        return _score_overlap(answer)
    if answer.kind == "backchannel":
        return _score_listening(answer)
    words, end_s = answer.words, None
    if answer.kind == "smooth_turn_taking" and answer.event_s is not None:
        end_s = answer.event_s[0]
    if answer.kind == "user_interruption" and answer.event_s is not None:
        end_s = answer.event_s[1]
        words = [word for word in words if word.start_s >= end_s]
    found: Metrics = {"fdb_take_over": (int(took_over(words)), "of samples")}
    if end_s is not None:
        found["fdb_latency_s"] = latency_s(words, end_s), "s"
    return found


def _score_listening(answer: Answer) -> Metrics:
    heard = listening(answer.model_speech, answer.words)
    rate = len(heard.backchannels) / answer.duration_s if answer.duration_s > 0 else None
    found: Metrics = {
        "fdb_take_over": (int(heard.took_over), "of samples"),
        "fdb_backchannel_rate": (rate, "1/s"),
    }
    if answer.reference is not None:
        distance = divergence(heard.backchannels, answer.duration_s, answer.reference)
        found["fdb_backchannel_divergence"] = distance, "0 to 1"
    return found


def _score_overlap(answer: Answer) -> Metrics:
    """Scores of v1.5; of the input without the overlap under names of their own."""
    prefix = "fdb" if answer.event_s is not None else "fdb_clean"
    user, model = user_turns(answer.user_speech), model_turns(answer.model_speech)
    found: Metrics = {
        f"{prefix}_stop_latency_s": (_mean_s(stops(user, model)), "s"),
        f"{prefix}_response_latency_s": (_mean_s(responses(user, model)), "s"),
    }
    if answer.event_s is None:
        found["fdb_clean_rate_wpm"] = speaking_rate_wpm(answer.words), "words/min"
        return found
    before, after = rates_around_wpm(answer.words, answer.event_s[1])
    found["fdb_rate_before_wpm"] = before, "words/min"
    found["fdb_rate_after_wpm"] = after, "words/min"
    return found


def took_over(words: Sequence[TimedWord]) -> bool:
    """Whether a model took the floor: words over a second or more, or more than three.

    Source: eval_pause_handling.py, eval_smooth_turn_taking.py, eval_user_interruption.py.

    Args:
        words: Its words; after an interruption, those after its end.
    """
    if not words:
        return False
    return words[-1].end_s - words[0].start_s >= TURN_S or len(words) > TURN_WORDS


def latency_s(words: Sequence[TimedWord], user_end_s: float) -> float | None:
    """From the end of the user's turn to the model's first word, at least 0; None if it took none.

    Source: eval_smooth_turn_taking.py, eval_user_interruption.py.
    """
    return max(0.0, words[0].start_s - user_end_s) if took_over(words) else None


def listening(speech: Sequence[Span], words: Sequence[TimedWord]) -> Listening:
    """How a model behaved while the user spoke all the time.

    Speech of more than 3 s takes the floor, as do more than two words or a second of it; a taken
    floor voids the back-channels before it. As in the source, what comes last decides.

    Source: eval_backchannel.py. Versions of it differ in whether speech that takes the floor is
    counted among the back-channels; here it is not.
    """
    took = False
    found: list[Span] = []
    for start, end in speech:
        if end - start > _FORMAL_S:
            return Listening(True, found)
        took = end - start >= TURN_S or len(words_within(words, start, end)) > BACKCHANNEL_WORDS
        if took:
            found = []
        else:
            found.append((start, end))
    return Listening(took, found)


def divergence(
    backchannels: Sequence[Span], duration_s: float, reference: Sequence[float]
) -> float:
    """How far back-channels are from when people make them: 0 is alike, 1 without any.

    Times are counted in windows of 0.2 s; the reference is stretched to as many. What is returned
    is the square root of the Jensen-Shannon divergence in nats.

    Source: eval_backchannel.py.

    Args:
        backchannels: When they were made.
        duration_s: Of the recording.
        reference: Share of listeners per window, of any number of windows.
    """
    if not backchannels:
        return 1.0
    counts = np.zeros(int(duration_s / _WINDOW_S) + 1)
    for start, end in backchannels:
        counts[int(start / _WINDOW_S) : int(end / _WINDOW_S) + 1] += 1
    places = np.linspace(0, 1, len(counts))
    stretched = np.interp(places, np.linspace(0, 1, len(reference)), np.asarray(reference, float))
    return jensen_shannon_distance(counts + _EPSILON, stretched)


def jensen_shannon_distance(ones: npt.ArrayLike, others: npt.ArrayLike) -> float:
    """Square root of the Jensen-Shannon divergence of two histograms, in nats.

    Source: Endres and Schindelin 2003, A New Metric for Probability Distributions.
    """
    one, other = (np.asarray(counts, dtype=np.float64) for counts in (ones, others))
    one, other = one / one.sum(), other / other.sum()
    middle = (one + other) / 2
    divergence = (_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2
    return math.sqrt(max(0.0, divergence))


def rates_around_wpm(
    words: Sequence[TimedWord], event_end_s: float
) -> tuple[float | None, float | None]:
    """Speaking rates before and after an overlap; None where there are no words.

    Words are parted at the start of the first one that is under way at the event's end, or begins
    after it.

    Source: eval_general_before_after.py, ``_choose_split_time_word_aligned`` and
    ``_partition_chunks_word_aligned``.
    """
    split_s = event_end_s
    if words:
        late = (word.start_s for word in words if word.end_s > event_end_s)
        split_s = next(late, words[-1].end_s)
    before = [word for word in words if word.end_s <= split_s]
    after = [word for word in words if word.end_s > split_s]
    return speaking_rate_wpm(before), speaking_rate_wpm(after)


def _mean_s(spans: Sequence[Span]) -> float | None:
    return total_s(spans) / len(spans) if spans else None


def _relative_entropy(ones: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> float:
    there = ones > 0
    return float((ones[there] * np.log(ones[there] / others[there])).sum())
