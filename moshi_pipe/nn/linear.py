"""Linear layers, applied in a form that is chosen by their shape.

Shape letters: D in, O out.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

Apply = Callable[["Tensor", nn.Module], "Tensor"]
"""How a linear layer is applied: :func:`apply_fast` or :func:`apply_plain`."""

# With two or three rows and a wide result, MKL's X @ W.T runs at a third of the memory bandwidth
# that W @ X.T reaches on AMD: 5.9 against 1.8 ms for [2, 1024] x [1024, 8192] on one Zen 4 core.
# Narrow results show no difference. On Intel it is the other way: 1.8 against 3.8 ms.
_FEW_ROWS = 4


def project(x: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``; may differ from ``F.linear`` by rounding.

    Args:
        x: ``[..., D]``.
        weight_OD: ``[O, D]``, contiguous.
        bias_O: ``[O]`` or None.

    Returns:
        ``[..., O]``.
    """
    dim_out, dim_in = weight_OD.shape
    num_rows = x.numel() // dim_in
    few = 1 < num_rows < _FEW_ROWS and dim_out >= dim_in and x.device.type == "cpu"
    if not few or not _is_amd():
        return F.linear(x, weight_OD, bias_O)
    y = torch.mm(weight_OD, x.reshape(num_rows, dim_in).t()).t().reshape(*x.shape[:-1], dim_out)
    return y if bias_O is None else y + bias_O


def apply_fast(x: Tensor, layer: nn.Module) -> Tensor:
    """Apply a linear layer; a plain one by :func:`project`, a quantized one in its own way."""
    if isinstance(layer, nn.Linear):
        return project(x, layer.weight, layer.bias)
    return apply_plain(x, layer)


def apply_plain(x: Tensor, layer: nn.Module) -> Tensor:
    """Apply a linear layer as it is, which for a plain one is the reference's form."""
    y: Tensor = layer(x)
    return y


@cache
def _is_amd() -> bool:
    """Whether this machine's processor is AMD's; a form that changes only with the machine."""
    with suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return "AuthenticAMD" in platform.processor()
