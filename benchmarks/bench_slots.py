"""How fast do many recordings go, against slots, and against the reference's ``run_inference``?

    python benchmarks/bench_slots.py --preset small --plot docs/files.svg

The same random model and recordings for both, float32, greedy, one thread. Ours are whole runs of
the command in this process: reading, writing and reports included, loading not. The reference is
``moshi.run_inference``'s own loop over batches of as many recordings; its reading, writing and
loading are left out. Text tokens are compared, file by file, with those of all our runs. Prints one
JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_TORCH_COMPILE", "1")  # the reference would compile single operations

import numpy as np
import soundfile
import torch
from bench_lm import NOT_THE_MODELS
from measure import emit
from safetensors.numpy import load_file

from moshi_pipe.cli import main as command
from moshi_pipe.models.checkpoint import ModelOptions, open_checkpoint
from moshi_pipe.models.make_checkpoint import make_checkpoint

SAMPLE_RATE = 24_000


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each recording")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--peer-slots", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--plot", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "model", preset=args.preset, seed=0, dtype="float32")
        write_recordings(folder / "in", args.files, args.seconds)
        rows = [measure_ours(folder, slots) for slots in args.slots]
        if importlib.util.find_spec("moshi") is not None:
            rows += [measure_reference(folder, slots) for slots in args.peer_slots]
    told = {key: getattr(args, key) for key in ("preset", "files", "seconds")}
    emit("slots", {**told, **ratios(rows), "rows": rows})
    if args.plot is not None:
        draw(rows, args.plot)


def write_recordings(folder: Path, count: int, seconds: float) -> None:
    """Write noise that waxes and wanes; what a model hears does not change how long it takes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    for i in range(count):
        pcm = 0.1 * rng.standard_normal(t.size) * (1 + np.sin(2 * np.pi * 3 * t))
        soundfile.write(folder / f"{i:03}.wav", pcm, SAMPLE_RATE)


def measure_ours(folder: Path, slots: int) -> dict[str, Any]:
    """All recordings with so many slots."""
    model = ["model=local", f"model.path={folder / 'model'}", "dtype=float32"]
    report = run(folder, "dialogue", slots, model, sinks="[file,codes]")
    row = {"who": "moshi-pipe", "slots": slots, "wall_s": round(report["wall_s"], 2)}
    return {**row, "speed": round(report["speed"], 2)}


def run(
    folder: Path,
    graph: str,
    slots: int,
    model: list[str] | None = None,
    sinks: str = "[file]",
) -> dict[str, Any]:
    """Run all recordings of ``in``; give the report of the run."""
    out = folder / f"out-{slots}"
    words = [
        *(model or ["model=embedded"]),
        f"source.path={folder / 'in'}",
        f"output_dir={out}",
        f"graph={graph}",
        f"sink={sinks}",
        "sampling=greedy",
        f"engine.slots={slots}",
        "engine.threads=1",
        "resume=false",
        "seed=1",
    ]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        code = command(words)
    if code:
        raise SystemExit(f"the run failed with exit code {code}")
    report: dict[str, Any] = json.loads((out / "run.json").read_text())
    return report


def measure_reference(folder: Path, slots: int) -> dict[str, Any]:
    """All recordings in the reference's loop, in batches of so many."""
    from moshi.run_inference import InferenceState

    info, mimi, lm = reference_models(folder / "model")
    paths = sorted((folder / "in").glob("*.wav"))
    if len(paths) % slots:
        raise SystemExit(
            f"the reference takes whole batches: {len(paths)} is no multiple of {slots}"
        )
    pcms_NBCT = torch.stack([read(path) for path in paths]).split(slots)
    texts: list[list[int]] = []
    wall_s = 0.0
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        tokenizer = info.get_text_tokenizer()
        state = InferenceState(info, mimi, tokenizer, lm, slots, 1.0, "cpu", use_sampling=False)
        for pcms_BCT in pcms_NBCT:
            mimi.reset_streaming()
            state.lm_gen.reset_streaming()
            began = time.perf_counter()
            made = state.run(pcms_BCT)
            wall_s += time.perf_counter() - began
            texts += [text.tolist() for text, _ in made]
    audio_s = sum(pcm.numel() for pcm in pcms_NBCT) / SAMPLE_RATE
    row = {"who": "moshi 0.2.13", "slots": slots, "wall_s": round(wall_s, 2)}
    same = sum(ours(folder, path) == [text] for path, text in zip(paths, texts, strict=True))
    return {**row, "speed": round(audio_s / wall_s, 2), "same_text": f"{same} of {len(paths)}"}


def reference_models(folder: Path) -> tuple[Any, Any, Any]:
    """What the reference loads from the same files."""
    from moshi.models.loaders import CheckpointInfo

    checkpoint = open_checkpoint(ModelOptions(path=str(folder)))
    config = {k: v for k, v in checkpoint.config.raw.items() if k not in NOT_THE_MODELS}
    for key in ("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name"):
        if checkpoint.config.raw.get(key):
            config[key] = f"file://{folder / checkpoint.config.raw[key]}"
    config.setdefault("moshi_name", f"file://{checkpoint.lm_weights}")
    path = folder / "reference_config.json"
    path.write_text(json.dumps(config))
    info = CheckpointInfo.from_hf_repo("nowhere/nothing", config_path=path)
    mimi = info.get_mimi(device="cpu")
    return info, mimi, info.get_moshi(device="cpu", dtype=torch.float32)


def read(path: Path) -> torch.Tensor:
    """A recording, float32 ``[1, N]``."""
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]


def ours(folder: Path, path: Path) -> list[list[int]]:
    """Text tokens of a recording, as the reference counts them: those that our runs disagree on."""
    found: list[list[int]] = []
    for out in folder.glob("out-*"):
        made = load_file(out / f"{path.stem}.safetensors")
        tokens = made["text"][made["valid"].astype(bool)].tolist()
        found += [tokens] if tokens not in found else []
    return found


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Our best speed over our speed with one slot, and over the reference's best."""
    best: dict[str, float] = {}
    for row in rows:
        best[row["who"]] = max(best.get(row["who"], 0.0), row["speed"])
    first = next(row["speed"] for row in rows if row["slots"] == min(r["slots"] for r in rows))
    told = {"speed_up": round(best["moshi-pipe"] / first, 2)}
    peers = [speed for who, speed in best.items() if who != "moshi-pipe"]
    return {**told, "ratio_to_moshi": round(best["moshi-pipe"] / max(peers), 2)} if peers else told


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Throughput against slots, a line per contestant, as SVG."""
    from plots import COLOURS, new_figure, save

    figure, axes = new_figure()
    for colour, who in zip(COLOURS, dict.fromkeys(row["who"] for row in rows), strict=False):
        mine = sorted((row["slots"], row["speed"]) for row in rows if row["who"] == who)
        axes.plot(*zip(*mine, strict=True), marker="o", color=colour, label=who)
    axes.set_xscale("log", base=2)
    ticks = sorted({row["slots"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("recordings at once")
    axes.set_ylabel("seconds of audio a second")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    main()
