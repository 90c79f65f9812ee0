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
from moshi_pipe_nano.synthesis import Line
from moshi_pipe_nano.voices import ASSISTANT, draw_speaker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from moshi_pipe_nano.synthesis import Recording

FRAME_SAMPLES: Final = 1_920
POSITIONS_PER_FRAME: Final = 2
_MARGIN_S: Final = 0.5
_LOOK_BACK_S: Final = 0.04  # a phoneme is asked for when 40 ms of it and what follows were heard
_LONGEST_SALAD: Final = 7
_GRID: Final = 120  # samples between two entries of the phoneme track, 5 ms
_SALAD_SHARE: Final = 0.3
_SUM_SHARE: Final = 0.4  # of the model's salads
_KIND_WEIGHTS: Final = {
    "sum": 0.36, "repeat": 0.22, "after": 0.12, "count": 0.07, "colour": 0.07, "name": 0.06,
    "greeting": 0.07, "goodbye": 0.03,
}  # fmt: skip


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
    """Recordings on one device, from which crops are drawn.

    Args:
        recordings: What is said.
        symbols: Phoneme inventory; unknown ones count as none.
        device: Where they are kept.
    """

    def __init__(
        self, recordings: Sequence[Recording], symbols: Sequence[str], device: torch.device
    ) -> None:
        index = {symbol: i + 1 for i, symbol in enumerate(symbols)}
        tracks = [_track(recording, index) for recording in recordings]
        lengths = [len(r.pcm) for r in recordings]
        self.lines = [r.line for r in recordings]
        self.words = [r.words for r in recordings]
        self.lengths = np.array(lengths)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])[:-1]
        self.device = device
        self.pcm = torch.from_numpy(np.concatenate([r.pcm for r in recordings])).to(device)
        self._tracks = torch.from_numpy(np.concatenate(tracks)).to(device)
        sizes = np.array([len(track) for track in tracks])
        starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        self._track_size = torch.from_numpy(sizes).to(device)
        self._track_start = torch.from_numpy(starts).to(device)
        self._length = torch.from_numpy(self.lengths).to(device)
        self._offset = torch.from_numpy(self.offsets).to(device)

    def __len__(self) -> int:
        return len(self.lines)

    def crop(self, which_B: Tensor, start_B: Tensor, num_frames: int) -> Batch:
        """Pieces of recordings, silence beyond their ends.

        Args:
            which_B: Indices of recordings, int64.
            start_B: First samples, may be negative.
            num_frames: Of each piece.
        """
        size = num_frames * FRAME_SAMPLES
        at_BN = start_B[:, None] + torch.arange(size, device=self.device)
        inside_BN = (at_BN >= 0) & (at_BN < self._length[which_B, None])
        index_BN = torch.where(inside_BN, at_BN + self._offset[which_B, None], 0)
        pcm_BN = self.pcm[index_BN].float() * inside_BN / 32_768
        step = FRAME_SAMPLES // POSITIONS_PER_FRAME
        ends_P = torch.arange(1, num_frames * POSITIONS_PER_FRAME + 1, device=self.device) * step
        heard_BP = start_B[:, None] + ends_P - round(_LOOK_BACK_S * SAMPLE_RATE)
        grid_BP = torch.div(heard_BP, _GRID, rounding_mode="floor")
        spoken_BP = (grid_BP >= 0) & (grid_BP < self._track_size[which_B, None])
        label_BP = self._tracks[
            torch.where(spoken_BP, grid_BP + self._track_start[which_B, None], 0)
        ]
        return Batch(pcm_BN, torch.where(spoken_BP, label_BP.long(), 0))

    def draw(
        self,
        count: int,
        num_frames: int,
        rng: np.random.Generator,
        beds: NoiseBeds | None = None,
    ) -> Batch:
        """Random crops; with noise and gain where ``beds`` are given."""
        which = rng.integers(len(self), size=count)
        margin = round(_MARGIN_S * SAMPLE_RATE)
        latest = np.maximum(self.lengths[which] + margin - num_frames * FRAME_SAMPLES, 0)
        start = np.floor(rng.uniform(-margin, latest + 1)).astype(np.int64)
        batch = self.crop(
            torch.from_numpy(which).to(self.device),
            torch.from_numpy(start).to(self.device),
            num_frames,
        )
        if beds is None:
            return batch
        gain = torch.from_numpy(draw_gain(rng, count)).to(self.device)
        noisy_BN = batch.pcm_BN * gain[:, None] + beds.draw(count, batch.pcm_BN.shape[1], rng)
        return Batch(noisy_BN.clamp(-1, 1), batch.phones_BP)


def assistant_lines(num_salads: int, seed: int) -> list[Line]:
    """The answers that training may see, then word salads, all in the model's voice.

    A part of the salads are sums with wrong results: a result's sound comes from its text.
    """
    trained = {e.answer for e in domain.exchanges() if not e.held_out_pair}
    lines = [Line(text, ASSISTANT) for text in domain.answers() if text in trained]
    rng = np.random.default_rng([seed, 1])
    salads = [
        _wrong_sum(rng) if rng.random() < _SUM_SHARE else _salad(rng) for _ in range(num_salads)
    ]
    return lines + [Line(text, ASSISTANT) for text in salads]


def user_lines(
    count: int,
    seed: int,
    *,
    held_out: bool = False,
    salads: bool = True,
    unknown: bool = False,
) -> list[Line]:
    """Questions of the domain and word salads, by many voices.

    Args:
        count: Lines.
        seed: Of the choice of lines and speakers.
        held_out: Take the voices that training never hears.
        salads: Mix word salads in.
        unknown: Take the exchanges that training never sees, instead of those it does.
    """
    rng = np.random.default_rng([seed, 2, int(held_out), int(unknown)])
    asked: dict[str, list[int]] = {kind: [] for kind in domain.KINDS}
    for i, exchange in enumerate(domain.exchanges()):
        if exchange.trained != unknown:
            asked[exchange.kind].append(i)
    kinds = [kind for kind in domain.KINDS if asked[kind]]
    weights = np.array([_KIND_WEIGHTS[kind] for kind in kinds])
    lines = []
    for _ in range(count):
        speaker = draw_speaker(rng, held_out=held_out)
        if salads and rng.random() < _SALAD_SHARE:
            lines.append(Line(_salad(rng), speaker))
            continue
        choices = asked[kinds[rng.choice(len(kinds), p=weights / weights.sum())]]
        which = choices[rng.integers(len(choices))]
        lines.append(Line(domain.exchanges()[which].question, speaker, which))
    return lines


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


def _wrong_sum(rng: np.random.Generator) -> str:
    first, second = (int(x) for x in rng.integers(10, size=2))
    results = [word for n, word in enumerate(domain.NUMBERS) if n != first + second]
    result = results[rng.integers(len(results))]
    return f"{domain.NUMBERS[first]} plus {domain.NUMBERS[second]} is {result}"


def _track(
    recording: Recording, index: dict[str, int]
) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Phoneme at each step of the grid until the last one ends."""
    phones = recording.phones
    times = np.arange(int(phones[-1].end_s * SAMPLE_RATE / _GRID) + 1) * _GRID / SAMPLE_RATE
    starts = np.array([phone.start_s for phone in phones])
    labels = np.array([index.get(phone.label, 0) for phone in phones], np.uint8)
    inside = np.searchsorted(starts, times, side="right") - 1
    return np.where(inside >= 0, labels[inside.clip(0)], 0).astype(np.uint8)
