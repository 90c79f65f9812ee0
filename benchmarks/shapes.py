"""Shapes of random language models that benchmarks need and users do not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from moshi_pipe.models.checkpoint import ModelConfig
from moshi_pipe.models.layout import lm_layout
from moshi_pipe.models.presets import PRESETS, Preset, find_preset, lm_config

if TYPE_CHECKING:
    from moshi_pipe.models.spec import LMSpec

_OWN: Final = {
    "943m": replace(
        PRESETS["7b"],
        name="943m",
        summary="a narrow temporal transformer with the depth transformer of the 7B",
        dim=1024,
        num_layers=12,
        num_heads=16,
    )
}


def shape(name: str) -> Preset:
    """A preset, or a shape of benchmarks alone, by name."""
    return _OWN[name] if name in _OWN else find_preset(name)


def grown(size: int) -> Preset:
    """A dialogue model of width 64 times ``size``, its depth transformer half of it."""
    return replace(
        PRESETS["medium"],
        name=f"size {size}",
        dim=64 * size,
        num_heads=size,
        depth_dim=32 * size,
        depth_heads=size,
        depth_feedforward=132 * size,
    )


def num_parameters(preset: Preset) -> int:
    """All of a language model's parameters, embeddings included."""
    return sum(tensor.num_elements for tensor in lm_layout(_spec(preset)).tensors.values())


def num_multiplied(preset: Preset) -> int:
    """Parameters that a step of one session reads: all but embeddings, of which it reads rows."""
    tensors = lm_layout(_spec(preset)).tensors.items()
    return sum(tensor.num_elements for name, tensor in tensors if "emb" not in name)


def _spec(preset: Preset) -> LMSpec:
    spec = ModelConfig.from_json(lm_config(preset, "moshi")).lm
    assert spec is not None, "a preset describes a language model"
    return spec
