"""What the codec is trained on: crops of sentences, with the phonemes that are heard in them.

Shape letters: B recording, N sample, T frame, P phoneme position (two a frame).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from moshi_pipe_nano import domain
from moshi_pipe_nano.espeak import SAMPLE_RATE, synthesizer
from moshi_pipe_nano.noise import NoiseBeds, draw_gain
from moshi_pipe_nano.voices import ASSISTANT, Speaker, draw_speaker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from moshi_pipe_nano.espeak import Speech

FRAME_SAMPLES: Final = 1_920
POSITIONS_PER_FRAME: Final = 2
_MARGIN_S: Final = 0.5
_LOOK_BACK_S: Final = 0.04  # a phoneme is asked for when 40 ms of it and what follows were heard
_LONGEST_SALAD: Final = 7


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops and their phonemes.

    Attributes:
        pcm_BN: float32.
        phones_BP: Index of the phoneme heard at each position, 0 for none, int64.
    """

    pcm_BN: Tensor
    phones_BP: Tensor


class Pool:
    """Sentences in memory, from which crops are drawn.

    Args:
        sentences: What is said.
        symbols: Phoneme inventory; unknown ones count as none.
    """

    def __init__(self, sentences: Sequence[Speech], symbols: Sequence[str]) -> None:
        index = {symbol: i + 1 for i, symbol in enumerate(symbols)}
        self._samples = [(s.samples * 32_767).clip(-32_768, 32_767).astype(np.int16) for s in sentences]
        self._starts = [np.array([p.start_s for p in s.phones]) for s in sentences]
        self._ends = [s.phones[-1].end_s for s in sentences]
        self._labels = [np.array([index.get(p.label, 0) for p in s.phones]) for s in sentences]

    def __len__(self) -> int:
        return len(self._samples)

    def crop(
        self, which: int, start_s: float, num_frames: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """A piece of a sentence, silence beyond its ends; ``start_s`` may be negative."""
        samples = self._samples[which]
        first, size = round(start_s * SAMPLE_RATE), num_frames * FRAME_SAMPLES
        out = np.zeros(size, np.float32)
        begin, end = max(first, 0), min(first + size, len(samples))
        if end > begin:
            out[begin - first : end - first] = samples[begin:end] / np.float32(32_768)
        step_s = FRAME_SAMPLES / POSITIONS_PER_FRAME / SAMPLE_RATE
        times = start_s + np.arange(num_frames * POSITIONS_PER_FRAME) * step_s
        times = times + step_s - _LOOK_BACK_S
        inside = np.searchsorted(self._starts[which], times, side="right") - 1
        spoken = (inside >= 0) & (times < self._ends[which])
        return out, np.where(spoken, self._labels[which][inside], 0)

    def draw(
        self,
        count: int,
        num_frames: int,
        rng: np.random.Generator,
        beds: NoiseBeds | None = None,
    ) -> Batch:
        """Random crops; with noise and gain where ``beds`` are given."""
        pcm, phones = [], []
        for _ in range(count):
            which = int(rng.integers(len(self._samples)))
            length_s = len(self._samples[which]) / SAMPLE_RATE
            latest = max(length_s + _MARGIN_S - num_frames * FRAME_SAMPLES / SAMPLE_RATE, 0.0)
            x, y = self.crop(which, float(rng.uniform(-_MARGIN_S, latest)), num_frames)
            if beds is not None:
                x = x * draw_gain(rng) + beds.draw(len(x), rng)
            pcm.append(x)
            phones.append(y)
        return Batch(
            torch.from_numpy(np.stack(pcm).clip(-1, 1)), torch.from_numpy(np.stack(phones))
        )


def assistant_sentences(num_salads: int, seed: int) -> Iterator[Speech]:
    """The answers that training may see, then word salads, all in the model's voice."""
    trained = {e.answer for e in domain.exchanges() if not e.held_out_pair}
    for text in domain.answers():
        if text in trained:
            yield _say(text, ASSISTANT)
    rng = np.random.default_rng([seed, 1])
    for _ in range(num_salads):
        yield _say(_salad(rng), ASSISTANT)


def user_sentences(count: int, seed: int, *, held_out: bool = False) -> Iterator[Speech]:
    """Questions of the domain, each kind as often as another, and word salads, by many voices.

    Args:
        count: Sentences.
        seed: Of the choice of sentences and speakers.
        held_out: Take the voices that training never hears.
    """
    rng = np.random.default_rng([seed, 2])
    asked = {k: [e for e in domain.exchanges() if e.kind == k and e.trained] for k in domain.KINDS}
    for _ in range(count):
        if rng.random() < 0.3:
            text = _salad(rng)
        else:
            kind = domain.KINDS[rng.integers(len(domain.KINDS))]
            text = asked[kind][rng.integers(len(asked[kind]))].question
        yield _say(text, draw_speaker(rng, held_out=held_out))


def phone_symbols() -> tuple[str, ...]:
    """Every phoneme of the domain in both accents, sorted."""
    found: set[str] = set()
    for word in domain.vocabulary():
        for voice in ("en-us", "en"):
            found.update(p.label for p in synthesizer().say(f"the {word}", voice=voice).phones)
    return tuple(sorted(found))


def _salad(rng: np.random.Generator) -> str:
    words = domain.vocabulary()
    count = int(rng.integers(3, _LONGEST_SALAD + 1))
    return " ".join(words[i] for i in rng.integers(len(words), size=count))


def _say(text: str, speaker: Speaker) -> Speech:
    return synthesizer().say(
        text, voice=speaker.voice, speed=speaker.speed, pitch=speaker.pitch
    )
