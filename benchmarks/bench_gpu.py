"""What does a tick cost on a GPU, and how many sessions does it hold?

    python benchmarks/bench_gpu.py --sections one,sessions,launches,load,edge --budget-s 480
    python benchmarks/bench_gpu.py --preset tiny --device cpu

Random weights made on the device, the same for the reference package, whose own CUDA graphs run
beside ours. A tick is timed on the host: a frame of every session in, encode, language model,
decode, results on the host. Needs torch, NumPy and safetensors; the reference and sphn are left out
where they are not installed. Prints a JSON line as soon as something is measured.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpu_edge import edge_costs
from gpu_models import Ours, Reference, Rig, make_rig, our_codec, our_lm
from gpu_tokens import agreement, logit_error, text_logits
from measure import emit, summary, time_interleaved

from moshi_pipe.models.checkpoint import LM, ModelOptions, open_checkpoint
from moshi_pipe.nn.backend import TorchOptions, open_lm

if TYPE_CHECKING:
    from collections.abc import Callable

GB = 1e9
BYTES_PER_MS = 4.3e9  # of an H200's memory, in a device-to-device copy
EAGER_TICKS = 40  # they are slow
FORMS = ("int8 triton", "int4 triton", "int8 auto", "int4 auto")


class Bench:
    """What the sections share.

    Attributes:
        rig: Shapes and weights.
        cuda: Whether there are graphs to speak of.
        kernels: Whether to use those of our own.
        ticks: Timed per contestant.
        steps: Compared, token by token.
        slots: Sessions to time together.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._ends = time.monotonic() + args.budget_s
        self._args = args
        self.ticks: int = args.ticks
        self.steps: int = args.steps
        self.slots: list[int] = args.slots
        device = torch.device(args.device)
        self.cuda = device.type == "cuda"
        began = time.perf_counter()
        self.rig = make_rig(args.preset, device)
        self.wait()
        self.kernels = self.cuda and args.kernels and self._kernels_work()
        self.tell(
            "weights",
            {
                "gb": round(self.rig.lm_bytes / GB, 2),
                "made_s": round(time.perf_counter() - began, 2),
            },
        )

    def tell(self, question: str, result: dict[str, Any]) -> None:
        """Print what was measured."""
        device = torch.cuda.get_device_name() if self.cuda else "cpu"
        emit(f"gpu {question}", {"preset": self._args.preset, "device": device, **result})

    def time_left(self, needed_s: float, what: str) -> bool:
        """Whether there is time for something; says so if there is not."""
        left_s = self._ends - time.monotonic()
        if left_s < needed_s:
            self.tell("skipped", {"what": what, "left_s": round(left_s), "needed_s": needed_s})
        return left_s >= needed_s

    def _kernels_work(self) -> bool:
        """Whether kernels of our own compile and run here; says so if they do not."""
        try:
            text_logits(our_lm(self.rig, kernels=True), 2)
            self.wait()
        except Exception as error:  # whatever a compiler lacks
            text = f"{type(error).__name__}: {error}"
            self.tell("failed", {"what": "kernels", "error": text[-500:]})
            return False
        return True

    def wait(self) -> None:
        """Until the device has done what was queued."""
        if self.cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    @property
    def has_reference(self) -> bool:
        """Whether the reference package is there."""
        return self._args.reference and importlib.util.find_spec("moshi") is not None


