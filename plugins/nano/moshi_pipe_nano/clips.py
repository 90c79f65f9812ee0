"""Conversations put together from the codes of single sentences: a cheap form of ``stage=codes``.

Every sentence is encoded once, with a little noise or silence around it, instead of every
conversation with all its silence; then any number of conversations costs nothing. What the codec
remembers across the seams, and echoes, are lost.

Shape letters: B recording, K codebook, N sample, T frame.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from moshi_pipe_nano.codec_data import (
    FRAME_SAMPLES,
    Pool,
    assistant_lines,
    phone_symbols,
    user_lines,
)
from moshi_pipe_nano.codes import CODES, Codes, load_net, save_arrays, write_questions
from moshi_pipe_nano.conversation import Plan, Planner, Stage
from moshi_pipe_nano.noise import NoiseBeds, draw_gain
from moshi_pipe_nano.run import pick_device, set_up_torch
from moshi_pipe_nano.synthesis import speak_all

if TYPE_CHECKING:
    import numpy.typing as npt

    from moshi_pipe_nano.mimi_net import MimiNet
    from moshi_pipe_nano.options import Options

_LEAD: Final = 5  # frames before a sentence that are encoded with it
_SHOWN_LEAD: Final = 1  # of them, those that are used
_TAIL: Final = 3  # frames after it
_BEDS: Final = 48  # recordings of nothing but noise
_BATCH: Final = 16
_PHASES: Final = 8  # places within a frame at which a question may begin


@dataclass(frozen=True, slots=True)
class Clips:
    """The sentences of one pool, encoded.

    Attributes:
        codes: ``[K, T]`` int16 each, from :data:`_LEAD` frames before the frame of its first
            sample.
        phases: Sample within a frame at which each begins.
    """

    codes: list[npt.NDArray[np.int16]]
    phases: npt.NDArray[np.int64]


def write_clips(options: Options) -> int:
    """Speak and encode sentences, and write conversations of them as :func:`write_codes` does."""
    set_up_torch(options.threads)
    device, net = pick_device(options.device), load_net(options)
    codec, symbols = options.codec, phone_symbols()
    beds = NoiseBeds(options.seed, device)
    rng = np.random.default_rng([options.seed, 12])
    noise = _encode_sound(net, beds.draw(_BEDS, options.data.num_frames * FRAME_SAMPLES, rng))
    silence = torch.zeros(1, options.data.num_frames * FRAME_SAMPLES, device=device)
    still = _encode_sound(net, silence)[0]
    own_lines = assistant_lines(codec.num_salads, options.seed)
    own = Pool(speak_all(own_lines, options.workers), symbols, device)
    own_clips = _encode(net, own, rng, None)
    write_questions(options, own, symbols, net)
    user_texts = user_lines(codec.num_user_sentences, options.seed, salads=False)
    user = Pool(speak_all(user_texts, options.workers), symbols, device)
    user_clips = _encode(net, user, rng, beds)
    maker = Assembler(own, user, (own_clips, user_clips), still, noise, options)
    rows = [maker.conversation(i) for i in range(options.data.num_conversations)]
    joined = {f.name: np.stack([getattr(row, f.name) for row in rows]) for f in fields(Codes)}
    save_arrays(Path(options.out) / CODES, Codes(**joined))
    return len(rows)


class Assembler:
    """Puts conversations together.

    Args:
        own: The model's sentences.
        user: The user's.
        clips: Of both pools.
        still: Codes of silence ``[K, T]``.
        noise: Codes of the user's silence ``[B, K, T]``.
        options: Of the whole command.
    """

    def __init__(
        self,
        own: Pool,
        user: Pool,
        clips: tuple[Clips, Clips],
        still: npt.NDArray[np.int16],
        noise: npt.NDArray[np.int16],
        options: Options,
    ) -> None:
        self._num_frames, self._seed = options.data.num_frames, options.seed
        self._planner = Planner(own, user, self._num_frames)
        self._stage = Stage(own, user, self._num_frames, options.seed)
        self._clips, self._still, self._noise = clips, still, noise

    def conversation(self, index: int) -> Codes:
        """One conversation, one row of :class:`Codes`."""
        rng = np.random.default_rng([self._seed, 13, index])
        plan = self._aligned(self._planner.draw(rng))
        own, user = self._still.copy(), self._noise[rng.integers(len(self._noise))].copy()
        for turn in plan.turns:
            row, clips = (own, user)[turn.channel], self._clips[turn.channel]
            first = turn.start // FRAME_SAMPLES - _SHOWN_LEAD
            codes = clips.codes[turn.which][:, _LEAD - _SHOWN_LEAD :]
            if turn.stop >= 0:
                codes = codes[:, : turn.stop // FRAME_SAMPLES + 1 - first]
            begin, end = max(first, 0), min(first + codes.shape[1], self._num_frames)
            if begin < end:
                row[:, begin:end] = codes[:, begin - first : end - first]
        labels = self._stage.labels(plan)
        trained = np.array(plan.text_trained)
        return Codes(own, user, labels.text, labels.heard, labels.speaking, trained)

    def _aligned(self, plan: Plan) -> Plan:
        """The same plan with every sentence where within a frame it was encoded."""
        turns = []
        for turn in plan.turns:
            phase = int(self._clips[turn.channel].phases[turn.which])
            start = turn.start // FRAME_SAMPLES * FRAME_SAMPLES + phase
            turns.append(replace(turn, start=start))
        return Plan(turns, plan.text_trained)


def _encode(net: MimiNet, pool: Pool, rng: np.random.Generator, beds: NoiseBeds | None) -> Clips:
    """Encode every sentence, those of about the same length together.

    The user's, which have noise, begin anywhere within a frame, the model's with one.
    """
    places = 1 if beds is None else _PHASES
    phases = rng.integers(places, size=len(pool)) * (FRAME_SAMPLES // places)
    sizes = (phases + pool.lengths) // FRAME_SAMPLES + 1 + _LEAD + _TAIL
    found: dict[int, npt.NDArray[np.int16]] = {}
    order = np.argsort(sizes, kind="stable")
    for begin in range(0, len(order), _BATCH):
        which = order[begin : begin + _BATCH]
        num_frames = int(sizes[which].max())
        start = torch.from_numpy(-(_LEAD * FRAME_SAMPLES + phases[which]))
        at = torch.from_numpy(which).to(pool.device)
        sound_BN = pool.crop(at, start.to(pool.device), num_frames).pcm_BN
        if beds is not None:
            gain = torch.from_numpy(draw_gain(rng, len(which))).to(pool.device)
            sound_BN = sound_BN * gain[:, None] + beds.draw(len(which), sound_BN.shape[1], rng)
        codes = _encode_sound(net, sound_BN.clamp(-1, 1))
        for i, row in zip(which, codes, strict=True):
            found[int(i)] = row[:, : sizes[i]]
    return Clips([found[i] for i in range(len(pool))], phases)


@torch.no_grad()
def _encode_sound(net: MimiNet, sound_BN: torch.Tensor) -> npt.NDArray[np.int16]:
    codes_BKT = net.quantize(net.encode(sound_BN)).codes_BKT
    found: npt.NDArray[np.int16] = codes_BKT.to(torch.int16).cpu().numpy()
    return found
