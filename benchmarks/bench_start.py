"""How long until the command answers, and until the small model is ready?

    python benchmarks/bench_start.py

New processes, in turn: the help; ``import torch`` alone; the small model loaded and opened in
Python, torch imported before. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from measure import Step, emit, summary, time_interleaved

HELP = [sys.executable, "-m", "moshi_pipe", "--help"]
TORCH = [sys.executable, "-c", "import torch"]
READY = [
    sys.executable,
    "-c",
    "import torch, time; began = time.monotonic(); import moshi_pipe; moshi_pipe.load('nano');"
    " print(time.monotonic() - began)",
]


def main() -> None:
    """Start each several times and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    ready_ms: list[float] = []
    steps: dict[str, Step] = {
        "help": lambda i: void(said(HELP)),
        "import torch": lambda i: void(said(TORCH)),
        "torch and nano": lambda i: ready_ms.append(1e3 * float(said(READY))),
    }
    times = time_interleaved(steps, args.rounds, warm_up=1)
    rows = {name: summary(times_ms) for name, times_ms in times.items()}
    rows["nano, after torch"] = summary(ready_ms[1:])
    emit("start", {"rows": rows, "targets_ms": {"help": 300, "nano, after torch": 2000}})


def said(command: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def void(_: object) -> None:
    """Drop a result."""


if __name__ == "__main__":
    main()
