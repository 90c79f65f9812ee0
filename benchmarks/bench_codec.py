"""How long does Mimi take per 80 ms frame, against the reference and rustymimi?

    python benchmarks/bench_codec.py --threads 1 2 --compiled

The released codec's shape with random weights, the same file for all; every frame is done by all
contestants in turn. Codes are compared while timing. Peers that are not installed are left out, and
so is `rust`, the codec of plugins/rust. Every number of threads has a process of its own, because
those in Rust choose theirs once. The floor is the weights of a frame, in both directions, over the
bandwidth at which this machine reads, measured in the same run. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("NO_TORCH_COMPILE", "1")  # the reference would compile single operations

import torch
from measure import Step, alone, bandwidth, emit, summary, time_interleaved

from moshi_pipe.errors import BackendError
from moshi_pipe.models.checkpoint import MIMI, ModelOptions, open_checkpoint
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.nn.load import load_mimi
from moshi_pipe.nn.mimi import Mimi

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_CODEBOOKS = 8
PEERS = ("moshi", "rustymimi")


@dataclass
class Contest:
    """What every contestant does in its turn.

    Attributes:
        pcm_TBCN: The frames.
        encode: Encodes frame ``i``, by contestant.
        decode: Decodes what the contestant made of frame ``i``.
        codes: What each made so far.
    """

    pcm_TBCN: torch.Tensor
    encode: dict[str, Step] = field(default_factory=dict)
    decode: dict[str, Step] = field(default_factory=dict)
    codes: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, name: str, encode: Callable[[int], Any], decode: Callable[[Any], Any]) -> None:
        """Add one by how it encodes frame ``i`` and decodes codes."""
        made = self.codes.setdefault(name, [])
        self.encode[name] = lambda i: made.append(encode(i))
        self.decode[name] = lambda i: void(decode(made[i]))


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--slots", type=int, default=1, help="1 or a multiple of 4; peers take 1")
    parser.add_argument("--compiled", action="store_true", help="also time torch.compile")
    parser.add_argument("--preset", default="medium", help="medium has the released codec's shape")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, preset=args.preset, seed=0)
        here = Path(folder)
        results = {str(n): alone(run, here, args, n, threads=n) for n in args.threads}
    emit("codec", {"preset": args.preset, "slots": args.slots, "threads": results})


def run(folder: Path, args: argparse.Namespace, num_threads: int) -> dict[str, Any]:
    """Time every contestant on ``num_threads`` threads."""
    torch.set_num_threads(num_threads)
    torch.set_grad_enabled(False)
    load(folder)  # a virtual machine is slower where it touches memory first
    codec = load(folder)
    num_frames = args.frames + args.warm_up
    generator = torch.Generator().manual_seed(0)
    frame = codec.spec.frame_size
    pcm_TBCN = 0.1 * torch.randn(num_frames, args.slots, 1, frame, generator=generator)
    contest = Contest(pcm_TBCN)
    add_ours("ours", codec, contest)
    if args.compiled:
        add_ours("ours compiled", compiled(load(folder)), contest)
    add_rust(folder, codec, contest)
    if args.slots == 1:
        add_reference(folder, contest)
        add_rustymimi(folder, codec, contest)
    encode_ms = time_interleaved(contest.encode, args.frames, args.warm_up)
    decode_ms = time_interleaved(contest.decode, args.frames, args.warm_up)
    report: dict[str, Any] = {
        name: {"encode": summary(encode_ms[name]), "decode": summary(decode_ms[name])}
        for name in contest.encode
    }
    for name, times in report.items():
        times["sum_median_ms"] = round(sum(times[k]["median_ms"] for k in ("encode", "decode")), 3)
        times["codes_equal"] = (
            f"{matching(contest.codes['ours'], contest.codes[name])} of {num_frames} frames"
        )
    peers = [report[name]["sum_median_ms"] for name in PEERS if name in report]
    if peers:
        report["ratio_to_best_peer"] = {
            name: round(times["sum_median_ms"] / min(peers), 3)
            for name, times in report.items()
            if name not in PEERS
        }
    report["floor_ms"] = round(1e3 * weight_bytes(codec) / bandwidth(threads=num_threads), 1)
    return report


def weight_bytes(codec: Mimi) -> int:
    """Bytes of the weights that a frame reads on its way in and out; of codebooks, active ones."""
    entries = codec.mimi.cardinality * codec.mimi.quantizer_dim * 4
    matrices = [
        tensor
        for module in codec.modules()
        for tensor in (*module.parameters(recurse=False), getattr(module, "_matrix", None))
        if tensor is not None
    ]
    return entries * NUM_CODEBOOKS + sum(tensor.nbytes for tensor in matrices)


def load(folder: Path) -> Mimi:
    """Load our codec from the checkpoint."""
    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[MIMI])
    if checkpoint.mimi is None:
        raise SystemExit("the checkpoint has no codec")
    with torch.device("meta"):
        codec = Mimi(checkpoint.mimi)
    load_mimi(checkpoint, codec)
    codec.prepare()
    return codec


def compiled(codec: Mimi) -> Mimi:
    """Compile the parts of a step that have no data-dependent control flow."""
    for part in (codec.encoder, codec.decoder):
        part.step = torch.compile(part.step)  # type: ignore[method-assign]
    return codec


def add_ours(
    name: str,
    codec: Any,
    contest: Contest,
) -> None:
    """Add one of our forms as a contestant."""
    num_slots = contest.pcm_TBCN.shape[1]
    valid_B = torch.ones(num_slots, dtype=torch.bool)
    encoder, decoder = codec.new_encoder_state(num_slots), codec.new_decoder_state(num_slots)
    contest.add(
        name,
        lambda i: codec.encode(contest.pcm_TBCN[i], valid_B, encoder).clone(),
        lambda made: codec.decode(made, valid_B, decoder),
    )


def add_rust(
    folder: Path,
    ours: Mimi,
    contest: Contest,
) -> None:
    """Add our codec in Rust, if it is installed and built."""
    if importlib.util.find_spec("moshi_pipe_rust") is None:
        return
    from moshi_pipe_rust.codec import RustCodec
    from moshi_pipe_rust.native import load_native

    try:
        native = load_native()
    except BackendError:
        return
    codec = RustCodec.open(native, ours.mimi, folder / "mimi.safetensors")
    add_ours("rust", codec, contest)


def add_reference(
    folder: Path,
    contest: Contest,
) -> None:
    """Add the reference package, if it is installed."""
    if importlib.util.find_spec("moshi") is None:
        return
    from moshi.models.loaders import get_mimi

    codec = get_mimi(folder / "mimi.safetensors", num_codebooks=NUM_CODEBOOKS)
    codec.streaming_forever(1)
    contest.add(
        "moshi",
        lambda i: codec.encode(contest.pcm_TBCN[i])[..., 0].clone(),
        lambda made: codec.decode(made[..., None]),
    )


def add_rustymimi(
    folder: Path,
    ours: Mimi,
    contest: Contest,
) -> None:
    """Add rustymimi's blocking codec, if it is installed."""
    if importlib.util.find_spec("rustymimi") is None:
        return
    import rustymimi

    codec = rustymimi.Tokenizer(str(folder / "mimi.safetensors"), num_codebooks=NUM_CODEBOOKS)
    frames = [pcm.numpy() for pcm in contest.pcm_TBCN]
    contest.add("rustymimi", lambda i: codec.encode_step(frames[i]), codec.decode_step)


def matching(mine: list[Any], theirs: list[Any]) -> int:
    """Count the frames whose codes are all equal."""
    pairs = zip(mine, theirs, strict=True)
    return sum(torch.as_tensor(a).flatten().tolist() == flat(b) for a, b in pairs)


def flat(codes: Any) -> list[int]:
    """Codes of one frame as a list, whatever a contestant calls them."""
    return [int(code) for code in torch.as_tensor(codes).flatten()]


def void(_: Any) -> None:
    """Drop a result."""


if __name__ == "__main__":
    main()
