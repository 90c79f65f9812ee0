"""What does the type of stored keys and values cost, when the context is full?

    python benchmarks/bench_kv.py --preset medium --context 3000 --slots 1 4

Random weights in float32, random rings, one thread; the types step in turn. The error is that of
the logits against a float32 ring over steps that begin with an empty one. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import TYPE_CHECKING, Any

import torch
from gpu_models import fill_rings
from measure import Step, emit, summary, time_interleaved

from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import LM, ModelOptions, open_checkpoint
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.protocols import Controls
from moshi_pipe.nn.moshi import Moshi
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from torch import Tensor

KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
NUM_COMPARED = 20


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--context", type=int, default=3000)
    parser.add_argument("--slots", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, preset=args.preset, seed=0, dtype="float32")
        checkpoint = open_checkpoint(ModelOptions(path=folder), parts=[LM])
        options = BackendOptions(device="cpu", dtype="float32", context=args.context)
        model = load_plugins().open_lm(checkpoint, options, lambda done, total: None)
    if not isinstance(model, Moshi):
        raise SystemExit(f"backend torch gave a {type(model).__name__}")
    emit("kv", {"preset": args.preset, "context": args.context, **run(model, args)})


def run(model: Moshi, args: argparse.Namespace) -> dict[str, Any]:
    """Every type with every number of slots."""
    results: dict[str, Any] = {}
    wanted = logits(model, torch.float32)
    for slots in args.slots:
        steps = {name: full_step(model, kind, slots) for name, kind in KINDS.items()}
        times = time_interleaved(steps, args.steps, 2)
        results[f"{slots} slots"] = {name: summary(times[name]) for name in KINDS}
    errors = {name: torch.dist(logits(model, kind), wanted) for name, kind in KINDS.items()}
    norm = torch.linalg.vector_norm(wanted)
    results["logit_error"] = {name: round(float(e / norm), 6) for name, e in errors.items()}
    results["ring_mb"] = {name: round(ring_bytes(model, k) / 1e6, 1) for name, k in KINDS.items()}
    return results


def full_step(model: Moshi, kind: torch.dtype, slots: int) -> Step:
    """A step of all slots on rings that are full of random numbers."""
    model.kv_dtype = kind
    state = model.new_state(slots)
    fill_rings(state.temporal)
    column_BS, valid_B, controls = inputs(model, slots)

    def step(_: int) -> None:
        model.step(column_BS, valid_B, controls, state)

    return step


def inputs(model: Moshi, slots: int) -> tuple[Tensor, Tensor, Controls]:
    """Tokens, all slots valid, greedy."""
    zeros, counts = torch.zeros(slots), torch.zeros(slots, dtype=torch.int64)
    column_BS = torch.ones(slots, 1 + model.spec.num_codebooks, dtype=torch.int64)
    return column_BS, torch.ones(slots, dtype=torch.bool), Controls(zeros, zeros, counts, counts)


def logits(model: Moshi, kind: torch.dtype) -> Tensor:
    """Of given tokens, from an empty ring on."""
    model.kv_dtype = kind
    state = model.new_state(1)
    column_BS, valid_B, controls = inputs(model, 1)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(NUM_COMPARED):
        column_BS.random_(model.spec.cardinality, generator=generator)
        step = model.step(column_BS, valid_B, controls, state)
        rows.append(step.extra["text_logits_BV"].clone())
    return torch.cat(rows)


def ring_bytes(model: Moshi, kind: torch.dtype) -> int:
    """Of one slot, all layers of the temporal transformer."""
    model.kv_dtype = kind
    rings = model.new_state(1).temporal.rings
    held = [(r.keys_BHLE, r.values_BHLE, r.key_scales_BHL, r.value_scales_BHL) for r in rings]
    return sum(tensor.nbytes for row in held for tensor in row if tensor is not None)


if __name__ == "__main__":
    main()
