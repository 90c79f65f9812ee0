"""The GPU benchmark beside the reference package, tiny and on a CPU: both say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parity
ROOT = Path(__file__).parents[2]


def test_greedy_tokens_are_the_references() -> None:
    pytest.importorskip("moshi")
    words = [
        "--sections",
        "one",
        "--preset",
        "tiny",
        "--device",
        "cpu",
        "--ticks",
        "1",
        "--steps",
        "6",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "bench_gpu.py", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = {row["bench"]: row for row in map(json.loads, done.stdout.splitlines())}
    tokens = rows["gpu greedy tokens against moshi"]
    assert tokens["reference"]["equal_tokens"] == 1
    assert tokens["reference"]["logit_error"] == 0
    assert rows["gpu one session beside moshi"]["ratio"] > 0
    assert "gpu failed" not in rows
