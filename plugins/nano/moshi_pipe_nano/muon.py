"""Muon: steps of matrices along the nearest orthogonal matrix to their momentum.

Fewer steps than Adam's for the temporal transformer, which is what a CPU has time for.
Source: Keller Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

_MOMENTUM: Final = 0.95
_ITERATIONS: Final = 5
_QUINTIC: Final = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """The optimizer of weights ``[out, in]``.

    Args:
        parameters: Matrices.
        rate: Learning rate; the root mean square of a step's entries is about
            ``rate / sqrt(max(out, in)) * sqrt(max(1, out / in))``.
    """

    def __init__(self, parameters: Iterable[Tensor], rate: float) -> None:
        super().__init__(list(parameters), {"lr": rate})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                momentum = state.setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - _MOMENTUM)
                along = weight.grad.lerp(momentum, _MOMENTUM)
                tall = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.add_(orthogonal(along), alpha=-group["lr"] * tall)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the orthogonal factor of a matrix: its singular values become 0.7 to 1.2."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    out: Tensor = x.T if tall else x
    return out
