"""A folder to carry on from, made of a released checkpoint: the shipped weights, for instance.

What a checkpoint does not hold begins anew: the optimizers, and the heads that only training has.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from moshi_pipe.errors import ConfigError
from moshi_pipe.models.checkpoint import LM, MIMI, ModelOptions, open_checkpoint
from moshi_pipe.models.layout import Layout, lm_layout, mimi_layout
from moshi_pipe.models.weight_check import match_weights
from moshi_pipe.nn.weight_reader import WeightReader, reading
from moshi_pipe_nano.codec_train import CHECKPOINT as CODEC
from moshi_pipe_nano.lm_train import AVERAGE
from moshi_pipe_nano.lm_train import CHECKPOINT as LANGUAGE_MODEL
from moshi_pipe_nano.run import halved, save
from moshi_pipe_nano.shapes import lm_spec, mimi_spec

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe_nano.options import Options


def start_from_released(options: Options) -> None:
    """Write ``codec.pt``, ``lm.pt`` and ``lm-average.pt`` from ``options.released``.

    Raises:
        ConfigError: The folder's model has another shape than the options.
        CheckpointError: There is no such folder, or it is damaged.
    """
    checkpoint = open_checkpoint(ModelOptions(path=options.released), parts=(LM, MIMI))
    codec, lm = mimi_spec(options.codec), lm_spec(options.lm, options.codec)
    for name, got, wanted in (
        ("codec", checkpoint.mimi, codec),
        ("lm", checkpoint.config.lm, lm),
    ):
        if got != wanted:
            raise ConfigError(
                f"{options.released} has another shape than the options {name}.*",
                got=str(got),
                wanted=str(wanted),
            )
    folder = Path(options.out)
    step = int(checkpoint.config.model_id.get("epoch", 0))
    save(folder / CODEC, {"net": halved(_read(checkpoint.mimi_weights, mimi_layout(codec)))})
    state = {"net": halved(_read(checkpoint.lm_weights, lm_layout(lm))), "step": step}
    save(folder / LANGUAGE_MODEL, state)
    save(folder / AVERAGE, state)


def _read(path: Path | None, layout: Layout) -> dict[str, Tensor]:
    """Weights under the names of :class:`~moshi_pipe_nano.lm_net.LMNet`, float32."""
    if path is None:
        raise ConfigError("the released folder lacks a weight file")
    contents = match_weights(path, layout)
    with reading(path) as file:
        reader = WeightReader(file, contents)
        return {n.replace(".", "/"): reader.read(n, torch.float32) for n in reader.names()}
