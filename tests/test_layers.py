"""Promises about imports: floors, effects, cost, and what the package shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ["torch", "hydra", "omegaconf", "pyaudio", "soundfile", "soxr", "sphn", "sentencepiece"]
LIGHT_MODULES = [
    "moshi_pipe",
    "moshi_pipe.cli",
    "moshi_pipe.compose",
    "moshi_pipe.config",
    "moshi_pipe.errors",
    "moshi_pipe.graph.graph",
    "moshi_pipe.graph.node",
    "moshi_pipe.graph.schedule",
    "moshi_pipe.guide",
    "moshi_pipe.hooks",
    "moshi_pipe.models.checkpoint",
    "moshi_pipe.models.inspection",
    "moshi_pipe.models.plan",
    "moshi_pipe.models.protocols",
    "moshi_pipe.models.spec",
    "moshi_pipe.plugins",
    "moshi_pipe.report",
    "moshi_pipe.units",
]


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_importing_loads_nothing_heavy(module: str) -> None:
    loaded = python(f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))")

    assert loaded.split() == []


def test_importing_has_no_effect() -> None:
    code = (
        "import logging, os, sys, threading\n"
        "before = (dict(os.environ), list(logging.root.handlers), list(sys.argv))\n"
        "import moshi_pipe.cli, moshi_pipe.compose, moshi_pipe.plugins\n"
        "after = (dict(os.environ), list(logging.root.handlers), list(sys.argv))\n"
        "print(before == after, threading.active_count())"
    )

    assert python(code).split() == ["True", "1"]


def test_the_floors_hold() -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", code, "--no-cache"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_shows_its_version_and_its_loader() -> None:
    import moshi_pipe

    assert moshi_pipe.__all__ == ["__version__", "load"]
    assert isinstance(moshi_pipe.__version__, str)
    with pytest.raises(AttributeError, match=r"^module 'moshi_pipe' has no attribute 'nothing'$"):
        _ = moshi_pipe.nothing
