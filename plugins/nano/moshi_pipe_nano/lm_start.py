"""A start for the language model's embeddings: codes that sound alike begin alike.

The embeddings of a stream's codebooks are one random projection of what its codes add to the
codec's latent, so that their sum is the projected latent. Nothing but training follows from it.

Shape letters: V entry, D width of the latent, E width of the embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe_nano.lm_net import LMNet
    from moshi_pipe_nano.mimi_net import MimiNet

_STREAM_STD: Final = 0.5  # of a stream's sum
_DEPTH_STD: Final = 0.3
_NOISE: Final = 0.03  # tells entries of one latent apart


@torch.no_grad()
def start_from_codec(net: LMNet, codec: MimiNet, seed: int) -> None:
    """Write the embeddings of both audio streams, temporal and depth.

    Args:
        net: A model that was not trained yet.
        codec: Whose codes it will be given.
        seed: Of the projections.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = [table.cpu() for table in codec.code_latents()]
    spread = sum(float(table.var()) for table in tables) ** 0.5
    own = net.spec.num_generated
    for first in (0, own):
        project_ED = _projection(net.spec.temporal.dim, tables[0].shape[1], generator)
        for k, table_VD in enumerate(tables):
            _fill(net.weights[f"emb.{first + k}.weight"],
                  table_VD @ project_ED.T * (_STREAM_STD / spread), generator)  # fmt: skip
    project_ED = _projection(net.depth_spec.dim, tables[0].shape[1], generator)
    for k in range(own - 1):
        scale = _DEPTH_STD / max(float(tables[k].std()), 1e-6)
        _fill(net.weights[f"depformer_emb.{k}.weight"],
              tables[k] @ project_ED.T * scale, generator)  # fmt: skip


def _projection(width: int, given: int, generator: torch.Generator) -> Tensor:
    scaled: Tensor = torch.randn(width, given, generator=generator) * float(given**-0.5)
    return scaled


def _fill(weight_VE: Tensor, start_VE: Tensor, generator: torch.Generator) -> None:
    """The first rows; a row for the initial code stays as it is."""
    noise_VE = torch.randn(start_VE.shape, generator=generator) * _NOISE
    weight_VE[: len(start_VE)] = (start_VE + noise_VE).to(weight_VE)
