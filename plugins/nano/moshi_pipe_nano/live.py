"""Questions spoken to a loaded model, as a user's microphone would give them.

The voices are those that training never heard. What is measured is what leaves the model: its text,
and when its sound is louder than silence.

Shape letters: N sample, T frame.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from moshi_pipe_nano import domain
from moshi_pipe_nano.codec_data import FRAME_SAMPLES, user_lines
from moshi_pipe_nano.espeak import SAMPLE_RATE
from moshi_pipe_nano.noise import NoiseBeds, draw_gain
from moshi_pipe_nano.synthesis import speak_all

if TYPE_CHECKING:
    import numpy.typing as npt

    from moshi_pipe.api import Conversation, Frame, Model
    from moshi_pipe_nano.synthesis import Recording

ANSWER_S: Final = 5.0
"""For how long the model is listened to after a question has ended."""

_LEAD_S: Final = (0.4, 0.9)
_BLOCK: Final = 480  # samples that are loud or not
_AROUND: Final = 5  # blocks that are kept around what is said
_LOUD: Final = 0.01  # rms of a block; the model's voice is near 0.1
_INTERRUPT_AFTER_S: Final = 0.6
_PAUSE_S: Final = 0.3  # so much silence is the end of speech
_LONG_WORDS: Final = 5


@dataclass(frozen=True, slots=True)
class Question:
    """A question as it is heard.

    Attributes:
        pcm: float32 ``[N]`` at 24 kHz, noise and silence around it included.
        start_s: Where it begins.
        end_s: Where its last word ends.
        exchange: What is asked.
    """

    pcm: npt.NDArray[np.float32]
    start_s: float
    end_s: float
    exchange: domain.Exchange


@dataclass(slots=True)
class Answer:
    """What the model did.

    Attributes:
        text: Its text stream, written.
        pcm: float32 ``[N]`` on the time line of the question.
        frame_ms: Time of each frame.
    """

    text: str = ""
    pcm: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    frame_ms: list[float] = field(default_factory=list)


def questions(count: int, seed: int, *, unknown: bool) -> list[Question]:
    """Questions by held-out voices; ``unknown`` ones are of exchanges that training never saw."""
    lines = user_lines(count, seed, held_out=True, salads=False, unknown=unknown)
    rng = np.random.default_rng([seed, 11, int(unknown)])
    beds = NoiseBeds(seed + 1, torch.device("cpu"))
    return [_heard(recording, rng, beds) for recording in speak_all(lines, workers=1)]


def long_questions(count: int, seed: int) -> list[Question]:
    """Questions whose answers are long enough to be interrupted: countings and sums."""
    found = [
        q
        for q in questions(count * 4, seed, unknown=False)
        if len(q.exchange.answer.split()) >= _LONG_WORDS
    ]
    return found[:count]


def ask(model: Model, question: Question, seed: int) -> Answer:
    """Ask in a session of its own, and listen."""
    taker = _Taker()
    with model.session(seed=seed) as session:
        for frame_N in _frames(question.pcm):
            taker.feed(session, frame_N)
    return taker.answer()


def interrupt(model: Model, question: Question, second: Question, seed: int) -> float | None:
    """Ask, and speak over the answer.

    Returns:
        Seconds from the second question's first sound until the model is silent, infinity if it
        speaks on; None where there was no answer to interrupt.
    """
    taker = _Taker()
    with model.session(seed=seed) as session:
        for frame_N in _frames(question.pcm):
            taker.feed(session, frame_N)
            pcm_N = taker.answer().pcm
            now_s = len(pcm_N) / SAMPLE_RATE
            onset_s = onset_after(pcm_N, question.end_s)
            if onset_s is not None and now_s - onset_s >= _INTERRUPT_AFTER_S:
                break
        else:
            return None
        over_N = second.pcm[round(second.start_s * SAMPLE_RATE) :]
        for frame_N in _frames(over_N):
            taker.feed(session, frame_N)
    return _silent_after_s(taker.answer().pcm[round(now_s * SAMPLE_RATE) :])


def loud_blocks(pcm_N: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which blocks of 20 ms hold sound."""
    whole = pcm_N[: len(pcm_N) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    loud: npt.NDArray[np.bool_] = np.sqrt(np.square(whole).mean(1)) > _LOUD
    return loud


def onset_after(pcm_N: npt.NDArray[np.float32], start_s: float) -> float | None:
    """Where the first sound from ``start_s`` on begins, in seconds; None if there is none."""
    first = int(start_s * SAMPLE_RATE / _BLOCK)
    loud = np.flatnonzero(loud_blocks(pcm_N)[first:])
    return float(first + loud[0]) * _BLOCK / SAMPLE_RATE if len(loud) else None


def spoken_part(pcm_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """From a little before the first sound to a little after the last; nothing where none is.

    The recogniser hears words in seconds of almost silence around an answer.
    """
    loud = np.flatnonzero(loud_blocks(pcm_N))
    if not len(loud):
        return pcm_N[:0]
    return pcm_N[max(loud[0] - _AROUND, 0) * _BLOCK : (loud[-1] + 1 + _AROUND) * _BLOCK]


def spoke_between(answer: Answer, start_s: float, end_s: float) -> bool:
    """Whether the model sounded within a span of time."""
    first, last = (int(s * SAMPLE_RATE / _BLOCK) for s in (start_s, end_s))
    return bool(loud_blocks(answer.pcm)[first:last].any())


class _Taker:
    """Steps a session and keeps what comes."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._pcm: list[npt.NDArray[np.float32]] = []
        self._frame_ms: list[float] = []

    def feed(self, session: Conversation, frame_N: npt.NDArray[np.float32]) -> Frame:
        begun_ns = time.perf_counter_ns()
        frame = session.feed(frame_N)
        self._frame_ms.append((time.perf_counter_ns() - begun_ns) / 1e6)
        self._text.append(frame.text)
        silence = np.zeros(FRAME_SAMPLES, np.float32)
        self._pcm.append(silence if frame.audio is None else frame.audio[0])
        return frame

    def answer(self) -> Answer:
        pcm = np.concatenate(self._pcm) if self._pcm else np.zeros(0, np.float32)
        return Answer("".join(self._text).strip(), pcm, list(self._frame_ms))


def _heard(recording: Recording, rng: np.random.Generator, beds: NoiseBeds) -> Question:
    lead = round(float(rng.uniform(*_LEAD_S)) * SAMPLE_RATE)
    gain = float(draw_gain(rng, 1)[0])
    end_s = lead / SAMPLE_RATE + recording.words[-1].end_s
    size = round((end_s + ANSWER_S) * SAMPLE_RATE)
    pcm_N = beds.draw(1, size, rng)[0].numpy()
    said_N = recording.pcm[: size - lead].astype(np.float32) * (gain / 32_768)
    pcm_N[lead : lead + len(said_N)] += said_N
    start_s = lead / SAMPLE_RATE + recording.words[0].start_s
    exchange = domain.exchanges()[recording.line.exchange]
    return Question(pcm_N.clip(-1, 1), start_s, end_s, exchange)


def _frames(pcm_N: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    whole = len(pcm_N) // FRAME_SAMPLES
    return list(pcm_N[: whole * FRAME_SAMPLES].reshape(whole, FRAME_SAMPLES))


def _silent_after_s(pcm_N: npt.NDArray[np.float32]) -> float:
    """Seconds until a pause begins; the first pause is the end of what was interrupted."""
    loud, needed = loud_blocks(pcm_N), round(_PAUSE_S * SAMPLE_RATE / _BLOCK)
    for first in range(len(loud) - needed + 1):
        if not loud[first : first + needed].any():
            return first * _BLOCK / SAMPLE_RATE
    return float("inf")
