"""The backend keeps every promise of a codec and a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("mlx.core", reason="MLX cannot be imported", exc_type=ImportError)

from moshi_pipe_mlx import plugin

from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import ModelOptions, open_checkpoint
from moshi_pipe.plugins import Plugins, load_plugins
from moshi_pipe.testing import check_codec, check_lm

if TYPE_CHECKING:
    from moshi_pipe.models.protocols import Codec, SpeechLM

OPTIONS = BackendOptions(backend="mlx", device="cpu", dtype="float32")


def plugins() -> Plugins:
    return load_plugins([("mlx", plugin)], installed=False)


def codec() -> Codec:
    return plugins().open_codec(open_checkpoint(ModelOptions()), OPTIONS, lambda done, total: None)


def lm() -> SpeechLM:
    return plugins().open_lm(open_checkpoint(ModelOptions()), OPTIONS, lambda done, total: None)


def test_its_codec_keeps_every_promise() -> None:
    check_codec(codec, num_slots=4, tolerance=1e-5)


def test_its_language_model_keeps_every_promise() -> None:
    check_lm(lm, num_slots=4, tolerance=1e-4)
