"""A training that carries on from released weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
import torch
from moshi_pipe_nano.codes import load_net
from moshi_pipe_nano.lm_train import LMTraining
from moshi_pipe_nano.options import LMOptions, Options
from moshi_pipe_nano.start import start_from_released

from moshi_pipe.errors import ConfigError
from moshi_pipe.models.checkpoint import ModelOptions, open_checkpoint, packaged_folder
from moshi_pipe.nn.load import read_lm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def options(tmp_path: Path) -> Options:
    released = str(packaged_folder("nano"))
    return Options(stage="start", out=str(tmp_path), device="cpu", threads=1, released=released)


def test_a_training_starts_with_the_released_weights_and_their_step(options: Options) -> None:
    start_from_released(options)

    training = LMTraining(options)

    checkpoint = open_checkpoint(ModelOptions(path=options.released))
    assert training.step == checkpoint.config.model_id["epoch"]
    own = dict(training.net.named_parameters())
    for name, wanted in read_lm(checkpoint, torch.float32):
        got = own[name.replace(".", "/")]
        assert torch.allclose(got, wanted, atol=1e-4, rtol=1e-3), name
        assert torch.equal(dict(training.average.named_parameters())[name.replace(".", "/")], got)
    assert load_net(options).spec == checkpoint.mimi


def test_weights_of_another_shape_are_refused(options: Options) -> None:
    other = dataclasses.replace(options, lm=LMOptions(dim=64))

    with pytest.raises(ConfigError, match=r"another shape than the options lm\.\*"):
        start_from_released(other)
