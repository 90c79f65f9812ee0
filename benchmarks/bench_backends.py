"""How long does a language model step take, and how much memory, on each backend in each form?

    python benchmarks/bench_backends.py --preset medium
    python benchmarks/bench_backends.py --preset 1b --steps 10

Random weights, one bfloat16 file for all; one session, the column of tokens given. Every cell is a
process of its own, one after the other: milliseconds per step, the highest RssAnon above what the
imports took, and the logits' distance to torch in float32. The floor is the bytes of the weights as
they are stored over the bandwidth at which this machine reads, measured in the same run. Backends
that are not installed are left out. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import torch
from measure import bandwidth, emit, summary

from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import LM, ModelOptions, open_checkpoint
from moshi_pipe.models.layout import lm_layout
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.protocols import Controls
from moshi_pipe.plugins import load_plugins

PACKAGES = {"torch": "torch", "rust": "moshi_pipe_rust", "mlx": "moshi_pipe_mlx"}
FORMS = {
    "float32": BackendOptions(dtype="float32"),
    "bfloat16": BackendOptions(dtype="bfloat16"),
    "int8": BackendOptions(dtype="float32", quant="int8"),
    "int4": BackendOptions(dtype="float32", quant="int4"),
}
BITS = {"float32": 32, "bfloat16": 16, "int8": 8.25, "int4": 5}  # with scales


def main() -> None:
    """Run every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--backends", nargs="+", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--cell", nargs=3, metavar=("FOLDER", "BACKEND", "FORM"))
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(Path(args.cell[0]), *args.cell[1:], args.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, preset=args.preset, seed=0)
        cells = run_all(folder, args)
        floors = floor_ms(folder)
    print(table(cells, floors))
    emit("backends", {"preset": args.preset, "floor_ms": floors, "cells": cells})


def run_all(folder: str, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every backend in every form that it has."""
    cells: dict[str, dict[str, Any]] = {}
    for backend in args.backends:
        if importlib.util.find_spec(PACKAGES[backend]) is None:
            continue
        for form in FORMS:
            words = ["--steps", str(args.steps), "--cell", folder, backend, form]
            command = [sys.executable, "-W", "ignore", __file__, *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                cells[f"{backend} {form}"] = {"error": done.stderr.strip().splitlines()[-1]}
                continue
            cells[f"{backend} {form}"] = json.loads(done.stdout.splitlines()[-1])
    return with_errors(cells)


def with_errors(cells: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Put the distance to torch in float32 in the place of the logits."""
    wanted = torch.tensor(cells["torch float32"]["logits"])
    for cell in cells.values():
        if "logits" in cell:
            off = torch.dist(torch.tensor(cell.pop("logits")), wanted)
            cell["logit_error"] = round(float(off / torch.linalg.vector_norm(wanted)), 6)
    return cells


def run_cell(folder: Path, backend: str, form: str, num_steps: int) -> dict[str, Any]:
    """Load and time one backend in one form, in this process."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    given = FORMS[form]
    options = BackendOptions(backend, device="cpu", dtype=given.dtype, quant=given.quant)
    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])
    if backend != "torch":
        importlib.import_module(PACKAGES[backend] + ".plugin")
    peak = [before := anonymous_bytes()]

    def watch(done: int, total: int) -> None:
        peak[0] = max(peak[0], anonymous_bytes())

    lm = load_plugins().open_lm(checkpoint, options, watch)
    watch(0, 0)
    spec, state = lm.spec, lm.new_state(1)
    zeros, counts = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    controls = Controls(zeros, zeros, counts, counts)
    valid_B = torch.ones(1, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    times_ms, logits = [], []
    for _ in range(num_steps + 3):
        codes = torch.randint(spec.cardinality, (1, spec.num_codebooks), generator=generator)
        text = torch.randint(spec.text_cardinality, (1, 1), generator=generator)
        start_ns = time.perf_counter_ns()
        step = lm.step(torch.cat([text, codes], dim=1), valid_B, controls, state)
        times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        logits.append(step.extra["text_logits_BV"][0, :64].tolist())
    loaded = {"peak_load_mb": round((peak[0] - before) / 1e6, 1)}
    return {**summary(times_ms[3:]), **loaded, "logits": logits}


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def floor_ms(folder: str) -> dict[str, float]:
    """What reading the weights of a step once takes, by form.

    The weights of the depth transformer are all read, of embeddings only rows.
    """
    spec = open_checkpoint(ModelOptions(path=folder), parts=[LM]).config.lm
    if spec is None:
        raise SystemExit("the checkpoint has no language model")
    numbers = sum(
        tensor.num_elements for name, tensor in lm_layout(spec).tensors.items() if "emb" not in name
    )
    speed = bandwidth(threads=1)
    return {form: round(numbers * bits / 8 / speed * 1e3, 1) for form, bits in BITS.items()}


def table(cells: dict[str, dict[str, Any]], floors: dict[str, float]) -> str:
    """Rows by backend and form: ms per step and its floor, memory, distance of the logits."""
    lines = [
        "| backend | form | ms, median | floor | peak memory of loading | logit error |",
        "|---|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        backend, _, form = name.partition(" ")
        if "error" in cell:
            lines.append(f"| {backend} | {form} | | | | {cell['error'][:60]} |")
            continue
        lines.append(
            f"| {backend} | {form} | {cell['median_ms']:.0f} | {floors[form]:.0f} "
            f"| {cell['peak_load_mb']:.0f} MB | {cell['logit_error']:.2g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
