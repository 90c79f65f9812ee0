"""How long do a language model step and a codec frame take in Rust, against PyTorch?

    PYTHONPATH=benchmarks RAYON_NUM_THREADS=1 python plugins/rust/benchmarks/bench_rust.py \
        --model FOLDER --threads 1

Contestants take turns frame by frame. The language model is greedy with one session; its rings are
filled to ``--filled`` frames first. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from measure import Step, emit, summary, time_interleaved

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import LM, MIMI, Checkpoint, ModelOptions, open_checkpoint
from moshi_pipe.models.protocols import Controls
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from moshi_pipe.models.protocols import Codec, SpeechLM

CPU = torch.device("cpu")


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a checkpoint")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=4)
    parser.add_argument("--filled", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--lm",
        nargs="*",
        default=["torch/float32", "rust/float32", "torch/bfloat16", "rust/bfloat16", "rust/int8"],
    )
    parser.add_argument("--no-codec", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = open_checkpoint(ModelOptions(path=args.model), parts=[LM, MIMI])
    report: dict[str, Any] = {}
    if not args.no_codec:
        report["codec"] = run_codecs(checkpoint, args)
    report["lm"] = run_lms(checkpoint, args)
    emit("rust", {"model": checkpoint.config.raw["model_id"], "threads": args.threads, **report})


def run_lms(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    """Time the language models one after the other: together they need too much memory."""
    results, first = {}, {}
    for name in args.lm:
        backend, _, form = name.partition("/")
        quant = form if form.startswith("int") else "none"
        dtype = "bfloat16" if quant != "none" else form
        options = BackendOptions(backend=backend, dtype=dtype, quant=quant)
        model = load_plugins().open_lm(checkpoint, options, lambda *_: None)
        steps: dict[str, Step] = {}
        made = add_lm(name, model, steps, args.filled)
        results[name] = summary(time_interleaved(steps, args.steps, args.warm_up)[name])
        first.setdefault(form, made)
        same = sum(a == b for a, b in zip(made, first[form], strict=True))
        results[name]["tokens_equal"] = f"{same} of {len(made)}"
        if hasattr(model, "num_bytes"):
            results[name]["num_bytes"] = model.num_bytes
        del model, steps
    return results


def add_lm(name: str, model: SpeechLM, steps: dict[str, Step], filled: int) -> list[list[int]]:
    """Add a language model as a contestant; returns the tokens that it makes."""
    line = DelayLine(model.spec, CPU)
    state, delays = model.new_state(1), line.new_state(1)
    zeros, counts = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    controls = Controls(zeros, zeros, counts, counts)
    valid_B = torch.ones(1, dtype=torch.bool)
    made: list[list[int]] = []
    spec = model.spec

    def step(i: int) -> None:
        user = (torch.arange(spec.num_user)[None] * 37 + i * 101) % spec.cardinality
        column_BS = line.push_user(user, valid_B, delays)
        out = model.step(column_BS, valid_B, controls, state)
        line.push_generated(out.text_B, out.codes_BK, valid_B, delays)
        made.append([*out.text_B.tolist(), *out.codes_BK[0].tolist()])

    for i in range(filled):
        step(i)
    made.clear()
    steps[name] = step
    return made


def run_codecs(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    """Time both directions of every codec in turn."""
    options = {name: BackendOptions(backend=name) for name in ("torch", "rust")}
    plugins = load_plugins()
    codecs = {n: plugins.open_codec(checkpoint, o, lambda *_: None) for n, o in options.items()}
    if importlib.util.find_spec("rustymimi") is not None and checkpoint.mimi is not None:
        from moshi_pipe_rust.fallback import RustymimiCodec

        from moshi_pipe.errors import BackendError

        path = checkpoint.mimi_weights
        if path is not None:
            codecs["rustymimi"] = RustymimiCodec.open(checkpoint.mimi, path, BackendError(""))
    results: dict[str, Any] = {}
    frames = torch.randn(args.steps + args.warm_up, 1, 1, 1920).mul(0.1)
    codes: dict[str, list[torch.Tensor]] = {}
    for direction in ("encode", "decode"):
        steps: dict[str, Step] = {}
        for name, codec in codecs.items():
            add_codec(name, codec, steps, direction, frames, codes)
        times = time_interleaved(steps, args.steps, args.warm_up)
        results[direction] = {name: summary(times[name]) for name in steps}
    for name, made in codes.items():
        same = sum(torch.equal(a, b) for a, b in zip(made, codes["torch"], strict=True))
        results["encode"][name]["codes_equal"] = f"{same} of {len(made)}"
    return results


def add_codec(
    name: str,
    codec: Codec,
    steps: dict[str, Step],
    direction: str,
    frames: torch.Tensor,
    codes: dict[str, list[torch.Tensor]],
) -> None:
    """Add one direction of a codec as a contestant."""
    valid_B = torch.ones(1, dtype=torch.bool)
    if direction == "encode":
        encoder, made = codec.new_encoder_state(1), codes.setdefault(name, [])
        steps[name] = lambda i: made.append(codec.encode(frames[i], valid_B, encoder).clone())
    else:
        decoder, given = codec.new_decoder_state(1), codes["torch"]

        def step(i: int) -> None:
            codec.decode(given[i], valid_B, decoder)

        steps[name] = step


if __name__ == "__main__":
    main()
