"""The shipped weights, asked a few questions by voices that they never heard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

pytest.importorskip("pocketsphinx")
pytest.importorskip("pystoi")
pytestmark = pytest.mark.timeout(900)


def test_a_few_questions_are_answered_as_well_as_a_few_can_tell() -> None:
    few = ["--questions", "10", "--interruptions", "4", "--sentences", "8"]
    command = [sys.executable, "benchmarks/bench_nano.py", *few, "--floors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert figures["interruptions"]["value"] > 0
    assert 0.0 < figures["stoi"]["value"] <= 1.0