def main() -> None:
    """Run the sections that were asked for, in the order given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--preset", default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget-s", type=float, default=480)
    parser.add_argument("--ticks", type=int, default=200, help="timed per contestant")
    parser.add_argument("--steps", type=int, default=40, help="compared, token by token")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16, 32, 48, 64])
    parser.add_argument("--many", type=int, default=128, help="sessions with int8 keys and values")
    parser.add_argument("--no-reference", dest="reference", action="store_false")
    parser.add_argument("--no-kernels", dest="kernels", action="store_false", help="of our own")
    parser.add_argument("--no-compile", action="store_true", help="of the reference")
    args = parser.parse_args()
    if args.no_compile or args.device == "cpu":
        os.environ["NO_TORCH_COMPILE"] = "1"
    torch.set_grad_enabled(False)
    bench = Bench(args)
    for name in args.sections.split(","):
        guarded(bench, name, SECTIONS[name])


def guarded(bench: Bench, name: str, section: Callable[[Bench], None]) -> bool:
    """Run a section; what breaks one leaves the others. Says whether it went through."""
    through = False
    try:
        section(bench)
        through = True
    except Exception as error:  # any of it is a result too
        bench.tell("failed", {"what": name, "error": f"{type(error).__name__}: {error}"[:500]})
    bench.free()
    return through


def not_compiled() -> bool:
    """Keep the reference from compiling, where a compiler may be missing; False if it did not."""
    if os.environ.get("NO_TORCH_COMPILE"):
        return False
    from moshi.utils import compile as switches

    os.environ["NO_TORCH_COMPILE"] = "1"
    switches._compile_disabled = True
    return True


def one(bench: Bench) -> None:
    """One session: every form of ours, alone, then the best beside the reference."""
    rig = bench.rig
    codec, plain = our_codec(rig), our_lm(rig)
    for graphs in (True, False) if bench.cuda else (False,):
        single(bench, codec, plain, f"{name_of(rig)}{', graphs' if graphs else ''}", graphs)
    if bench.kernels:
        codec, plain = our_codec(rig, kernels=True), our_lm(rig, kernels=True)
        error = logit_error(bench, plain)
        bench.tell("form", {"form": "kernels", "logit_error": error})
        single(bench, codec, plain, f"{name_of(rig)}, graphs, kernels", True)
    if bench.has_reference and bench.time_left(60, "the reference"):
        guarded(bench, "agreement", agreement)
        compared = guarded(bench, "beside moshi", lambda b: beside_reference(b, codec, plain))
        if not compared and not_compiled() and bench.time_left(30, "the reference, not compiled"):
            guarded(bench, "beside moshi", lambda b: beside_reference(b, codec, plain))
    for form in FORMS:
        if "triton" in form and not bench.kernels:
            continue
        if bench.time_left(30, form):
            guarded(bench, form, lambda bench, form=form: quantized(bench, codec, form))


def beside_reference(bench: Bench, codec: Any, lm: Any) -> None:
    """One session of ours and one of the reference, tick by tick in turn."""
    ours, reference = Ours(bench.rig, codec, lm, 1), Reference(bench.rig, 1)
    ours.fill()
    steps = {"ours": lambda _: ours.tick(1), "moshi": lambda _: reference.tick()}
    times = time_interleaved(steps, bench.ticks, 10)
    rows = {name: summary(times[name]) for name in steps}
    ratio = rows["ours"]["median_ms"] / rows["moshi"]["median_ms"]
    floor_ms = bench.rig.lm_bytes / BYTES_PER_MS
    shown = {**rows, "ratio": round(ratio, 3), "floor_ms": round(floor_ms, 2)}
    bench.tell("one session beside moshi", shown)
    ours.close()


def name_of(rig: Rig) -> str:
    """Of the type of weights."""
    return str(rig.dtype).removeprefix("torch.")


def quantized(bench: Bench, codec: Any, form: str) -> None:
    """One session with quantized weights, and what they change."""
    began = time.perf_counter()
    lm = our_lm(bench.rig, form, kernels=bench.kernels)
    bench.wait()
    made_s = time.perf_counter() - began
    error = logit_error(bench, lm)
    words = [form, *(["graphs"] if bench.cuda else []), *(["kernels"] if bench.kernels else [])]
    single(bench, codec, lm, ", ".join(words), bench.cuda)
    bench.tell(
        "form", {"form": form, "made_s": round(made_s, 1), "quant": lm.quant, "logit_error": error}
    )


def single(bench: Bench, codec: Any, lm: Any, form: str, graphs: bool) -> None:
    """Time one session at full context; encode, language model and decode each."""
    began = time.perf_counter()
    ours = Ours(bench.rig, codec, lm, 1, graphs=graphs)
    bench.wait()
    ready_s = time.perf_counter() - began
    ours.fill()
    nodes_ms: list[list[float]] = [[], [], []]

    def step(_: int) -> None:
        ours.tick(1)
        for kept, (begin_ns, end_ns) in zip(nodes_ms, ours.spans_ns, strict=True):
            kept.append((end_ns - begin_ns) / 1e6)

    ticks = bench.ticks if graphs or not bench.cuda else min(bench.ticks, EAGER_TICKS)
    times = time_interleaved({"tick": step}, ticks, 10)
    parts = {
        f"{name}_ms": round(sorted(kept)[len(kept) // 2], 3)
        for name, kept in zip(("encode", "lm", "decode"), nodes_ms, strict=True)
    }
    shown = {**summary(times["tick"]), **parts, "open_s": round(ready_s, 2)}
    bench.tell("one session", {"form": form, **shown})
    ours.close()


def sessions(bench: Bench) -> None:
    """Ticks of more and more sessions at full context, then the reference's batches."""
    rig = bench.rig
    most = max(bench.slots)
    kernels = bench.kernels
    codec, lm = our_codec(rig, kernels=kernels), our_lm(rig, kernels=kernels)
    batch(bench, codec, lm, bench.slots, "keys and values as weights")
    bench.free()
    many = bench._args.many
    if many and bench.time_left(45, "int8 keys and values"):
        lm.kv_dtype = torch.int8
        sizes = sorted({most, many})
        guarded(bench, "int8", lambda b: batch(b, codec, lm, sizes, "int8 keys and values"))
        bench.free()
    if not bench.has_reference:
        return
    for size in sorted({8, most} & set(bench.slots)):
        if bench.time_left(45, f"the reference with {size} sessions"):
            guarded(bench, f"moshi {size}", lambda b, size=size: reference_batch(b, size))


