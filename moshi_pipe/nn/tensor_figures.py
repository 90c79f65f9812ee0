"""Whether the tensors of a weight file are finite and alive."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from moshi_pipe.nn.weight_reader import WeightReader, reading

if TYPE_CHECKING:
    from moshi_pipe.models.formats.contents import Contents


@dataclass(slots=True)
class TensorFigures:
    """Figures over all tensors of a file.

    Attributes:
        rms: Root of the mean square of all numbers.
        largest: Largest magnitude.
        not_finite: Tensors with NaN or infinity.
        dead: Matrices and kernels whose numbers are all the same.
    """

    rms: float = 0.0
    largest: float = 0.0
    not_finite: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)


def tensor_figures(contents: Contents) -> TensorFigures:
    """Read every tensor of a file once, a few rows at a time.

    Raises:
        CheckpointError: The file cannot be read.
    """
    figures = TensorFigures()
    total, count = 0.0, 0
    with reading(contents.header.path) as file, torch.no_grad():
        reader = WeightReader(file, contents)
        for name in reader.names():
            low, high = math.inf, -math.inf
            for first, last in reader.chunks(name):
                rows = reader.rows(name, first, last).float()
                total += float(rows.double().square().sum())
                count += rows.numel()
                if rows.numel():
                    least, most = torch.aminmax(rows)
                    # NaN stays NaN in a sum, and is lost in a comparison.
                    low = min(low, float(least)) + 0 * float(least)
                    high = max(high, float(most)) + 0 * float(most)
            if (not math.isfinite(low + high) and low <= high) or math.isnan(low + high):
                figures.not_finite.append(name)
                continue
            figures.largest = max(figures.largest, abs(low), abs(high))
            matrix = len(reader.stored(name).shape) > 1 and not name.endswith(".alpha")
            if matrix and low == high:
                figures.dead.append(name)
    figures.rms = math.sqrt(total / count) if count else 0.0
    return figures
