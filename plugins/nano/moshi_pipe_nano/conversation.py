"""Conversations: who says what and when, as sound on two channels and as labels of each frame.

The model waits until the user's question has ended, answers, and stops when it is interrupted.
Some conversations are silent, and in some the model speaks word salads that no question asked for:
their text is not learnt, only how text sounds.

Shape letters: B conversation, C channel (0 the model, 1 the user), N sample, T frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from moshi_pipe_nano import domain, words
from moshi_pipe_nano.codec_data import FRAME_SAMPLES
from moshi_pipe_nano.espeak import SAMPLE_RATE
from moshi_pipe_nano.noise import NoiseBeds, draw_gain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from moshi_pipe_nano.codec_data import Pool

OWN, USER = 0, 1
_SILENT_SHARE: Final = 0.04
_SALAD_SHARE: Final = 0.14
_INTERRUPTED_SHARE: Final = 0.2
_ECHO_SHARE: Final = 0.15
_ECHO_DB: Final = (-45.0, -28.0)
_GAP_FRAMES: Final = (4, 7)  # whole frames of silence before an answer, the last not included
_REACTION_S: Final = (0.25, 0.45)  # from an interruption to silence
_FADE: Final = 480  # samples
_TEXT_AHEAD: Final = 1  # frames by which a word's token is ahead of its sound
_HEARD_AFTER: Final = 1  # frames from the end of a user's word to its label
_SPOKEN_TAIL_S: Final = 0.16


@dataclass(frozen=True, slots=True)
class Turn:
    """A sentence in a conversation.

    Attributes:
        channel: :data:`OWN` or :data:`USER`.
        which: Index of the recording in the channel's pool.
        start: First sample.
        stop: Sample at which it is cut off; -1 if it is not.
        gain: Factor.
    """

    channel: int
    which: int
    start: int
    stop: int = -1
    gain: float = 1.0


@dataclass(slots=True)
class Plan:
    """What happens in one conversation.

    Attributes:
        turns: In order of time.
        text_trained: Whether its text is learnt.
        echo: Factor of the model's own voice in the user's channel.
    """

    turns: list[Turn] = field(default_factory=list)
    text_trained: bool = True
    echo: float = 0.0


@dataclass(frozen=True, slots=True)
class Labels:
    """What is true of each frame; int16 and bool ``[T]``.

    Attributes:
        text: The model's text stream.
        heard: The user's words, shortly after each ended.
        speaking: Whether the model's voice sounds.
    """

    text: npt.NDArray[np.int16]
    heard: npt.NDArray[np.int16]
    speaking: npt.NDArray[np.bool_]


class Planner:
    """Draws conversations from two pools.

    Args:
        own: The model's sentences.
        user: The user's; those without an exchange are left out.
        num_frames: Of a conversation.
    """

    def __init__(self, own: Pool, user: Pool, num_frames: int) -> None:
        self._own, self._user = own, user
        self._size = num_frames * FRAME_SAMPLES
        self._by_text = {line.text: i for i, line in enumerate(own.lines)}
        answers = set(domain.answers())
        self._salads = [i for i, line in enumerate(own.lines) if line.text not in answers]
        self._questions = [i for i, line in enumerate(user.lines) if line.exchange >= 0]

    def draw(self, rng: np.random.Generator) -> Plan:
        """One conversation."""
        kind = rng.random()
        if kind < _SILENT_SHARE:
            return Plan()
        if kind < _SILENT_SHARE + _SALAD_SHARE and self._salads:
            return self._monologue(rng)
        plan = Plan()
        if rng.random() < _ECHO_SHARE:
            plan.echo = float(10 ** (rng.uniform(*_ECHO_DB) / 20))
        at = _samples(rng.uniform(0.15, 1.6))
        while at < self._size - SAMPLE_RATE:
            question = self._questions[rng.integers(len(self._questions))]
            at = self._exchange(plan, question, at, rng)
        return plan

    def single(self, question: int, rng: np.random.Generator) -> Plan:
        """A conversation of one question, for measurements; its answer is not spoken."""
        start = _samples(rng.uniform(0.3, 0.8))
        return Plan([Turn(USER, question, start, gain=float(draw_gain(rng, 1)[0]))])

    def _exchange(self, plan: Plan, question: int, at: int, rng: np.random.Generator) -> int:
        """Add a question and its answer; returns where the next question begins."""
        plan.turns.append(Turn(USER, question, at, gain=float(draw_gain(rng, 1)[0])))
        end = at + int(self._user.lengths[question])
        answer = self._answer(question)
        start = _answer_start(end, rng)
        stop = start + int(self._own.lengths[answer])
        if rng.random() < _INTERRUPTED_SHARE and stop - start > SAMPLE_RATE:
            onset = start + _samples(rng.uniform(0.3, (stop - start) / SAMPLE_RATE - 0.5))
            cut = onset + _samples(rng.uniform(*_REACTION_S))
            plan.turns.append(Turn(OWN, answer, start, stop=min(cut, stop)))
            return onset
        plan.turns.append(Turn(OWN, answer, start))
        return stop + _samples(rng.uniform(0.3, 2.0))

    def _answer(self, question: int) -> int:
        exchange = domain.exchanges()[self._user.lines[question].exchange]
        return self._by_text[exchange.answer]

    def _monologue(self, rng: np.random.Generator) -> Plan:
        plan, at = Plan(text_trained=False), _samples(rng.uniform(0.2, 1.0))
        while at < self._size - SAMPLE_RATE // 2:
            which = self._salads[rng.integers(len(self._salads))]
            start = _answer_start(at, rng)
            plan.turns.append(Turn(OWN, which, start))
            at = start + int(self._own.lengths[which]) + _samples(rng.uniform(0.2, 0.8))
        return plan


class Stage:
    """Makes sound and labels of plans.

    Args:
        own: The model's sentences.
        user: The user's.
        num_frames: Of a conversation.
        seed: Of the noise.
    """

    def __init__(self, own: Pool, user: Pool, num_frames: int, seed: int) -> None:
        self._pools = (own, user)
        self._num_frames = num_frames
        self._beds = NoiseBeds(seed, own.device)

    def sound(self, plans: Sequence[Plan], rng: np.random.Generator) -> Tensor:
        """Both channels ``[B, C, N]``, float32; the user's is noisy."""
        size = self._num_frames * FRAME_SAMPLES
        out = torch.zeros(len(plans), 2, size, device=self._pools[OWN].device)
        for row, plan in zip(out, plans, strict=True):
            for turn in plan.turns:
                self._place(row[turn.channel], turn)
        echo = torch.tensor([plan.echo for plan in plans], device=out.device)
        out[:, USER] += out[:, OWN] * echo[:, None]
        out[:, USER] += self._beds.draw(len(plans), size, rng)
        return out.clamp_(-1, 1)

    def labels(self, plan: Plan) -> Labels:
        """Labels of every frame."""
        text = np.full(self._num_frames, words.PADDING, np.int16)
        heard = np.full(self._num_frames, words.PADDING, np.int16)
        speaking = np.zeros(self._num_frames, np.bool_)
        for turn in plan.turns:
            start_s, spans = turn.start / SAMPLE_RATE, self._pools[turn.channel].words[turn.which]
            if turn.channel == USER:
                for span in spans:
                    at = _frame(start_s + span.end_s) + _HEARD_AFTER
                    if at < self._num_frames:
                        heard[at] = words.token(span.label)
                continue
            stop_s = turn.stop / SAMPLE_RATE if turn.stop >= 0 else np.inf
            for span in spans:
                if start_s + span.start_s < stop_s - 0.08:
                    _write_word(text, _frame(start_s + span.start_s) - _TEXT_AHEAD, span.label)
            end_s = min(start_s + spans[-1].end_s + _SPOKEN_TAIL_S, stop_s + _SPOKEN_TAIL_S)
            speaking[_frame(start_s) : _frame(end_s) + 1] = True
        return Labels(text, heard, speaking)

    def alignments(self, plan: Plan) -> list[list[Any]]:
        """The model's words as moshi-finetune writes them: word, times in seconds, speaker."""
        found: list[list[Any]] = []
        for turn in plan.turns:
            speaker = ("SPEAKER_MAIN", "SPEAKER_USER")[turn.channel]
            stop_s = turn.stop / SAMPLE_RATE if turn.stop >= 0 else np.inf
            for span in self._pools[turn.channel].words[turn.which]:
                start_s = turn.start / SAMPLE_RATE + span.start_s
                end_s = min(turn.start / SAMPLE_RATE + span.end_s, stop_s)
                if start_s < end_s:
                    found.append([span.label, [round(start_s, 3), round(end_s, 3)], speaker])
        return sorted(found, key=lambda word: (word[1][0], word[2]))

    def _place(self, channel: Tensor, turn: Turn) -> None:
        pool = self._pools[turn.channel]
        offset, length = int(pool.offsets[turn.which]), int(pool.lengths[turn.which])
        stop = turn.start + length if turn.stop < 0 else min(turn.stop, turn.start + length)
        stop = min(stop, len(channel))
        if stop <= turn.start:
            return
        piece = pool.pcm[offset : offset + stop - turn.start].float() * (turn.gain / 32_768)
        if turn.stop >= 0:
            fade = min(_FADE, len(piece))
            piece[-fade:] *= torch.linspace(1, 0, fade, device=piece.device)
        channel[turn.start : stop] += piece


def _answer_start(end: int, rng: np.random.Generator) -> int:
    """Where an answer to what ends there begins: with a frame, so that each has one form only."""
    return (-(-end // FRAME_SAMPLES) + int(rng.integers(*_GAP_FRAMES))) * FRAME_SAMPLES


def _write_word(text: npt.NDArray[np.int16], at: int, word: str) -> None:
    """Write a word where no other is, and mark the frame before it."""
    at = max(at, 0)
    while at < len(text) and text[at] >= words.FIRST_WORD:
        at += 1
    if at < len(text):
        text[at] = words.token(word)
        if at > 0 and text[at - 1] == words.PADDING:
            text[at - 1] = words.WORD_START


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _frame(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE / FRAME_SAMPLES + 1e-6)
