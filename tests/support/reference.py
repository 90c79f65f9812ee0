"""Building the reference package's models from our configs; imported by parity tests alone."""

from __future__ import annotations

from typing import Any

import torch

from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi
from support.golden import fill_golden, golden_tensor


def mimi_pair(config: dict[str, Any], num_codebooks: int) -> tuple[Any, Mimi]:
    """Return the reference's codec and ours with the same golden weights."""
    from moshi.models.loaders import get_mimi

    reference = get_mimi(None, config, num_codebooks=num_codebooks)
    fill_golden(reference)
    ours = Mimi(MimiSpec.from_config(config).with_codebooks(num_codebooks))
    ours.load_state_dict(reference.state_dict())
    ours.prepare()
    return reference, ours


def full_mimi_pair(num_codebooks: int) -> tuple[Any, Mimi]:
    """Return full-size codecs with live random weights: many different codes, audible output."""
    from moshi.models.loaders import get_mimi

    reference = get_mimi(None, num_codebooks=num_codebooks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            tensor.copy_(_live(name, tensor, generator))
    ours = Mimi(MimiSpec().with_codebooks(num_codebooks))
    ours.load_state_dict(reference.state_dict())
    ours.prepare()
    return reference, ours


def moshi_pair(
    config: dict[str, Any], dtype: torch.dtype = torch.float32, numerics: str = "reference"
) -> tuple[Any, Moshi]:
    """Return the reference's language model and ours with the same golden weights."""
    from moshi.models.loaders import get_moshi_lm

    reference = get_moshi_lm(None, dict(config), device="cpu", dtype=dtype)
    ours = Moshi(LMSpec.from_config(config), numerics=numerics).to(dtype)
    if ours.condition_provider is not None:
        ours.condition_provider.float()
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            tensor.copy_(golden_tensor(name, tuple(tensor.shape)))
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def _live(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if name.endswith(("cluster_usage", "_initialized", "norm1.weight", "norm2.weight")):
        return torch.ones_like(tensor)
    if name.endswith("embedding_sum"):
        return noise
    if name.endswith(".scale"):
        return torch.full_like(tensor, 0.05)
    if name.endswith(".bias"):
        return noise * 0.02
    scaled: torch.Tensor = noise * 1.4 / (tensor.numel() / tensor.shape[0]) ** 0.5
    return scaled
