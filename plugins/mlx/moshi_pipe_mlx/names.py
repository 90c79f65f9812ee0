"""Names of the language model's tensors in MLX files.

Such a file differs from a PyTorch one in names, and in the depth transformer: every codebook is a
"slice" with its own copy of all weights, also of those that several codebooks share.

Source: kyutai-labs/moshi@e6a55d2 moshi_mlx/moshi_mlx/models/lm.py, load_pytorch_weights.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.layout import lm_layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moshi_pipe.models.spec import LMSpec

_SLICE: Final = "depformer.slices"


def mlx_names(lm: LMSpec) -> dict[str, tuple[str, ...]]:
    """For every in-memory tensor its names in an MLX file: one, or one per slice that uses it.

    Raises:
        CheckpointError: The format has no place for one of the model's tensors.
    """
    return {name: _names(name, lm) for name in lm_layout(lm).tensors if not _is_scale(name)}


def is_mlx_file(names: Iterable[str]) -> bool:
    """Whether tensors are named as in MLX files."""
    return any(
        name.startswith((f"{_SLICE}.", "audio_embs.")) or name.endswith(".scales") for name in names
    )


def file_shape(shape: tuple[int, ...], in_memory: str) -> tuple[int, ...]:
    """Shape in an MLX file: RMS norms have one axis there."""
    return shape[-1:] if in_memory.endswith(".alpha") else shape


def _names(name: str, lm: LMSpec) -> tuple[str, ...]:
    first, _, rest = name.partition(".")
    if first == "emb":
        return (f"audio_embs.{rest}",)
    if first in ("transformer", "out_norm"):
        return (_plain(name),)
    if first == "depformer_text_emb":
        return (f"{_SLICE}.0.emb.{rest}",)
    if first == "depformer_norms":
        raise CheckpointError(
            "the MLX format has no place for norms before the audio heads",
            got=name,
            fix="keep this model in the PyTorch format: backend=mlx reads it",
        )
    if not first.startswith(("depformer", "linears")):
        return (name,)
    number, _, tail = rest.partition(".")
    if first == "depformer_emb":
        return (f"{_SLICE}.{int(number) + 1}.emb.{tail}",)
    if first == "linears":
        return (f"{_SLICE}.{number}.linear_out.{tail}",)
    if first == "depformer_in":
        users = _users(int(number) if lm.multi_linear else None, lm)
        return tuple(f"{_SLICE}.{k}.linear_in.{tail}" for k in users)
    return _depth_names(rest, lm)


def _depth_names(rest: str, lm: LMSpec) -> tuple[str, ...]:
    """Names of ``layers.0.gating.2.linear_in.weight`` and its like, one per slice."""
    found = re.search(r"\.(in_projs|out_projs|gating)\.(\d+)\.", rest)
    weight_set = int(found.group(2)) if found else None
    if found and found.group(1) == "gating":
        rest = rest.replace(f".gating.{weight_set}.", ".gating.")
    plain = _plain(rest)
    return tuple(f"{_SLICE}.{k}.transformer.{plain}" for k in _users(weight_set, lm))


def _users(weight_set: int | None, lm: LMSpec) -> list[int]:
    """Codebooks that use a weight set; None is what all share."""
    every = range(lm.num_generated)
    return [k for k in every if weight_set in (None, lm.codebook_weight_set(k))]


def _plain(name: str) -> str:
    name = re.sub(r"\.(in|out)_projs\.\d+\.", r".\1_proj.", name)
    return re.sub(r"\.alpha$", ".weight", name)


def _is_scale(name: str) -> bool:
    return name.endswith("_scb")
