"""Mimi's split residual vector quantizer: one semantic codebook, the rest acoustic.

Shape letters: B slot, T frame, K codebook, D latent width, Q width of a codebook entry, V entries.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/quantization/{core_vq,vq}.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe.nn.huge_pages import HugePages

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe.models.spec import MimiSpec

_MIN_USAGE = 1e-5


class Codebook(nn.Module):
    """One table of centroids, stored as a running sum and a usage count."""

    def __init__(self, spec: MimiSpec) -> None:
        super().__init__()
        self.register_buffer("_initialized", torch.empty(1))
        self.register_buffer("cluster_usage", torch.empty(spec.cardinality))
        self.register_buffer("embedding_sum", torch.empty(spec.cardinality, spec.quantizer_dim))
        self.centroids_VQ: Tensor | None = None
        self.half_norm_V: Tensor | None = None

    def prepare(self, memory: HugePages) -> None:
        """Derive the centroids; call once after the weights were loaded."""
        usage_V = self.get_buffer("cluster_usage").clamp(min=_MIN_USAGE)
        centroids_VQ = memory.keep(self.get_buffer("embedding_sum") / usage_V[:, None])
        self.centroids_VQ = centroids_VQ
        self.half_norm_V = centroids_VQ.square().sum(-1) / 2
        self.register_buffer("embedding_sum", centroids_VQ.new_empty(0))

    def tables(self) -> tuple[Tensor, Tensor]:
        """Centroids ``[V, Q]`` and half their squared norms ``[V]``."""
        if self.centroids_VQ is None or self.half_norm_V is None:
            self.prepare(HugePages())
        if self.centroids_VQ is None or self.half_norm_V is None:
            raise RuntimeError("prepare() left no centroids")
        return self.centroids_VQ, self.half_norm_V


class ResidualQuantizer(nn.Module):
    """A chain of codebooks, each quantizing what the ones before it left."""

    def __init__(self, spec: MimiSpec, num_codebooks: int) -> None:
        super().__init__()
        self.input_proj = _Pointwise(spec.dimension, spec.quantizer_dim)
        self.output_proj = _Pointwise(spec.quantizer_dim, spec.dimension)
        self.vq = nn.Module()
        layers = []
        for _ in range(num_codebooks):
            layer = nn.Module()
            layer.add_module("_codebook", Codebook(spec))
            layers.append(layer)
        self.vq.add_module("layers", nn.ModuleList(layers))
        self.codebooks = [layer.get_submodule("_codebook") for layer in layers]

    def encode(self, latent_MD: Tensor, num_codebooks: int) -> list[Tensor]:
        """Nearest centroid per codebook, int64 ``[M]`` each; ties go to the lowest index."""
        residual_MQ = self.input_proj.apply_rows(latent_MD)
        codes = []
        for codebook in self.codebooks[:num_codebooks]:
            centroids_VQ, half_norm_V = _tables(codebook)
            # |x - e|^2 / 2 without the |x|^2 that all candidates share
            distance_MV = torch.addmm(half_norm_V, residual_MQ, centroids_VQ.t(), alpha=-1)
            code_M = distance_MV.argmin(-1)
            residual_MQ = residual_MQ - F.embedding(code_M, centroids_VQ)
            codes.append(code_M)
        return codes

    def decode(self, codes_MK: Tensor) -> Tensor:
        """Sum the centroids of ``[M, K]`` codes and project them, ``[M, D]``."""
        total_MQ: Tensor | None = None
        for k, codebook in enumerate(self.codebooks[: codes_MK.shape[1]]):
            centroids_VQ, _ = _tables(codebook)
            entry_MQ = F.embedding(codes_MK[:, k], centroids_VQ)
            total_MQ = entry_MQ if total_MQ is None else total_MQ + entry_MQ
        if total_MQ is None:
            raise ValueError("codes must have at least one codebook")
        return self.output_proj.apply_rows(total_MQ)


class SplitQuantizer(nn.Module):
    """The semantic codebook and the acoustic chain; both quantize the full latent."""

    def __init__(self, spec: MimiSpec) -> None:
        super().__init__()
        self.rvq_first = ResidualQuantizer(spec, 1)
        self.rvq_rest = ResidualQuantizer(spec, spec.num_codebooks - 1)

    def encode(self, latent_BTD: Tensor, num_codebooks: int) -> Tensor:
        """Quantize latents to codes, int64 ``[B, K, T]``."""
        batch, num_frames, dim = latent_BTD.shape
        latent_MD = latent_BTD.reshape(-1, dim)
        codes = self.rvq_first.encode(latent_MD, 1)
        if num_codebooks > 1:
            codes += self.rvq_rest.encode(latent_MD, num_codebooks - 1)
        return torch.stack(codes, dim=1).view(batch, num_frames, -1).transpose(1, 2)

    def decode(self, codes_BKT: Tensor) -> Tensor:
        """Turn codes of any ``1 <= K`` into latents ``[B, T, D]``."""
        batch, num_codebooks, num_frames = codes_BKT.shape
        codes_MK = codes_BKT.transpose(1, 2).reshape(-1, num_codebooks)
        latent_MD = self.rvq_first.decode(codes_MK[:, :1])
        if num_codebooks > 1:
            latent_MD = latent_MD + self.rvq_rest.decode(codes_MK[:, 1:])
        return latent_MD.view(batch, num_frames, -1)


class _Pointwise(nn.Module):
    """A 1x1 convolution without bias, stored as one."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim_out, dim_in, 1))

    def apply_rows(self, x_MD: Tensor) -> Tensor:
        return F.linear(x_MD, self.weight[..., 0])


def _tables(codebook: nn.Module) -> tuple[Tensor, Tensor]:
    if not isinstance(codebook, Codebook):
        raise TypeError(f"a codebook is a {type(codebook).__name__}")
    return codebook.tables()
