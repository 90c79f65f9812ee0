r"""How many live conversations does one engine hold in time?

    python benchmarks/bench_capacity.py --slots 1 4 8 16 24 32 --seconds 20 --plot docs/capacity.svg

The real command, a client for every slot, each at a random phase with its own jitter and clock.
Held are the most sessions whose latency, from the moment a frame was whole at the edge to its
answer queued for sending, stays within 120 ms at p99 with no frame dropped. Prints one JSON line.

On a GPU, with random weights of the released size:

    moshi-pipe make-checkpoint seven size=7b
    python benchmarks/bench_capacity.py --slots 16 32 64 \
        --words model=local model.path=seven device=cuda
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import emit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.audio import babble  # noqa: E402
from support.serving import FRAME_S, Heard, Pace, Server, talk  # noqa: E402

LIMIT_MS = 120.0


def main() -> None:
    """Measure each number of slots, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16, 24, 32])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--words", nargs="*", default=["model=embedded"])
    parser.add_argument("--plot", type=Path, default=None)
    args = parser.parse_args()
    rows = [measure(slots, args) for slots in args.slots]
    in_time = [row["sessions"] for row in rows if row["latency_ms"]["p99"] <= LIMIT_MS]
    held = max((s for s, row in zip(args.slots, rows, strict=True) if kept_up(row)), default=0)
    emit(
        "capacity",
        {
            "model": args.words,
            "threads": args.threads,
            "seconds": args.seconds,
            "limit_ms": LIMIT_MS,
            "held": held,
            "in_time": in_time,
            "rows": rows,
        },
    )
    if args.plot is not None:
        draw(rows, args.plot)


def measure(slots: int, args: argparse.Namespace) -> dict[str, Any]:
    """One server with as many clients as slots."""
    words = [
        *args.words,
        f"engine.slots={slots}",
        f"engine.threads={args.threads}",
        "engine.admit_ms=10000",
        "server.max_connections=1000",
        "server.connections_per_address=1000",
        "seed=1",
    ]
    with tempfile.TemporaryDirectory(prefix="mp") as name, Server(Path(name), *words) as server:
        heard = asyncio.run(everyone(server.url, slots, args.seconds))
    stats = [m["latency_ms"] for one in heard for m in one.stats() if m["latency_ms"] is not None]
    last = [one.stats()[-1] for one in heard if one.stats()]
    return {
        "sessions": slots,
        "latency_ms": quantiles(stats),
        "round_trip_ms": quantiles([ms for one in heard for ms in one.latency_ms]),
        "sent": sum(one.sent for one in heard),
        "answered": sum(len(one.audio) for one in heard),
        "dropped": sum(m["dropped_frames"] + m["skipped_frames"] for m in last),
    }


async def everyone(url: str, num: int, seconds: float) -> list[Heard]:
    """Clients at random phases."""
    rng = np.random.default_rng(0)

    async def one(i: int) -> Heard:
        await asyncio.sleep(float(rng.uniform(0, 3 * FRAME_S)))
        pace = Pace(speed=1 + float(rng.uniform(-2e-4, 2e-4)), jitter_s=0.02, seed=i)
        return await talk(url, babble(seconds, seed=i), pace=pace, seed=i)

    return list(await asyncio.gather(*(one(i) for i in range(num))))


def kept_up(row: dict[str, Any]) -> bool:
    """Whether everyone was answered in time."""
    return bool(row["latency_ms"]["p99"] <= LIMIT_MS and not row["dropped"])


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p99 and the largest."""
    ordered = sorted(values) or [float("inf")]
    pick = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {k: round(ordered[round(q * (len(ordered) - 1))], 2) for k, q in pick.items()}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Latency against sessions, as SVG; needs matplotlib."""
    from plots import COLOURS, new_figure, save

    sessions = [row["sessions"] for row in rows]
    figure, axes = new_figure()
    for key, colour in (("p99", COLOURS[1]), ("p50", COLOURS[0])):
        values = [row["latency_ms"][key] for row in rows]
        axes.plot(sessions, values, marker="o", color=colour, label=key)
    axes.axhline(LIMIT_MS, color="#7f8c8d", linestyle="--", linewidth=1)
    axes.annotate(f"{LIMIT_MS:.0f} ms", (sessions[0], LIMIT_MS), va="bottom", color="#7f8c8d")
    axes.set_xlabel("live conversations on one engine")
    axes.set_ylabel("frame whole to answer queued, ms")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    main()