def batch(bench: Bench, codec: Any, lm: Any, sizes: list[int], form: str) -> None:
    """Ticks over the first rows of an engine with as many slots as the largest."""
    rig, most = bench.rig, max(sizes)
    began = time.perf_counter()
    ours = Ours(rig, codec, lm, most, rows=sizes)
    bench.wait()
    open_s = round(time.perf_counter() - began, 2)
    ours.fill()
    ring_gb = (
        sum(
            tensor.nbytes
            for ring in ours.stages["lm"]._running().state.temporal.rings
            for tensor in ring._tensors()
        )
        / most
        / GB
    )
    for n in sizes:
        if not bench.time_left(5, f"{n} sessions"):
            break
        ticks = max(8, min(bench.ticks, round(4 * bench.ticks / n)))
        times = time_interleaved({"tick": lambda _, n=n: ours.tick(n)}, ticks, 3)
        lm_ms = [(end - begin) / 1e6 for begin, end in ours.spans_ns][1]
        floor_ms = (rig.lm_bytes + n * ring_gb * GB) / BYTES_PER_MS
        shown = {**summary(times["tick"]), "lm_ms": round(lm_ms, 2), "floor_ms": round(floor_ms, 2)}
        bench.tell("sessions", {"who": "ours", "form": form, "sessions": n, **shown})
    bench.tell("open", {"slots": most, "sizes": sizes, "form": form, "open_s": open_s})
    ours.close()


def reference_batch(bench: Bench, size: int) -> None:
    """The reference's batch mode."""
    reference = Reference(bench.rig, size)
    ticks = max(8, min(bench.ticks, round(4 * bench.ticks / size)))
    times = time_interleaved({"tick": lambda _: reference.tick()}, ticks, 5)
    bench.tell("sessions", {"who": "moshi", "sessions": size, **summary(times["tick"])})


def launches(bench: Bench) -> None:
    """Kernels of one tick, and how busy they keep the device."""
    from torch.profiler import ProfilerActivity, profile

    kernels = bench.kernels
    codec, lm = our_codec(bench.rig, kernels=kernels), our_lm(bench.rig, kernels=kernels)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]
    for graphs in (True, False) if bench.cuda else (False,):
        ours = Ours(bench.rig, codec, lm, 1, graphs=graphs)
        ours.fill()
        for _ in range(3):
            ours.tick(1)
        with profile(activities=kinds) as profiled:
            ours.tick(1)
        wanted = torch.autograd.DeviceType.CUDA if bench.cuda else torch.autograd.DeviceType.CPU
        events = [e for e in profiled.events() if e.device_type == wanted]
        if events:
            begin = min(e.time_range.start for e in events)
            end = max(e.time_range.end for e in events)
            busy = sum(e.time_range.elapsed_us() for e in events) if bench.cuda else 0
            by_name: dict[str, list[float]] = {}
            for e in events:
                by_name.setdefault(e.name[:60], []).append(e.time_range.elapsed_us())
            most = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:12]
            bench.tell(
                "launches",
                {
                    "graphs": graphs,
                    "own_kernels": kernels,
                    "kernels": len(events),
                    "span_ms": round((end - begin) / 1e3, 3),
                    "busy_share": round(busy / max(end - begin, 1e-9), 3),
                    "most": [[name, len(us), round(sum(us), 1)] for name, us in most],
                },
            )
        ours.close()


def load(bench: Bench) -> None:
    """A checkpoint from page cache to the device, beside what the bus does."""
    from safetensors.torch import save_file

    rig = bench.rig
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        # One host copy at a time: the file's own tensors are dropped before they are read.
        save_file(rig.lm_weights, folder / "model.safetensors")
        (folder / "config.json").write_text(config_text(rig))
        bench.tell("load", {"what": "written", "s": round(time.perf_counter() - began, 2)})
        size_gb = (folder / "model.safetensors").stat().st_size / GB
        checkpoint = open_checkpoint(ModelOptions(path=name), parts=[LM])
        for check in (True, False):
            checkpoint = replace(checkpoint, check_finite=check)
            bench.free()
            began = time.perf_counter()
            model = open_lm(checkpoint, TorchOptions(rig.device, rig.dtype))
            bench.wait()
            seconds = time.perf_counter() - began
            equal = torch.equal(model.text_emb.weight, rig.lm_weights["text_emb.weight"])
            shown = {"check_finite": check, "s": round(seconds, 2), "equal": equal}
            bench.tell(
                "load", {**shown, "gb": round(size_gb, 2), "gb_s": round(size_gb / seconds, 2)}
            )
            del model
    if bench.cuda:
        pinned = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
        there = torch.empty_like(pinned, device=rig.device)
        times = time_interleaved(
            {"copy": lambda _: (there.copy_(pinned, non_blocking=True), bench.wait())}, 5, 1
        )
        bus = round((1 << 30) / GB / min(times["copy"]) * 1e3, 1)
        bench.tell("load", {"what": "bus, pinned", "gb_s": bus})


def config_text(rig: Rig) -> str:
    """A config.json for the rig's language model."""
    import json

    return json.dumps({**rig.config, "moshi_name": "model.safetensors"})


def edge(bench: Bench) -> None:
    """What Opus costs a frame, and whether the interpreter waits for it."""
    bench.tell("edge", edge_costs())


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "one": one,
    "sessions": sessions,
    "launches": launches,
    "load": load,
    "edge": edge,
}

if __name__ == "__main__":
    main()
