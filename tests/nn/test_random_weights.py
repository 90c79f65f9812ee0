"""Models of random weights are alive: codes and tokens vary, the sound is audible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from moshi_pipe.models.checkpoint import ModelOptions, open_checkpoint
from moshi_pipe.models.protocols import Controls
from moshi_pipe.nn.load import load_lm, load_mimi
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi

if TYPE_CHECKING:
    from torch import Tensor

ONE = torch.ones(1, dtype=torch.bool)
FRAMES = 75  # 6 s


def voiced(num_samples: int, level: float) -> Tensor:
    """A voice-like buzz: harmonics of a gliding pitch, in syllables of a quarter second."""
    t = torch.arange(num_samples, dtype=torch.float64) / 24_000
    phase = 2 * torch.pi * (120 * t + 15 * torch.sin(2 * torch.pi * 0.7 * t))
    sound = sum(torch.sin(k * phase) / k for k in range(1, 20))
    syllables = torch.sin(2 * torch.pi * 2 * t).clamp(min=0)
    return (level * sound * syllables).float()


@pytest.fixture(scope="module")
def codec() -> Mimi:
    checkpoint = open_checkpoint(ModelOptions(), parts=("mimi",))
    assert checkpoint.mimi is not None
    with torch.device("meta"):
        mimi = Mimi(checkpoint.mimi)
    load_mimi(checkpoint, mimi)
    return mimi


def encoded(codec: Mimi, level: float) -> Tensor:
    """Codes ``[T, K]`` of a voice-like sound."""
    pcm = voiced(FRAMES * 1920, level).view(FRAMES, 1, 1, 1920)
    state = codec.new_encoder_state(1)
    return torch.cat([codec.encode(frame, ONE, state).clone() for frame in pcm])


@pytest.mark.parametrize("level", [0.2, 0.01], ids=["loud", "quiet"])
def test_every_codebook_uses_many_values(codec: Mimi, level: float) -> None:
    codes_TK = encoded(codec, level)

    assert min(len(set(column.tolist())) for column in codes_TK.T) > FRAMES / 3


def test_codes_decode_to_a_sound_that_is_neither_silent_nor_clipped(codec: Mimi) -> None:
    state = codec.new_decoder_state(1)

    frames = [codec.decode(row[None], ONE, state).clone() for row in encoded(codec, 0.1)]

    sound = torch.cat(frames, dim=-1)
    assert 0.05 < sound.std().item() < 0.3
    assert sound.abs().max().item() < 1
    assert abs(sound.mean().item()) < 0.02


def test_greedy_text_and_codes_vary(codec: Mimi) -> None:
    checkpoint = open_checkpoint(ModelOptions(), parts=("lm",))
    assert checkpoint.config.lm is not None
    with torch.device("meta"):
        lm = Moshi(checkpoint.config.lm)
    load_lm(checkpoint, lm)
    state = lm.new_state(1)
    zero, none = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    controls = Controls(zero, zero, none, none)
    own = torch.tensor([[512, *[256] * 8]])
    said = []

    for heard in encoded(codec, 0.1):
        step = lm.step(torch.cat([own, heard[None]], dim=-1), ONE, controls, state)
        own = torch.cat([step.text_B[:, None], step.codes_BK], dim=-1).clone()
        said.append(own[0])

    columns = torch.stack(said).T
    assert min(len(set(column.tolist())) for column in columns) > FRAMES / 4
