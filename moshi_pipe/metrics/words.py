"""Words with times, and how fast they are spoken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word on a time line.

    Attributes:
        text: The word.
        start_s: When it begins, in seconds.
        end_s: When it ends.
    """

    text: str
    start_s: float
    end_s: float


def speaking_rate_wpm(words: Sequence[TimedWord]) -> float | None:
    """Words per minute from the start of the first word to the end of the last, pauses included.

    Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/evaluation/eval_general_before_after.py,
    ``_wpm_speech_only``.

    Returns:
        None where there are no words, or they take no time.
    """
    if not words or words[-1].end_s <= words[0].start_s:
        return None
    return 60.0 * len(words) / (words[-1].end_s - words[0].start_s)


def articulation_rate_wpm(num_words: int, speech_s: float) -> float | None:
    """Words per minute of speech, pauses left out.

    Source: Goldman-Eisler 1968, Psycholinguistics: articulation rate, as against speech rate.

    Args:
        num_words: Spoken in that time.
        speech_s: Seconds of speech without its pauses.
    """
    return 60.0 * num_words / speech_s if num_words and speech_s > 0 else None


def words_within(words: Sequence[TimedWord], start_s: float, end_s: float) -> list[TimedWord]:
    """Words of which some part lies inside ``[start_s, end_s]``."""
    return [word for word in words if word.start_s <= end_s and word.end_s > start_s]
