"""Embedding tables of the language model and its conditions.

Shape letters: B slot, D model width.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/lm_utils.py, moshi/moshi/conditioners/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.models.spec import ZERO_CODE, ConditionerSpec, LMSpec
from moshi_pipe.nn.norm import LayerNorm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


class Embedding(nn.Module):
    """A table in which id -1 is exactly zero and any other negative id acts as 0.

    Args:
        num_ids: Rows.
        dim: Width of the result.
        low_rank: Width of the table when it is factorised, with a projection behind it.
        norm: LayerNorm between table and projection.
    """

    def __init__(self, num_ids: int, dim: int, *, low_rank: int | None, norm: bool) -> None:
        super().__init__()
        width = low_rank or dim
        self.weight = nn.Parameter(torch.empty(num_ids, width))
        self.norm = LayerNorm(width, eps=1e-5, float32=False) if norm else None
        self.low_rank = nn.Linear(width, dim, bias=False) if low_rank else None

    def forward(self, ids_B1: Tensor) -> Tensor:
        """Look ids ``[B, 1]`` up, ``[B, 1, D]``."""
        y = F.embedding(ids_B1.clamp(min=0), self.weight)
        if self.norm is not None:
            y = self.norm(y)
        y = torch.where((ids_B1 == ZERO_CODE)[..., None], 0.0, y)
        return y if self.low_rank is None else self.low_rank(y)


def make_embedding(spec: LMSpec, num_ids: int, dim: int, *, depth: bool) -> Embedding:
    """Build one of the model's tables; only the depth transformer's may be factorised."""
    low_rank = spec.low_rank if depth else None
    return Embedding(num_ids, dim, low_rank=low_rank, norm=spec.norm_embeddings)


class LookupCondition(nn.Module):
    """A condition with a fixed set of values, such as Hibiki's voice quality; float32.

    Args:
        spec: Its values and sizes.
        dim: Model width.
    """

    def __init__(self, spec: ConditionerSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(
            spec.num_bins + 1, spec.dim, _weight=torch.empty(spec.num_bins + 1, spec.dim)
        )
        self.output_proj = nn.Linear(spec.dim, dim, bias=False)
        self.learnt_padding = nn.Parameter(torch.empty(1, 1, dim))

    def vectors(self, values: Sequence[str | None]) -> Tensor:
        """Vectors of several values at once, float32 ``[n, D]``; None gives the learnt padding.

        Raises:
            ConfigError: The model does not know a value.
        """
        index = torch.tensor([self._index(value) for value in values])
        projected = self.output_proj(self.embed(index.to(self.embed.weight.device)[:, None]))[:, 0]
        known = torch.tensor([value is not None for value in values], device=projected.device)
        return torch.where(known[:, None], projected, self.learnt_padding[0])

    def _index(self, value: str | None) -> int:
        if value is None:
            return self.spec.num_bins
        if value not in self.spec.values:
            raise ConfigError(
                f"the model's condition '{self.spec.name}' has no such value",
                got=value,
                wanted=closest(value, self.spec.values),
            )
        return self.spec.values.index(value)


class Conditions(nn.Module):
    """All conditions of a model, under the reference's names."""

    def __init__(self, spec: LMSpec) -> None:
        super().__init__()
        dim = spec.temporal.dim
        self.conditioners = nn.ModuleDict(
            {entry.name: LookupCondition(entry, dim) for entry in spec.conditioners}
        )

    def vectors(self, rows: Sequence[Mapping[str, str | None]]) -> Tensor:
        """Sum of all conditions per row, float32 ``[n, D]``.

        Raises:
            ConfigError: A declared condition is missing, or a value is not known.
        """
        total: Tensor | None = None
        for name, condition in self.conditioners.items():
            if not isinstance(condition, LookupCondition):
                raise TypeError(f"condition '{name}' is a {type(condition).__name__}")
            if any(name not in row for row in rows):
                raise ConfigError(
                    f"the model needs a value for its condition '{name}'",
                    wanted=closest("", condition.spec.values),
                    fix=f"set conditions.{name}=VALUE",
                )
            vectors = condition.vectors([row[name] for row in rows])
            total = vectors if total is None else total + vectors
        if total is None:
            raise ConfigError("the model has no conditions")
        return total
