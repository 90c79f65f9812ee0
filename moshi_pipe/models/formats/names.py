"""Names of a language model's tensors in MLX and candle files.

Both differ from PyTorch files in the depth transformer: every codebook is a "slice" with its own
copy of all weights, also of those that several codebooks share. MLX files rename more.

Source: kyutai-labs/moshi@e6a55d2 moshi_mlx/moshi_mlx/models/lm.py, load_pytorch_weights, and
scripts/import_rust.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.layout import lm_layout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from moshi_pipe.models.spec import LMSpec

HUB: Final = "hub"
MLX: Final = "mlx"
CANDLE: Final = "candle"

_MLX_SLICE: Final = "depformer.slices"
_CANDLE_SLICE: Final = "depformer"


def naming_of(names: Iterable[str]) -> str:
    """Whose names a language model's file has: ``hub``, ``mlx`` or ``candle``.

    A model without a depth transformer has the same names in candle's files as on the hub.
    """
    for name in names:
        if name.startswith((f"{_MLX_SLICE}.", "audio_embs.")):
            return MLX
        if re.match(rf"{_CANDLE_SLICE}\.\d+\.", name):
            return CANDLE
    return HUB


def slice_names(lm: LMSpec, naming: str) -> dict[str, tuple[str, ...]]:
    """For every in-memory tensor its names in a file: one, or one per slice that uses it.

    Args:
        lm: The model.
        naming: ``mlx`` or ``candle``.

    Raises:
        CheckpointError: The format has no place for one of the model's tensors.
    """
    return {name: _names(name, lm, naming) for name in lm_layout(lm).weights}


def file_shape(shape: tuple[int, ...], name: str, naming: str) -> tuple[int, ...]:
    """Shape that a tensor has in a file: RMS norms have one axis in MLX's."""
    return shape[-1:] if naming == MLX and name.endswith(".alpha") else shape


def _names(name: str, lm: LMSpec, naming: str) -> tuple[str, ...]:
    first, _, rest = name.partition(".")
    if first == "emb":
        return (f"audio_embs.{rest}" if naming == MLX else name,)
    if first in ("transformer", "out_norm"):
        return (_plain(name, naming),)
    if not first.startswith(("depformer", "linears")):
        return (name,)
    if first == "depformer_norms":
        raise CheckpointError(
            f"the {naming} format has no place for norms before the audio heads",
            got=name,
            fix="keep this model in the PyTorch format",
        )
    slices = _MLX_SLICE if naming == MLX else _CANDLE_SLICE
    if first == "depformer_text_emb":
        return (f"{slices}.0.emb.{rest}",)
    number, _, tail = rest.partition(".")
    if first == "depformer_emb":
        return (f"{slices}.{int(number) + 1}.emb.{tail}",)
    if first == "linears":
        return (f"{slices}.{number}.linear_out.{tail}",)
    if first == "depformer_in":
        users = _users(int(number) if lm.multi_linear else None, lm)
        return tuple(f"{slices}.{k}.linear_in.{tail}" for k in users)
    found = re.search(r"\.(in_projs|out_projs|gating)\.(\d+)\.", rest)
    weight_set = int(found.group(2)) if found else None
    if found and found.group(1) == "gating":
        rest = rest.replace(f".gating.{weight_set}.", ".gating.")
    plain = _plain(rest, naming)
    # A depth transformer without weights per step has one set, numbered 0, that all share.
    shared = lm.depth is None or not lm.depth.weight_sets
    users = _users(None if shared else weight_set, lm)
    return tuple(f"{slices}.{k}.transformer.{plain}" for k in users)


def _users(weight_set: int | None, lm: LMSpec) -> list[int]:
    """Codebooks that use a weight set; None is what all share."""
    every = range(lm.num_generated)
    return [k for k in every if weight_set in (None, lm.codebook_weight_set(k))]


def _plain(name: str, naming: str) -> str:
    if naming == CANDLE:
        name = re.sub(r"\.in_projs\.\d+\.weight$", ".in_proj_weight", name)
        return re.sub(r"\.out_projs\.\d+\.", ".out_proj.", name)
    name = re.sub(r"\.(in|out)_projs\.\d+\.", r".\1_proj.", name)
    return re.sub(r"\.alpha$", ".weight", name)
