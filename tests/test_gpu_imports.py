"""A GPU machine may have torch, NumPy and safetensors alone: what is needed there runs so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABSENT = [
    *("hydra", "omegaconf", "pluggy", "sentencepiece", "huggingface_hub", "sphn", "soundfile"),
    *("soxr", "rich", "packaging", "yaml", "starlette", "uvicorn", "websockets", "moshi"),
]
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"no module named {{name}}", name=name)

sys.meta_path.insert(0, Absent())
"""
IMPORT_ALL = """
import importlib, pkgutil
for package in ("nn", "models", "graph", "engine"):
    package = importlib.import_module(f"moshi_pipe.{package}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
"""
BENCH = """
import runpy
sys.path.insert(0, "benchmarks")
sys.argv = ["bench_gpu.py", *{words!r}]
runpy.run_path("benchmarks/bench_gpu.py", run_name="__main__")
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_models_and_engine_import_without_the_rest() -> None:
    run(IMPORT_ALL)


def test_what_is_absent_is_seen() -> None:
    with pytest.raises(AssertionError, match="no module named hydra"):
        run("import hydra")


def test_the_gpu_benchmark_runs_on_a_cpu_without_the_rest() -> None:
    words = [
        "--preset",
        "tiny",
        "--device",
        "cpu",
        "--ticks",
        "1",
        "--steps",
        "6",
        "--slots",
        "1",
        "4",
    ]
    words += ["--many", "4", "--no-reference"]
    rows = [json.loads(line) for line in run(BENCH.format(words=words)).splitlines()]
    told = {row["bench"].removeprefix("gpu ") for row in rows}
    assert told >= {"one session", "form", "sessions", "open", "launches", "load", "edge"}
    assert not [row for row in rows if "failed" in row["bench"]]
    assert {row["sessions"] for row in rows if row["bench"] == "gpu sessions"} == {1, 4}
