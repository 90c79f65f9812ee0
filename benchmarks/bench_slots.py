"""How much faster do many short recordings go with several slots than with one?

    python benchmarks/bench_slots.py --files 64 --slots 8

Whole runs of the command in this process, on the random model in the package, one thread, in turn
with one slot and with several; reading, writing and reports included. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from measure import emit

from moshi_pipe.cli import main as command

SAMPLE_RATE = 24_000


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each recording")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--graph", default="dialogue")
    args = parser.parse_args()
    times: dict[int, list[float]] = {1: [], args.slots: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recordings(folder / "in", args.files, args.seconds)
        for _ in range(args.rounds):
            for slots, seconds in times.items():
                seconds.append(run(folder, args.graph, slots))
    pairs = zip(times[1], times[args.slots], strict=True)
    emit(
        "slots",
        {
            "files": args.files,
            "seconds_each": args.seconds,
            "graph": args.graph,
            "wall_s": {slots: [round(s, 2) for s in seconds] for slots, seconds in times.items()},
            f"speed_up_{args.slots}_slots": round(statistics.median(a / b for a, b in pairs), 2),
        },
    )


def write_recordings(folder: Path, count: int, seconds: float) -> None:
    """Write noise that waxes and wanes; what a model hears does not change how long it takes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    for i in range(count):
        pcm = 0.1 * rng.standard_normal(t.size) * (1 + np.sin(2 * np.pi * 3 * t))
        soundfile.write(folder / f"{i:03}.wav", pcm, SAMPLE_RATE)


def run(folder: Path, graph: str, slots: int) -> float:
    """Run all recordings; give the seconds that the sessions took, without loading."""
    out = folder / f"out-{slots}"
    words = [
        "model=embedded",
        f"source.path={folder / 'in'}",
        f"output_dir={out}",
        f"graph={graph}",
        "sink=[file]",
        f"engine.slots={slots}",
        "engine.threads=1",
        "resume=false",
        "seed=1",
    ]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        code = command(words)
    if code:
        raise SystemExit(f"the run failed with exit code {code}")
    return float(json.loads((out / "run.json").read_text())["wall_s"])


if __name__ == "__main__":
    main()
