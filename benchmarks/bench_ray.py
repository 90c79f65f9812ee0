r"""How does throughput grow with actors and slots, and what does Ray cost against one process?

    pip install -e plugins/ray
    python benchmarks/bench_ray.py --actors 1 2 --slots 1 4 8 --files 64 --plot docs/ray.svg

Recordings of noise, of 2 to 6 s, run by one process and by actors of one cluster on this machine.
Throughput is seconds of audio per second from the moment the models are loaded to the last result
in its place. Overhead is what one process does over what one actor does, of the same slots. Prints
one JSON line. On machines with GPUs: ``--words model=local model.path=seven device=cuda``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import emit

RATE = 24_000


def main() -> None:
    """Measure each number of actors and slots, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--words", nargs="*", default=["model=embedded"])
    parser.add_argument("--plot", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_recordings(Path(folder), args.files)
        rows = measure_all(manifest, Path(folder), args)
    told = {key: getattr(args, key) for key in ("files", "threads", "words")}
    emit("ray", {**told, "overhead": overhead(rows), "rows": rows})
    if args.plot is not None:
        draw(rows, args.plot)


def write_recordings(folder: Path, count: int) -> Path:
    """Recordings of 2 to 6 s, and the manifest of them."""
    import soundfile

    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        samples = 0.1 * rng.standard_normal(2 * RATE + (i * 4 * RATE) // max(1, count - 1))
        soundfile.write(folder / f"{i:05d}.wav", samples.astype(np.float32), RATE)
        lines.append(json.dumps({"path": f"{i:05d}.wav"}) + "\n")
    (folder / "list.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "list.jsonl"


def measure_all(manifest: Path, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One process, then each number of actors, for each number of slots; on one cluster."""
    from moshi_pipe_ray.cluster import connected
    from moshi_pipe_ray.options import RayOptions

    rows = []
    for slots in args.slots:
        rows.append(measure(manifest, folder / f"one-{slots}", slots, 0, args))
    with connected(RayOptions()):
        for slots in args.slots:
            for actors in args.actors:
                out = folder / f"{actors}-{slots}"
                rows.append(measure(manifest, out, slots, actors, args))
    return rows


def measure(
    manifest: Path, out: Path, slots: int, actors: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Run the recordings once; 0 actors is one process without Ray."""
    from moshi_pipe.build import run_config
    from moshi_pipe.compose import load_run
    from moshi_pipe.overrides import prepare
    from moshi_pipe.plugins import load_plugins
    from moshi_pipe.progress import SilentUI

    plugins = load_plugins()
    words = [*args.words, f"source.path={manifest}", f"output_dir={out}", "seed=1"]
    engine = ["engine=ray", f"engine.actors={actors}"] if actors else []
    counts = [f"engine.slots={slots}", f"engine.threads={args.threads}"]
    config = load_run(prepare([*words, *engine, *counts]), plugins.nodes)
    report = run_config(config, SilentUI(), plugins)
    if report.count("done") != args.files:
        errors = [one.error for one in report.sessions if one.error]
        done = report.count("done")
        raise SystemExit(f"{actors} actors: {done} of {args.files} are done {errors[:3]}")
    return {
        "actors": actors,
        "slots": slots,
        "audio_s": round(report.audio_s, 1),
        "wall_s": round(report.wall_s, 2),
        "speed": round(report.speed, 2),
        "load_s": round(report.load_s, 1),
    }


def overhead(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By slots: how much faster one process is than one actor, as a share."""
    speeds = {(row["actors"], row["slots"]): row["speed"] for row in rows}
    return {
        str(slots): round(speed / speeds[1, slots] - 1, 3)
        for (actors, slots), speed in speeds.items()
        if actors == 0 and (1, slots) in speeds
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Throughput against slots, a line per number of actors, as SVG; needs matplotlib."""
    from plots import COLOURS, new_figure, save

    figure, axes = new_figure()
    counts = sorted({row["actors"] for row in rows})
    for actors, colour in zip(counts, COLOURS * len(counts), strict=False):
        mine = sorted((r["slots"], r["speed"]) for r in rows if r["actors"] == actors)
        many = "actors" if actors > 1 else "actor"
        label = f"{actors} {many}" if actors else "one process, no Ray"
        style = "-" if actors else "--"
        axes.plot(*zip(*mine, strict=True), style, marker="o", color=colour, label=label)
    axes.set_xlabel("slots of each")
    axes.set_ylabel("seconds of audio a second")
    axes.set_xticks(sorted({row["slots"] for row in rows}))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    main()
