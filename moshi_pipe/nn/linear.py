"""Linear layers, applied in a form that is chosen by their shape.

Shape letters: D in, O out.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

Apply = Callable[["Tensor", nn.Module], "Tensor"]
"""How a linear layer is applied: :func:`apply_fast` or :func:`apply_plain`."""


def _maker() -> str:
    """Of this machine's processor; forms change only with the machine."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return platform.processor().rpartition(", ")[2]  # on Windows "Intel64 Family ..., GenuineIntel"


_MAKER = _maker()
# Rows for which W @ X.T is faster than X @ W.T, by the processor's maker and the type of the
# weights, and whether only where the result is as wide as the input. docs/log.md has what was
# measured.
_TRANSPOSED = {
    ("AuthenticAMD", torch.float32): (range(2, 4), True),
    ("AuthenticAMD", torch.bfloat16): (range(2, 4), True),
    ("GenuineIntel", torch.float32): (range(8, 33), False),
    ("GenuineIntel", torch.bfloat16): (range(2, 65), False),
}
_NEVER = (range(0), False)


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
    rows, only_wide = _TRANSPOSED.get((_MAKER, weight_OD.dtype), _NEVER)
    narrow = only_wide and dim_out < dim_in
    if num_rows not in rows or narrow or x.device.type != "cpu":
        return F.linear(x, weight_OD, bias_O)
    y_OM = torch.mm(weight_OD, x.reshape(num_rows, dim_in).t())
    y = y_OM.t().contiguous().view(*x.shape[:-1], dim_out)
    return y if bias_O is None else y + bias_O


def apply_fast(x: Tensor, layer: nn.Module) -> Tensor:
    """Apply a linear layer; a plain one by :func:`project`, a quantized one in its own way.

    Weights of a class of their own, such as torchao's, know ``F.linear`` and may know nothing else.
    """
    if isinstance(layer, nn.Linear) and type(layer.weight) is nn.Parameter:
        return project(x, layer.weight, layer.bias)
    return apply_plain(x, layer)


def apply_plain(x: Tensor, layer: nn.Module) -> Tensor:
    """Apply a linear layer as it is, which for a plain one is the reference's form."""
    y: Tensor = layer(x)
    return y
