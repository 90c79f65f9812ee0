"""Do many conversations on one engine stay exact and in time, with hostile clients among them?

    python benchmarks/bench_serve.py --clients 32 --seconds 120 --hostile 3 --check 8

The real command on the random model in the package (`model=embedded`, CPU, float32,
`numerics=reference`), raw floats, nothing dropped (`engine.late=slow_down`). Clients join and leave
at random; each talks for the given time in real time with jitter. Some sessions, drawn by seed, are
run again alone from files in an engine of as many slots: text and audio must be the same bits.
Prints one JSON line; exits 1 when a session differs.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from measure import emit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.audio import babble  # noqa: E402
from support.hostile import HOSTILE  # noqa: E402
from support.serving import FRAME, Heard, Pace, Server, talk  # noqa: E402

from moshi_pipe.resume import derive_seed  # noqa: E402

_DETAIL = ("bucket", "created")
ENGINE = ["model=embedded", "device=cpu", "dtype=float32", "numerics=reference"]


def main() -> None:
    """Run, check and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--spread", type=float, default=30.0, help="seconds over which they join")
    parser.add_argument("--hostile", type=int, default=3)
    parser.add_argument("--check", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="reruns beside each other")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mp") as name:
        folder = Path(name)
        heard, metrics = serve(folder, args)
        drawn = np.random.default_rng(args.seed).choice(args.clients, args.check, replace=False)
        with ThreadPoolExecutor(args.jobs) as pool:
            same = list(pool.map(lambda i: same_alone(folder, args, i, heard[i]), drawn.tolist()))
        different = [int(i) for i, bits in zip(drawn, same, strict=True) if not bits]
    latency = sorted(ms for one in heard for ms in one.latency_ms)
    stats = [s["latency_ms"] for one in heard for s in one.stats() if s["latency_ms"] is not None]
    emit(
        "serve",
        {
            "clients": args.clients,
            "seconds": args.seconds,
            "threads": args.threads,
            "hostile": args.hostile,
            "checked_alone": len(drawn),
            "different": different,
            "frames": sum(len(one.audio) for one in heard),
            "client_latency_ms": quantiles(latency),
            "session_latency_ms": quantiles(sorted(stats)),
            "overhead_ms": of_engine(metrics, "overhead"),
            "tick_ms": of_engine(metrics, "tick"),
            "closes": sorted({str(one.close) for one in heard}),
            "metrics": metrics,
        },
    )
    sys.exit(1 if different else 0)


def serve(folder: Path, args: argparse.Namespace) -> tuple[list[Heard], dict[str, float]]:
    """All clients on one server."""
    words = [
        *ENGINE,
        f"engine.slots={args.clients + args.hostile}",
        f"engine.threads={args.threads}",
        "engine.late=slow_down",
        "engine.admit_ms=1000",
        "server.max_connections=200",
        "server.connections_per_address=200",
        f"server.max_s={args.seconds + 60}",
        "seed=1",
    ]
    with Server(folder, *words) as server:
        heard = asyncio.run(everyone(server.url, args))
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            metrics = plain(answer.read().decode())
    return heard, metrics


async def everyone(url: str, args: argparse.Namespace) -> list[Heard]:
    """Clients that join at random, and the hostile ones."""
    rng = np.random.default_rng(args.seed)
    joins = rng.uniform(0, args.spread, args.clients)
    lengths = rng.uniform(0.8 * args.seconds, args.seconds, args.clients)
    enemies = [
        asyncio.create_task(HOSTILE[i % len(HOSTILE)](url, args.seconds))
        for i in range(args.hostile)
    ]

    async def one(i: int) -> Heard:
        await asyncio.sleep(float(joins[i]))
        drift = 1 + float(rng.uniform(-2e-4, 2e-4))
        pace = Pace(speed=drift, jitter_s=0.02, seed=i)
        return await talk(url, speech(args, i, float(lengths[i])), pace=pace, seed=seed_of(i))

    heard = await asyncio.gather(*(one(i) for i in range(args.clients)))
    for enemy in enemies:
        enemy.cancel()
    await asyncio.gather(*enemies, return_exceptions=True)
    return list(heard)


def seed_of(i: int) -> int:
    """What a run over the file ``alone-{i}`` with the seed ``1000 + i`` gives its session."""
    return derive_seed(1000 + i, f"alone-{i}")


def speech(args: argparse.Namespace, i: int, seconds: float | None = None) -> Any:
    """What client ``i`` says."""
    if seconds is None:
        rng = np.random.default_rng(args.seed)
        rng.uniform(0, args.spread, args.clients)
        seconds = float(rng.uniform(0.8 * args.seconds, args.seconds, args.clients)[i])
    pcm = babble(seconds, seed=i)
    return pcm[: len(pcm) // FRAME * FRAME]


def same_alone(folder: Path, args: argparse.Namespace, i: int, heard: Heard) -> bool:
    """Run session ``i`` again from a file, alone in as many slots, and compare bits."""
    path = folder / f"alone-{i}.wav"
    soundfile.write(path, speech(args, i), 24_000, subtype="FLOAT")
    out = folder / f"alone-{i}"
    words = [
        *ENGINE,
        f"source.path={path}",
        "sink=[file,codes]",
        "sink.file.bits=32",
        "first_frame=reset",
        f"engine.slots={args.clients + args.hostile}",
        f"engine.threads={args.threads}",
        f"output_dir={out}",
        f"seed={1000 + i}",
    ]
    command = [sys.executable, "-m", "moshi_pipe", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    whole, _ = soundfile.read(out / f"alone-{i}.wav", dtype="float32")
    pcm = heard.pcm
    same = len(pcm) > 0 and np.array_equal(pcm, whole[-len(pcm) :])
    return same and text_of(out, i) == heard.text


def text_of(folder: Path, i: int) -> str:
    """All text of a run by the reference's rule, from its tokens."""
    from safetensors.numpy import load_file

    from moshi_pipe.models.tokenizer import SentencePieceTokenizer
    from moshi_pipe.nodes.words import piece_bytes

    tokenizer = SentencePieceTokenizer(ROOT / "moshi_pipe" / "embedded" / "tokenizer.model")
    columns = load_file(folder / f"alone-{i}.safetensors")
    said = [int(t) for t in columns["text"] if int(t) not in (-1, 0, 3)]
    return b"".join(piece_bytes(tokenizer, t) for t in said).decode(errors="replace")


def quantiles(ordered: list[float]) -> dict[str, float]:
    """p50, p99 and the largest."""
    if not ordered:
        return {}
    pick = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {k: round(ordered[round(q * (len(ordered) - 1))], 2) for k, q in pick.items()}


def of_engine(metrics: dict[str, float], name: str) -> dict[str, float]:
    """p50 and p99 of a tick, or of its part outside of the models."""
    family = f"moshi_pipe_{name}_seconds"
    pick = {"p50": "0.5", "p99": "0.99"}
    return {k: round(1000 * metrics[f'{family}{{quantile="{q}"}}'], 3) for k, q in pick.items()}


def plain(text: str) -> dict[str, float]:
    """Samples of a Prometheus page that are no buckets."""
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    kept = ((name, value) for name, value in rows if not set(_DETAIL) & set(re.split("[{_]", name)))
    return {name: float(value) for name, value in kept}


if __name__ == "__main__":
    main()
