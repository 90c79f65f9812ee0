"""The conversations as codes: what the language model is trained on.

Shape letters: B conversation, K codebook, T frame.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from moshi_pipe_nano.codec_data import Pool, user_lines
from moshi_pipe_nano.codec_train import CHECKPOINT, CodecPools, make_pools
from moshi_pipe_nano.conversation import OWN, USER, Planner, Stage
from moshi_pipe_nano.mimi_net import MimiNet
from moshi_pipe_nano.run import load, pick_device, set_up_torch
from moshi_pipe_nano.shapes import mimi_spec
from moshi_pipe_nano.synthesis import speak_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from moshi_pipe_nano.conversation import Plan
    from moshi_pipe_nano.options import Options

CODES: Final = "codes.npz"
QUESTIONS: Final = "questions.npz"
QUESTION_FRAMES: Final = 96


@dataclass(frozen=True, slots=True)
class Codes:
    """Conversations, one row each.

    Attributes:
        own: ``[B, K, T]`` int16.
        user: ``[B, K, T]`` int16.
        text: ``[B, T]`` int16.
        heard: ``[B, T]`` int16.
        speaking: ``[B, T]`` bool.
        text_trained: ``[B]`` bool.
    """

    own: npt.NDArray[np.int16]
    user: npt.NDArray[np.int16]
    text: npt.NDArray[np.int16]
    heard: npt.NDArray[np.int16]
    speaking: npt.NDArray[np.bool_]
    text_trained: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.own)


@dataclass(frozen=True, slots=True)
class Questions:
    """Single questions that training never heard, for measurements.

    Attributes:
        user: ``[B, K, T]`` int16.
        end_frame: ``[B]``: the frame in which the question ends.
        exchange: ``[B]``: index of what is asked.
        held_out: ``[B]``: whether the pair or the phrasing was never trained.
    """

    user: npt.NDArray[np.int16]
    end_frame: npt.NDArray[np.int64]
    exchange: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.bool_]


def load_net(options: Options) -> MimiNet:
    """The folder's codec.

    Raises:
        FileNotFoundError: No codec was trained yet.
    """
    path = Path(options.out) / CHECKPOINT
    state = load(path)
    if state is None and options.codec_from:
        state = load(Path(options.codec_from))
    if state is None:
        raise FileNotFoundError(f"{path}: run stage=codec first")
    net = MimiNet(mimi_spec(options.codec))
    net.load_state_dict(state["net"])
    return net.place(pick_device(options.device))


def write_codes(options: Options, pools: CodecPools | None = None) -> int:
    """Encode conversations and questions into the folder; returns how many there was time for."""
    set_up_torch(options.threads)
    device = pick_device(options.device)
    pools = pools or make_pools(options, device)
    net = load_net(options)
    folder, data = Path(options.out), options.data
    write_questions(options, pools.own, pools.symbols, net)
    planner = Planner(pools.own, pools.user, data.num_frames)
    stage = Stage(pools.own, pools.user, data.num_frames, options.seed)
    begun, parts = time.monotonic(), []
    for first in range(0, data.num_conversations, data.batch):
        rng = np.random.default_rng([options.seed, 6, first])
        count = min(data.batch, data.num_conversations - first)
        parts.append(_encode(net, stage, [planner.draw(rng) for _ in range(count)], rng))
        if 0 < data.seconds < time.monotonic() - begun:
            break
    joined = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Codes)}
    save_arrays(folder / CODES, Codes(**joined))
    return len(joined["text"])


def save_arrays(path: Path, record: Codes | Questions) -> None:
    """Write a record's arrays under their names."""
    with path.open("wb") as file:
        np.savez(file, **{f.name: getattr(record, f.name) for f in fields(record)})


def load_codes(path: Path) -> Codes:
    """Read what :func:`write_codes` wrote."""
    with np.load(path) as arrays:
        return Codes(**{f.name: arrays[f.name] for f in fields(Codes)})


def load_questions(path: Path) -> Questions:
    """Read what :func:`write_codes` wrote."""
    with np.load(path) as arrays:
        return Questions(**{f.name: arrays[f.name] for f in fields(Questions)})


def write_questions(options: Options, own: Pool, symbols: Sequence[str], net: MimiNet) -> None:
    """Encode questions that only measure, all by voices that training never hears.

    Half of them are of trained exchanges, half of others.

    Args:
        options: Of the whole command.
        own: The model's sentences.
        symbols: Phoneme inventory.
        net: The codec.
    """
    half = options.data.num_validation // 2
    lines = user_lines(half, options.seed + 2, held_out=True, salads=False)
    lines += user_lines(half, options.seed + 2, held_out=True, salads=False, unknown=True)
    user = Pool(speak_all(lines, options.workers), symbols, own.device)
    planner = Planner(own, user, QUESTION_FRAMES)
    stage = Stage(own, user, QUESTION_FRAMES, options.seed + 2)
    rng = np.random.default_rng([options.seed, 7])
    plans = [planner.single(i, rng) for i in range(len(lines))]
    parts = [
        _encode(net, stage, plans[first : first + options.data.batch], rng)
        for first in range(0, len(plans), options.data.batch)
    ]
    ends = [int(p.turns[0].start + user.lengths[i]) // 1_920 for i, p in enumerate(plans)]
    found = Questions(
        np.concatenate([part.user for part in parts]),
        np.array(ends),
        np.array([line.exchange for line in lines]),
        np.arange(len(lines)) >= half,
    )
    save_arrays(Path(options.out) / QUESTIONS, found)


@torch.no_grad()
def _encode(net: MimiNet, stage: Stage, plans: list[Plan], rng: np.random.Generator) -> Codes:
    sound_BCN = stage.sound(plans, rng)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    codes = net.quantize(net.encode(sound_BCN.flatten(0, 1))).codes_BKT
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    found = codes.to(torch.int16).cpu().numpy().reshape(len(plans), 2, *codes.shape[1:])
    labels = [stage.labels(plan) for plan in plans]
    return Codes(
        found[:, OWN],
        found[:, USER],
        np.stack([label.text for label in labels]),
        np.stack([label.heard for label in labels]),
        np.stack([label.speaking for label in labels]),
        np.array([plan.text_trained for plan in plans]),
    )
