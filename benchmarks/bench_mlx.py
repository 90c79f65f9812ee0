"""How long do models take on MLX, in each stored form, against torch? And how much to load them?

    python benchmarks/bench_mlx.py --preset medium --slots 1 --steps 20
    python benchmarks/bench_mlx.py --preset 1b --loading

Random weights, one file for all; greedy, contestants in turn, the column of tokens given. Loading
is measured in a process each: the highest RssAnon above what the imports took, over the bytes of
the weights as they are stored. Needs the plugin ``moshi-pipe-mlx``. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from measure import Step, emit, summary, time_interleaved
from moshi_pipe_mlx import opening

from moshi_pipe.builtin import TorchBackend
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import LM, MIMI, Checkpoint, ModelOptions, open_checkpoint
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.protocols import Controls

FORMS = {
    "torch float32": BackendOptions(dtype="float32"),
    "torch bfloat16": BackendOptions(dtype="bfloat16"),
    "mlx float32": BackendOptions("mlx", dtype="float32"),
    "mlx bfloat16": BackendOptions("mlx", dtype="bfloat16"),
    "mlx int8": BackendOptions("mlx", dtype="float32", quant="int8"),
    "mlx int4": BackendOptions("mlx", dtype="float32", quant="int4"),
}


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--device", default="auto", help="of MLX: auto, cpu or gpu")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--codec", action="store_true", help="time the codec instead")
    parser.add_argument("--loading", action="store_true", help="measure memory instead")
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load_and_measure(Path(args.load[0]), args.load[1], args.device)))
        return
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, preset=args.preset, seed=0)
        if args.loading:
            results = {form: loading(folder, form, args.device) for form in args.forms}
        elif args.codec:
            results = time_codec(Path(folder), args)
        else:
            results = time_lm(Path(folder), args)
    emit("mlx", {"preset": args.preset, "slots": args.slots, "results": results})


def time_lm(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time one step of the language model in every form."""
    models = {form: open_lm(folder, form, args.device) for form in args.forms}
    spec = next(iter(models.values())).spec
    generator = torch.Generator().manual_seed(0)
    shape = (args.steps + args.warm_up, args.slots, spec.num_streams)
    columns_TBS = torch.randint(0, spec.cardinality, shape, generator=generator)
    zeros, counts = torch.zeros(args.slots), torch.zeros(args.slots, dtype=torch.int64)
    controls = Controls(zeros, zeros, counts, counts)
    valid_B = torch.ones(args.slots, dtype=torch.bool)
    logits: dict[str, list[torch.Tensor]] = {form: [] for form in models}

    def stepper(form: str) -> Step:
        model, heard = models[form], logits[form]
        state = model.new_state(args.slots)

        def step(i: int) -> None:
            out = model.step(columns_TBS[i], valid_B, controls, state)
            heard.append(out.extra["text_logits_BV"].clone())

        return step

    times = time_interleaved({form: stepper(form) for form in models}, args.steps, args.warm_up)
    first = args.forms[0]
    exact = torch.stack(logits[first])
    report: dict[str, Any] = {form: summary(times[form]) for form in models}
    for form, row in report.items():
        error = (torch.stack(logits[form]) - exact).norm() / exact.norm()
        row[f"logit_error_to_{first}"] = float(f"{error.item():.2g}")
    return report


def time_codec(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time encoding and decoding of one frame on both backends."""
    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[MIMI])
    codecs: dict[str, Any] = {
        "torch": TorchBackend().open_codec(checkpoint, BackendOptions(), tell_nobody),
        "mlx": opening.open_codec(checkpoint, BackendOptions("mlx", device=args.device)),
    }
    spec = codecs["torch"].spec
    valid_B = torch.ones(args.slots, dtype=torch.bool)
    pcm_BCN = torch.rand(args.slots, 1, spec.frame_size) - 0.5
    codes_BK = torch.randint(0, spec.cardinality, (args.slots, spec.num_codebooks))
    steps: dict[str, Step] = {}
    for name, codec in codecs.items():
        encoder, decoder = codec.new_encoder_state(args.slots), codec.new_decoder_state(args.slots)

        def encode(_: int, codec: Any = codec, state: Any = encoder) -> None:
            codec.encode(pcm_BCN, valid_B, state)

        def decode(_: int, codec: Any = codec, state: Any = decoder) -> None:
            codec.decode(codes_BK, valid_B, state)

        steps |= {f"{name} encode": encode, f"{name} decode": decode}
    times = time_interleaved(steps, args.steps, args.warm_up)
    return {name: summary(times[name]) for name in steps}


def open_lm(folder: Path, form: str, device: str) -> Any:
    """Open the language model in one of the forms."""
    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])
    return _open(checkpoint, form, device)


def _open(checkpoint: Checkpoint, form: str, device: str) -> Any:
    options = FORMS[form]
    if options.backend == "torch":
        return TorchBackend().open_lm(checkpoint, options, tell_nobody)
    return opening.open_lm(checkpoint, replace(options, device=device), tell_nobody)


def loading(folder: str, form: str, device: str) -> dict[str, Any]:
    """Load in a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--load", folder, form]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def load_and_measure(folder: Path, form: str, device: str) -> dict[str, Any]:
    """Load while a thread watches this process's anonymous memory."""
    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])
    before, peak, done = rss_anon(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, rss_anon())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = _open(checkpoint, form, device)
    done.set()
    watcher.join()
    is_torch = FORMS[form].backend == "torch"
    stored = sum(p.nbytes for p in model.parameters()) if is_torch else int(model.weights.num_bytes)
    peak = max(peak, rss_anon()) - before
    return {
        "weights_mb": round(stored / 1e6, 1),
        "peak_mb": round(peak / 1e6, 1),
        "peak_over_weights": round(peak / stored, 3),
    }


def rss_anon() -> int:
    """Anonymous memory of this process, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def tell_nobody(done: int, total: int) -> None:
    """Loading is not watched here."""


if __name__ == "__main__":
    main()
