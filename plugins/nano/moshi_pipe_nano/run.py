"""What every training shares: where it was, what it said, how fast it learns."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


class Journal:
    """Numbers of a training, one JSON object a line, appended to over its runs.

    Args:
        path: File to append to.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._begun = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line."""
        rounded = {name: round(value, 5) for name, value in values.items()}
        line = {"step": step, "run_s": round(time.monotonic() - self._begun, 1), **rounded}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Means:
    """Running means between two lines of a journal."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: float) -> None:
        """Count one value of each name."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


def learning_rate(step: int, num_steps: int, peak: float) -> float:
    """Warm-up over 50 steps, constant, then a straight line to 2 % of the peak over the last fifth.

    A longer training is the same as a shorter one until that one's last fifth, so checkpoints of
    the constant part serve any length.
    """
    warm = min(1.0, (step + 1) / 50)
    left = (num_steps - step) / max(0.2 * num_steps, 1.0)
    return peak * warm * (0.02 + 0.98 * min(1.0, max(left, 0.0)))


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(dict(state), part)
    os.replace(part, path)


def load(path: Path) -> dict[str, Any] | None:
    """A training state, or None where there is none. Tensors and plain values only."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
