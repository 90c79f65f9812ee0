"""What does a tick cost besides the codec and the language model?

    python benchmarks/bench_overhead.py --sessions 1 32

Whole runs of the command in this process, on the random model in the package: so many recordings at
once, each in a slot of its own. What is counted is what the engine's thread does outside of the
nodes from taking a tick's rows to handing them out: copies, rings, accounts, and waiting for the
interpreter's lock while recordings are read and results are written. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench_slots import run, write_recordings
from measure import emit

TARGETS_MS = {1: 1.0, 32: 5.0}


def main() -> None:
    """Run each number of sessions and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each recording")
    args = parser.parse_args()
    rows = [measure(count, args.seconds) for count in args.sessions]
    emit("overhead", {"seconds": args.seconds, "rows": rows})


def measure(sessions: int, seconds: float) -> dict[str, Any]:
    """The overhead of ticks with so many sessions in them."""
    with tempfile.TemporaryDirectory() as name:
        write_recordings(Path(name) / "in", sessions, seconds)
        report = run(Path(name), "dialogue", sessions)
    overhead = report["timing"]["overhead"]
    row = {key: overhead[key] for key in ("count", "p50_ms", "p99_ms", "max_ms")}
    target_ms = TARGETS_MS.get(sessions)
    return {"sessions": sessions, **row, "target_p99_ms": target_ms}


if __name__ == "__main__":
    main()
