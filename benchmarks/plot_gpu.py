"""Draw sessions against the time of a tick, from what bench_gpu.py printed.

    python benchmarks/plot_gpu.py bench.jsonl docs/gpu-sessions.svg

Needs matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from plots import FRAME_MS, new_figure, printed_rows, save


def main() -> None:
    """Read lines, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path)
    parser.add_argument("plot", type=Path)
    args = parser.parse_args()
    draw([row for row in printed_rows(args.lines) if row["bench"] == "gpu sessions"], args.plot)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A line per contestant: median, with p99 above it, and the floor of ours."""
    if not rows:
        raise SystemExit("no line of `gpu sessions`")
    figure, axes = new_figure(7, 4)
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        form = row.get("form")
        lines.setdefault(f"{row['who']}, {form}" if form else row["who"], []).append(row)
    for name, kept in lines.items():
        kept.sort(key=lambda row: row["sessions"])
        at = [row["sessions"] for row in kept]
        (drawn,) = axes.plot(at, [row["median_ms"] for row in kept], marker="o", label=name)
        p99 = [row["p99_ms"] for row in kept]
        axes.plot(at, p99, linestyle=":", color=drawn.get_color(), label=f"{name}, p99")
        if "floor_ms" in kept[0]:
            floor = [row["floor_ms"] for row in kept]
            axes.plot(at, floor, linestyle="--", color=drawn.get_color(), alpha=0.4)
    axes.axhline(FRAME_MS, color="grey", linewidth=0.8)
    axes.annotate("a frame", (0.01, FRAME_MS), xycoords=("axes fraction", "data"), va="bottom")
    axes.set_xlabel("sessions at full context")
    axes.set_ylabel("tick, ms (dashed: bytes over bandwidth)")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    axes.set_title(f"{rows[0]['preset']} on {rows[0]['device']}", fontsize=10)
    save(figure, path)


if __name__ == "__main__":
    main()
