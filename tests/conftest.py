"""What all tests share."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from moshi_pipe.config import RunConfig

# Read by torch when it is imported: one thread is what the promises of bit-equality are about.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass
class FakeBuild:
    """Stands in for the runner: remembers what it was asked to run.

    Attributes:
        configs: Every configuration that reached it.
        error: Raised instead of running, when set.
        exit_code: What its report says.
    """

    configs: list[RunConfig] = field(default_factory=list)
    error: BaseException | None = None
    exit_code: int = 0

    def run_config(self, config: RunConfig, ui: Any, plugins: Any) -> FakeBuild:
        self.configs.append(config)
        if self.error is not None:
            raise self.error
        return self


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    """Replace the runner, so that the command line is tested without models."""
    fake = FakeBuild()
    module = ModuleType("moshi_pipe.build")
    module.run_config = fake.run_config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moshi_pipe.build", module)
    return fake
