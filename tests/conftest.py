"""What all tests share."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from support.build import FakeBuild

# Read by torch when it is imported: one thread is what the promises of bit-equality are about.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Other work on the machine fails no test.
settings.register_profile("any-pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-pace")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    """Replace the runner, so that the command line is tested without models."""
    fake = FakeBuild()
    module = ModuleType("moshi_pipe.terminal_run")
    module.run_in_terminal = fake.run_in_terminal  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "moshi_pipe.terminal_run", module)
    return fake
