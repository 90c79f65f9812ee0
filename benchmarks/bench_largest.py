"""How large a language model holds 80 ms a step on this machine's CPU, against the reference?

    python benchmarks/bench_largest.py --threads 2

Random dialogue models of one family that grows in width; for each contestant, the largest whose
median step stays under a frame, found by bisection. The language model alone: the codec comes on
top. Every size that was tried is printed, and one JSON line. Contestants: ours in bfloat16, int8
and int4, in Rust in bfloat16 and int8 where that is installed, ``moshi`` in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import bench_lm
import torch
from measure import Step, emit, summary, time_interleaved
from shapes import grown, num_parameters

from moshi_pipe.models.make_checkpoint import make_checkpoint

FRAME_MS = 80.0
OURS = {"ours bfloat16": None, "ours int8": "int8", "ours int4": "int4"}
RUST = {"rust bfloat16": "bfloat16", "rust int8": "int8"}
PEERS = {"moshi float32": "float32", "moshi bfloat16": "bfloat16"}


def main() -> None:
    """Bisect for each contestant and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs=2, default=[2, 40], metavar=("FROM", "TO"))
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    has_peer = importlib.util.find_spec("moshi") is not None
    has_rust = importlib.util.find_spec("moshi_pipe_rust") is not None
    names = [*OURS, *(RUST if has_rust else ()), *(PEERS if has_peer else ())]
    found = {name: largest(name, args) for name in names}
    peer = max((found[name]["parameters"] for name in PEERS if name in found), default=0)
    ours = max(row["parameters"] for name, row in found.items() if name not in PEERS)
    ratio = {"ratio_to_moshi": round(ours / peer, 2)} if peer else {}
    emit("largest", {"threads": args.threads, "limit_ms": FRAME_MS, **ratio, "found": found})


def largest(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The largest size whose median step is under a frame; sizes in order of width."""
    fits, too_large = args.sizes[0] - 1, args.sizes[1] + 1
    kept: dict[str, Any] = {"parameters": 0}
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        row = measure(name, size, args.steps)
        print(f"{name}, {row['parameters'] / 1e6:.0f} M: {row['median_ms']} ms", flush=True)
        if row["median_ms"] < FRAME_MS:
            fits, kept = size, row
        else:
            too_large = size
    return kept


def measure(name: str, size: int, num_steps: int) -> dict[str, Any]:
    """Time one contestant at one size."""
    steps: dict[str, Step] = {}
    preset = grown(size)
    dtype = PEERS.get(name, "bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, preset=preset, seed=0, dtype=dtype)
        if name in PEERS:
            bench_lm.add_reference(Path(folder), dtype, steps, {})
        elif name in RUST:
            bench_lm.add_ours(name, bench_lm.load_rust(Path(folder), dtype, RUST[name]), steps, {})
        else:
            model = bench_lm.load(Path(folder), dtype, "fast", OURS[name])
            bench_lm.add_ours(name, model, steps, {})
        (times_ms,) = time_interleaved(steps, num_steps, warm_up=3).values()
    return {"parameters": num_parameters(preset), "dim": preset.dim, **summary(times_ms)}


if __name__ == "__main__":
    main()
