"""How long does one language model step take, against the reference?

    python benchmarks/bench_lm.py --preset medium --dtype float32 bfloat16 --threads 1 2
    python benchmarks/bench_lm.py --preset 943m --quant int8 int4 --slots 16
    python benchmarks/bench_lm.py --preset 943m --rust --slots 16
    python benchmarks/bench_lm.py --preset 943m --rust --stored bfloat16   # as released weights are
    python benchmarks/bench_lm.py --preset 943m --rust --only 'rust int8'   # by turns with nobody

Random weights, the same file for both; greedy, one session, steps done in turn, tokens compared
while timing. The floor is the bytes that a step reads over the bandwidth at which this machine
reads, measured in the same run. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("NO_TORCH_COMPILE", "1")

import torch
from measure import Step, alone, bandwidth, emit, summary, time_interleaved
from shapes import num_multiplied, num_parameters, shape

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import LM, ModelOptions, open_checkpoint
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.protocols import Controls
from moshi_pipe.nn.load import load_lm
from moshi_pipe.nn.moshi import Moshi
from moshi_pipe.nn.weight_quantizer import WeightQuantizer
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from moshi_pipe.models.protocols import SpeechLM
    from moshi_pipe.models.spec import LMSpec

CPU = torch.device("cpu")
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.625}  # int4 with its scales


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument(
        "--stored",
        choices=("float32", "bfloat16"),
        help="type of the file's weights, where not as --dtype",
    )
    parser.add_argument("--preset", default="medium", help="of make-checkpoint, or 943m")
    parser.add_argument(
        "--slots",
        type=int,
        default=1,
        help="also time so many sessions at once, peers then left out",
    )
    parser.add_argument("--quant", nargs="*", default=[], help="also time int8, int4")
    parser.add_argument("--compiled", action="store_true", help="also time torch.compile")
    parser.add_argument("--only", nargs="+", default=[], help="of ours, such as 'rust int8'")
    parser.add_argument("--rust", action="store_true", help="also time backend=rust, and its int8")
    args = parser.parse_args()
    preset = shape(args.preset)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in args.dtype:
            make_checkpoint(folder, preset=preset, seed=0, dtype=args.stored or dtype)
            for num_threads in args.threads:
                key = f"{dtype}, {num_threads} threads"
                one = Path(folder), args, dtype, num_threads
                results[key] = alone(run, *one, threads=num_threads)
    size = {"parameters": num_parameters(preset), "multiplied": num_multiplied(preset)}
    emit("lm", {"preset": args.preset, "stored": args.stored, **size, "results": results})


def run(folder: Path, args: argparse.Namespace, dtype: str, num_threads: int) -> dict[str, Any]:
    """Time every contestant."""
    torch.set_num_threads(num_threads)
    torch.set_grad_enabled(False)
    load(folder, dtype, "fast")  # a virtual machine is slower where it touches memory first
    steps: dict[str, Step] = {}
    tokens: dict[str, list[list[int]]] = {}
    ours = contestants(folder, args, dtype)
    if unknown := set(args.only) - set(ours):
        raise SystemExit(f"--only {sorted(unknown)}: there are {', '.join(ours)}")
    for name, (model, num_slots) in ours.items():
        if not args.only or name in args.only:
            add_ours(name, model(), steps, tokens, num_slots)
    if args.slots == 1 and not args.only and importlib.util.find_spec("moshi") is not None:
        add_reference(folder, dtype, steps, tokens)
    times = time_interleaved(steps, args.steps, args.warm_up)
    report: dict[str, Any] = {name: summary(times[name]) for name in steps}
    exact = tokens.get("ours reference")
    for name, row in report.items() if exact else ():
        same = sum(a == b for a, b in zip(exact, tokens[name], strict=True))
        row["tokens_equal"] = f"{same} of {args.steps + args.warm_up} steps"
    if "moshi" in report:
        ratio = report["ours fast"]["median_ms"] / report["moshi"]["median_ms"]
        report["ratio_to_moshi"] = round(ratio, 3)
        if args.rust:
            ratio = report[f"rust {dtype}"]["median_ms"] / report["moshi"]["median_ms"]
            report["rust_ratio_to_moshi"] = round(ratio, 3)
    speed = bandwidth(threads=num_threads)
    read = num_multiplied(shape(args.preset))
    stored = args.stored or dtype
    forms = dict.fromkeys((dtype, stored, *args.quant, *(["int8"] if args.rust else [])))
    floors = {form: read * BYTES[form] / speed * 1e3 for form in forms}
    report["floor_ms"] = {form: round(floor, 1) for form, floor in floors.items()}
    return report


def contestants(
    folder: Path, args: argparse.Namespace, dtype: str
) -> dict[str, tuple[Callable[[], SpeechLM], int]]:
    """Name what of ours is timed, with what loads it and its sessions."""
    found: dict[str, tuple[Callable[[], SpeechLM], int]] = {}
    many = args.slots
    for numerics in ("fast", "reference"):
        found[f"ours {numerics}"] = partial(load, folder, dtype, numerics), 1
    for quant in args.quant:
        found[f"ours {quant}"] = partial(load, folder, dtype, "fast", quant), 1
    for form in dict.fromkeys([dtype, "int8"]) if args.rust else []:
        rust = cache(partial(load_rust, folder, dtype, form))
        found[f"rust {form}"] = rust, 1
        if many > 1:
            found[f"rust {form}, {many} slots"] = rust, many
    if args.compiled:
        found["ours compiled"] = partial(load_compiled, folder, dtype), 1
    for form in (args.quant or [dtype]) if many > 1 else []:
        quant = None if form == dtype else form
        found[f"ours {form}, {many} slots"] = partial(load, folder, dtype, "fast", quant), many
    return found


def load_compiled(folder: Path, dtype: str) -> Moshi:
    """Load our model and compile its steps."""
    model = load(folder, dtype, "reference")
    model.temporal_step = torch.compile(model.temporal_step)  # type: ignore[method-assign]
    model.depth_step = torch.compile(model.depth_step)  # type: ignore[method-assign]
    return model


def load(folder: Path, dtype: str, numerics: str, quant: str | None = None) -> Moshi:
    """Load our model from the checkpoint."""
    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])
    if checkpoint.config.lm is None:
        raise SystemExit("the checkpoint has no language model")
    with torch.device("meta"):
        model = Moshi(checkpoint.config.lm, numerics=numerics)
    quantizer = None
    if quant is not None:
        quantizer = WeightQuantizer(quant, group_size=32, product="auto", exact=False, device=CPU)
    load_lm(checkpoint, model, dtype=getattr(torch, dtype), quantizer=quantizer)
    model.quant = None if quantizer is None else quantizer.summary
    return model


def load_rust(folder: Path, dtype: str, form: str) -> SpeechLM:
    """Load it into ``backend=rust``."""
    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])
    quant = "none" if form == dtype else form
    options = BackendOptions(backend="rust", dtype=dtype, quant=quant)
    return load_plugins().open_lm(checkpoint, options, lambda *_: None)


def add_ours(
    name: str,
    model: SpeechLM,
    steps: dict[str, Step],
    tokens: dict[str, list[list[int]]],
    num_slots: int = 1,
) -> None:
    """Add one of our forms as a contestant."""
    line = DelayLine(model.spec, CPU)
    state, delays = model.new_state(num_slots), line.new_state(num_slots)
    zeros, counts = torch.zeros(num_slots), torch.zeros(num_slots, dtype=torch.int64)
    controls = Controls(zeros, zeros, counts, counts)
    valid_B = torch.ones(num_slots, dtype=torch.bool)
    made = tokens.setdefault(name, [])

    def step(i: int) -> None:
        column_BS = line.push_user(user_codes(i, model.spec).expand(num_slots, -1), valid_B, delays)
        out = model.step(column_BS, valid_B, controls, state)
        text_B, codes_BK = line.push_generated(out.text_B, out.codes_BK, valid_B, delays)
        made.append([int(text_B[0]), *codes_BK[0].tolist()])

    steps[name] = step


def add_reference(
    folder: Path, dtype: str, steps: dict[str, Step], tokens: dict[str, list[list[int]]]
) -> None:
    """Add the reference package."""
    from moshi.models.lm import LMGen
    from moshi.models.loaders import get_moshi_lm

    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])
    keys = {k: v for k, v in checkpoint.config.raw.items() if k not in NOT_THE_MODELS}
    model = get_moshi_lm(checkpoint.lm_weights, keys, device="cpu", dtype=getattr(torch, dtype))
    generator = LMGen(model, use_sampling=False, support_out_of_sync=True)
    generator.streaming_forever(1)
    spec = checkpoint.config.lm
    assert spec is not None, "the checkpoint has a language model"
    made = tokens.setdefault("moshi", [])

    def step(i: int) -> None:
        out = generator.step(user_codes(i, spec)[..., None])
        made.append(out[0, :, 0].tolist())

    steps["moshi"] = step


NOT_THE_MODELS = {
    "moshi_name",
    "mimi_name",
    "mimi_config_name",
    "tokenizer_name",
    "model_type",
    "model_id",
    "lm_gen_config",
    "stt_config",
}


def user_codes(step: int, spec: LMSpec) -> torch.Tensor:
    """Codes of the user's streams, int64 ``[1, K]``."""
    return (torch.arange(spec.num_user)[None] * 37 + step * 101) % spec.cardinality


if __name__ == "__main__":
    main()
