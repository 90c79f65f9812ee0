"""Normalisation layers, in the reference's forms so that results are bit-identical.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/transformer.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm; the scale is multiplied before the input.

    Args:
        dim: Width ``D``.
        eps: Added to the mean square.
        float32: Compute in float32 whatever the input's type.
    """

    def __init__(self, dim: int, *, eps: float, float32: bool) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, 1, dim))
        self.eps = eps
        self.float32 = float32

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalise the last axis."""
        x = x_BTD.float() if self.float32 else x_BTD
        variance = self.eps + torch.mean(x**2, dim=2, keepdim=True)
        return (x * (self.alpha.to(variance) * torch.rsqrt(variance))).to(x_BTD.dtype)


class LayerNorm(nn.Module):
    """Layer norm with bias.

    Args:
        dim: Width ``D``.
        eps: Added to the variance.
        float32: Compute in float32 whatever the input's type.
    """

    def __init__(self, dim: int, *, eps: float, float32: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.eps = eps
        self.float32 = float32

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalise the last axis."""
        if not self.float32:
            return F.layer_norm(x_BTD, self.weight.shape, self.weight, self.bias, self.eps)
        y = F.layer_norm(
            x_BTD.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps
        )
        return y.to(x_BTD.dtype)


class LayerScale(nn.Module):
    """Learnt scale per channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Scale the last axis."""
        return self.scale * x_BTD


def make_norm(kind: str, dim: int) -> nn.Module:
    """Build the norm that a spec names: ``layer_norm[_f32]`` or ``rms_norm[_f32]``."""
    float32 = kind.endswith("_f32")
    eps = 1e-8 if float32 else 1e-5
    if kind.startswith("rms_norm"):
        return RMSNorm(dim, eps=eps, float32=float32)
    return LayerNorm(dim, eps=eps, float32=float32)
