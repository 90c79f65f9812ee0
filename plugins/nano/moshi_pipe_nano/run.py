"""What every training shares: where it was, what it said, how fast it learns."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


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
        text = json.dumps(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        sys.stdout.write(f"{self._path.stem} {text}\n")
        sys.stdout.flush()


class Means:
    """Running means between two lines of a journal; a GPU is waited for when they are taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: Tensor) -> None:
        """Count one value of each name."""
        for name, value in values.items():
            old = self._sums.get(name)
            self._sums[name] = value.detach() if old is None else old + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class Course:
    """How far a training is: by its steps, or by the clock where it has a number of seconds.

    Args:
        first_step: Where this run takes the training up.
        num_steps: Of the whole training.
        seconds: Of this run; 0 for as many as the steps take.
        decay_share: Last part of it in which the learning rate falls.
    """

    def __init__(
        self, first_step: int, num_steps: int, seconds: float = 0.0, decay_share: float = 0.3
    ) -> None:
        self._first, self._num_steps, self._seconds = first_step, num_steps, seconds
        self._decay_share = decay_share
        self._begun = time.monotonic()

    def progress(self, step: int) -> float:
        """Share that is done; 1 or more at the end."""
        if self._seconds > 0:
            return (time.monotonic() - self._begun) / self._seconds
        return step / max(self._num_steps, 1)

    def learning_rate(self, step: int, peak: float) -> float:
        """Warm-up over 50 steps, constant, then straight to 2 % of the peak over the last part.

        A longer training is the same as a shorter one until that one's last part, so checkpoints
        of the constant part serve any length.
        """
        warm = min(1.0, (step - self._first + 1) / 50)
        left = (1 - self.progress(step)) / self._decay_share
        return peak * warm * (0.02 + 0.98 * min(1.0, max(left, 0.0)))


class Alarm:
    """Goes off every so many seconds.

    Args:
        seconds: Between two times.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        """Whether it went off since the last call that said so."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes a GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_up_torch(threads: int) -> None:
    """Threads of the CPU, and TF32 products on GPUs that have them."""
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


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


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float16: training goes on from them as well."""
    return {name: value.to(torch.float16) for name, value in state.items()}
