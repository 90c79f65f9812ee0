"""What is measured of a session, by name: values with units, and where they come from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moshi_pipe.metrics import turns
from moshi_pipe.metrics.spans import Span, total_s
from moshi_pipe.metrics.words import TimedWord, articulation_rate_wpm, speaking_rate_wpm

if TYPE_CHECKING:
    from collections.abc import Sequence

Metrics = dict[str, tuple[float | None, str]]
"""Value and unit by name; None where there is nothing to measure."""


@dataclass(slots=True)
class Conversation:
    """Two speakers on the time line of the input.

    Attributes:
        duration_s: Length of the session.
        user_speech: When the user speaks; None where it was not listened to.
        model_speech: When the model does; None where it has no voice.
        user_words: What the user says; None where it is not known.
        model_words: What the model says; None where it says nothing in writing.
    """

    duration_s: float
    user_speech: list[Span] | None = None
    model_speech: list[Span] | None = None
    user_words: list[TimedWord] | None = None
    model_words: list[TimedWord] | None = None

    @property
    def user_turns(self) -> list[Span]:
        """Turns of the user."""
        return turns.user_turns(self.user_speech or [])

    @property
    def model_turns(self) -> list[Span]:
        """Turns of the model."""
        return turns.model_turns(self.model_speech or [])


@dataclass(slots=True)
class Events:
    """What happened when.

    Attributes:
        responses: From the end of a user's turn to the model's next one.
        stops: Both have a turn.
        overlaps: Both speak.
        gaps: Nobody does, between two speakers.
        user_pauses: Nobody does, between two words of the user.
        model_pauses: Likewise, of the model.
        user_backchannels: Short sounds of the user while the model has the floor.
        model_backchannels: Likewise, of the model.
    """

    responses: list[Span] = field(default_factory=list)
    stops: list[Span] = field(default_factory=list)
    overlaps: list[Span] = field(default_factory=list)
    gaps: list[Span] = field(default_factory=list)
    user_pauses: list[Span] = field(default_factory=list)
    model_pauses: list[Span] = field(default_factory=list)
    user_backchannels: list[Span] = field(default_factory=list)
    model_backchannels: list[Span] = field(default_factory=list)


def turn_events(heard: Conversation) -> Events:
    """What happened between two speakers; see :mod:`moshi_pipe.metrics.turns`."""
    user, model = heard.user_speech or [], heard.model_speech or []
    silent = turns.silences(user, model)
    return Events(
        turns.responses(heard.user_turns, heard.model_turns),
        turns.stops(heard.user_turns, heard.model_turns),
        turns.overlaps(user, model),
        silent.gaps,
        silent.user_pauses,
        silent.model_pauses,
        turns.backchannels(user, heard.model_turns, heard.user_words),
        turns.backchannels(model, heard.user_turns, heard.model_words),
    )


def turn_metrics(heard: Conversation, events: Events) -> Metrics:
    """Speech of each speaker, and turn-taking where there are two.

    Args:
        heard: The speakers.
        events: What :func:`turn_events` gives.
    """
    found: Metrics = {"duration_s": (heard.duration_s, "s")}
    for name, speech, own, pauses in (
        ("user", heard.user_speech, heard.user_turns, events.user_pauses),
        ("model", heard.model_speech, heard.model_turns, events.model_pauses),
    ):
        if speech is None:
            continue
        found[f"{name}_speech_s"] = total_s(speech), "s"
        found[f"{name}_turns"] = len(own), "turns"
        found[f"{name}_pauses"] = len(pauses), "pauses"
        found[f"{name}_pause_s"] = _mean_length_s(pauses), "s"
    if heard.user_speech is None or heard.model_speech is None:
        return found
    taken = turns.take_overs(heard.user_turns, heard.model_turns, heard.model_words)
    transfers = turns.floor_transfers_s(heard.user_turns, taken)
    minutes = heard.duration_s / 60
    return found | {
        "response_latency_s": (_mean_length_s(events.responses), "s"),
        "first_response_s": (_length_s(events.responses[:1]), "s"),
        "take_over_rate": (_mean([turn is not None for turn in taken]), "of user turns"),
        "floor_transfer_s": (_mean(transfers), "s"),
        "stop_latency_s": (_mean_length_s(events.stops), "s"),
        "overlaps": (len(events.overlaps), "overlaps"),
        "overlap_s": (total_s(events.overlaps), "s"),
        "overlap_share": (_ratio(total_s(events.overlaps), heard.duration_s), "of the session"),
        "gaps": (len(events.gaps), "gaps"),
        "gap_s": (_mean_length_s(events.gaps), "s"),
        "user_backchannels": (len(events.user_backchannels), "back-channels"),
        "model_backchannels": (len(events.model_backchannels), "back-channels"),
        "model_backchannel_rate": (_ratio(len(events.model_backchannels), minutes), "1/min"),
    }


def word_metrics(heard: Conversation) -> Metrics:
    """How much is said, and how fast."""
    found: Metrics = {}
    for name, words, speech in (
        ("user", heard.user_words, heard.user_speech),
        ("model", heard.model_words, heard.model_speech),
    ):
        if words is None:
            continue
        found[f"{name}_words"] = len(words), "words"
        found[f"{name}_speaking_rate_wpm"] = speaking_rate_wpm(words), "words/min"
        if speech is not None:
            rate = articulation_rate_wpm(len(words), total_s(speech))
            found[f"{name}_articulation_rate_wpm"] = rate, "words/min"
    return found


def to_json(metrics: Metrics) -> dict[str, dict[str, Any]]:
    """Metrics as they are written: numbers that are none, or are infinite, become null."""
    return {
        name: {"value": _rounded(value), "unit": unit} for name, (value, unit) in metrics.items()
    }


def spans_to_json(spans: Sequence[Span]) -> list[list[float]]:
    """Spans as they are written, to the millisecond."""
    return [[round(start, 3), round(end, 3)] for start, end in spans]


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else round(value, 6)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _length_s(spans: Sequence[Span]) -> float | None:
    return total_s(spans) if spans else None


def _mean_length_s(spans: Sequence[Span]) -> float | None:
    return _mean([end - start for start, end in spans])


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
