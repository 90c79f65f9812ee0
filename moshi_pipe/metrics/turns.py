"""Turn-taking: who has the floor, who takes it, and how long that takes.

All of it follows from stretches of speech (inter-pausal units) of two speakers on one time line.
Words, where they are known, tell a word of assent from a short answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from moshi_pipe.metrics.spans import Span, between, intersection, joined
from moshi_pipe.metrics.words import TimedWord, words_within

if TYPE_CHECKING:
    from collections.abc import Sequence

# Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/evaluation/get_timing.py.
USER_PAUSE_S: Final = 0.6
"""Silence that ends a user's turn; shorter pauses belong to it."""
MODEL_PAUSE_S: Final = 0.5
"""Silence that ends a model's turn."""

# Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/evaluation/eval_smooth_turn_taking.py.
TURN_S: Final = 1.0
"""Speech from this length on takes the floor, whatever is said."""
TURN_WORDS: Final = 3
"""Shorter speech takes it with more words than this."""

# Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/evaluation/eval_backchannel.py.
BACKCHANNEL_WORDS: Final = 2
"""Words that a back-channel has at most; it is shorter than :data:`TURN_S`."""


@dataclass(frozen=True, slots=True)
class Silences:
    """Times in which nobody speaks, but for those before the first word and after the last.

    Attributes:
        user_pauses: The user spoke before and after.
        model_pauses: The model did.
        gaps: One spoke before, the other after.
    """

    user_pauses: list[Span]
    model_pauses: list[Span]
    gaps: list[Span]


def user_turns(user_speech: Sequence[Span]) -> list[Span]:
    """Turns of a user: speech with its pauses of up to :data:`USER_PAUSE_S`."""
    return joined(user_speech, USER_PAUSE_S)


def model_turns(model_speech: Sequence[Span]) -> list[Span]:
    """Turns of a model: speech with its pauses of up to :data:`MODEL_PAUSE_S`."""
    return joined(model_speech, MODEL_PAUSE_S)


def silences(user_speech: Sequence[Span], model_speech: Sequence[Span]) -> Silences:
    """Tell pauses inside one speaker's speech from gaps between two speakers.

    Where both stop or both begin at the same moment, the silence is a pause of whoever did both,
    the user first.

    Source: Heldner and Edlund 2010, Pauses, gaps and overlaps in conversations, Journal of
    Phonetics 38(4): within-speaker and between-speaker silences.
    """
    found = Silences([], [], [])
    spoken = joined([*user_speech, *model_speech])
    user_ends, user_starts = {end for _, end in user_speech}, {start for start, _ in user_speech}
    model_ends = {end for _, end in model_speech}
    model_starts = {start for start, _ in model_speech}
    for silence in between(spoken):
        if silence[0] in user_ends and silence[1] in user_starts:
            found.user_pauses.append(silence)
        elif silence[0] in model_ends and silence[1] in model_starts:
            found.model_pauses.append(silence)
        else:
            found.gaps.append(silence)
    return found


def overlaps(user_speech: Sequence[Span], model_speech: Sequence[Span]) -> list[Span]:
    """Times in which both speak.

    Source: Heldner and Edlund 2010, as :func:`silences`; between and within speakers alike.
    """
    return intersection(user_speech, model_speech)


def responses(user: Sequence[Span], model: Sequence[Span]) -> list[Span]:
    """From the end of a user's turn to the start of the model's next one, after it.

    Of user's turns that the same turn of the model follows, the last one counts. The mean length
    of these spans is the response latency.

    Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/evaluation/get_timing.py, ``response_gaps``.

    Args:
        user: Turns of the user.
        model: Turns of the model.
    """
    latest: dict[float, float] = {}
    for _, end in user:
        following = next((start for start, _ in model if start > end), None)
        if following is not None:
            latest[following] = max(end, latest.get(following, end))
    return [(end, start) for start, end in sorted(latest.items())]


def stops(user: Sequence[Span], model: Sequence[Span]) -> list[Span]:
    """Times in which both have a turn: how long the model speaks on after the user began.

    Of those that end in the same millisecond, the shortest counts. The mean length of these spans
    is the stop latency.

    Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/evaluation/get_timing.py, ``overlaps``.

    Args:
        user: Turns of the user.
        model: Turns of the model.
    """
    shortest: dict[int, Span] = {}
    for start, end in intersection(user, model):
        key = round(end * 1000)
        if key not in shortest or end - start < shortest[key][1] - shortest[key][0]:
            shortest[key] = (start, end)
    return sorted(shortest.values(), key=lambda span: span[1])


def takes_floor(turn: Span, words: Sequence[TimedWord] | None) -> bool:
    """Whether speech is more than a short sound: :data:`TURN_S` long, or of many words.

    Args:
        turn: The speech.
        words: All words of its speaker; None where they are not known.
    """
    if turn[1] - turn[0] >= TURN_S:
        return True
    return words is not None and len(words_within(words, *turn)) > TURN_WORDS


def take_overs(
    user: Sequence[Span], model: Sequence[Span], words: Sequence[TimedWord] | None = None
) -> list[Span | None]:
    """Per turn of the user, the turn of the model that takes the floor after it; None if none does.

    It begins after the user's turn began and before the user's next one does, goes on after the
    user has ended, and is more than a short sound.

    Source: take-over rate of Lin et al. 2025, Full-Duplex-Bench (arXiv:2503.04721), here for each
    turn of a session instead of one per recording.

    Args:
        user: Turns of the user.
        model: Turns of the model.
        words: The model's words; None where they are not known.
    """
    found: list[Span | None] = []
    for i, (begin, end) in enumerate(user):
        until = user[i + 1][0] if i + 1 < len(user) else float("inf")
        found.append(
            next(
                (
                    turn
                    for turn in model
                    if begin < turn[0] < until and turn[1] > end and takes_floor(turn, words)
                ),
                None,
            )
        )
    return found


def floor_transfers_s(user: Sequence[Span], taken: Sequence[Span | None]) -> list[float]:
    """From the end of a user's turn to the model's start, below zero where it began before.

    Source: floor transfer offset, de Ruiter, Mitterer and Enfield 2006, Projecting the End of a
    Speaker's Turn, Language 82(3).

    Args:
        user: Turns of the user.
        taken: What :func:`take_overs` says of them.
    """
    pairs = zip(user, taken, strict=True)
    return [turn[0] - end for (_, end), turn in pairs if turn is not None]


def backchannels(
    speech: Sequence[Span], other: Sequence[Span], words: Sequence[TimedWord] | None = None
) -> list[Span]:
    """Short sounds inside the other's turn: below :data:`TURN_S`, of two words at most.

    Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/evaluation/eval_backchannel.py, with the
    condition that the other has the floor.

    Args:
        speech: Of the one who listens.
        other: Turns of the one who speaks.
        words: Words of the one who listens; None where they are not known.
    """
    return [
        (start, end)
        for start, end in speech
        if end - start < TURN_S
        and any(begin <= start and end <= stop for begin, stop in other)
        and (words is None or len(words_within(words, start, end)) <= BACKCHANNEL_WORDS)
    ]
