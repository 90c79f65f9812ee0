"""Draw the codec and the language model against their peers, from what the benchmarks printed.

    python benchmarks/plot_cpu.py lines.jsonl docs

Takes the lines of bench_codec.py and of bench_lm.py with ``--preset 943m``, without ``--stored``;
of lines for the same, the last counts. Writes ``codec.svg`` and ``lm.svg``. Needs matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from plots import COLOURS, FRAME_MS, new_figure, printed_rows, save

from moshi_pipe.units import format_count

NAMES = {
    "rust": "moshi-pipe, rust",
    "ours": "moshi-pipe, torch",
    "moshi": "moshi 0.2.13",
    "rustymimi": "rustymimi 0.4.1",
}


def main() -> None:
    """Read lines, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    steps: dict[str, Any] = {}
    for row in printed_rows(args.lines):
        if row["bench"] == "codec" and row["slots"] == 1 and "floor_ms" in row["threads"]["1"]:
            draw_codec(row["threads"], args.folder / "codec.svg")
        as_stored = not row.get("stored")
        if row["bench"] == "lm" and row["preset"] == "943m" and as_stored:
            paired = {key: one for key, one in row["results"].items() if "moshi" in one}
            steps.update(paired)
    draw_lm(steps, args.folder / "lm.svg")


def draw_codec(threads: dict[str, Any], path: Path) -> None:
    """Encode and decode of a frame, stacked, by contestant and number of threads."""
    figure, axes = new_figure(height=2.8)
    labels, at = [], 0.0
    for count, found in threads.items():
        bars = [name for name in NAMES if name in found]
        for name in bars:
            encode, decode = (found[name][way]["median_ms"] for way in ("encode", "decode"))
            axes.barh(at, encode, color=COLOURS[0], height=0.7)
            axes.barh(at, decode, left=encode, color=COLOURS[4], height=0.7)
            axes.annotate(f"{encode + decode:.0f}", (encode + decode + 1, at), va="center")
            labels.append((at, f"{NAMES[name]}, {format_count(int(count), 'thread')}"))
            at += 1
        draw_floor(axes, found["floor_ms"], at - len(bars), at)
        at += 0.5
    axes.axvline(FRAME_MS, color="grey", linewidth=0.8)
    finish(axes, labels)
    axes.set_xlabel("ms a frame; dashed: its weights read once")
    axes.legend(
        axes.patches[:2],
        ["encode", "decode"],
        frameon=False,
        ncols=2,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )
    save(figure, path)


def draw_lm(steps: dict[str, Any], path: Path) -> None:
    """A step of the language model by contestant, form of the weights and number of threads."""
    figure, axes = new_figure(height=3.6)
    labels, at = [], 0.0
    for setting, found in steps.items():
        dtype, _, words = setting.partition(", ")
        threads = format_count(int(words.partition(" ")[0]), "thread")
        rows = [("moshi", "moshi", dtype)]
        rows += [("ours fast", "ours", dtype), (f"rust {dtype}", "rust", dtype)]
        rows += [(f"{who} {form}", who, form) for form in ("int8", "int4") for who in NAMES]
        for key, who, form in rows:
            if key not in found:
                continue
            median = found[key]["median_ms"]
            axes.barh(at, median, color=COLOURS[who == "moshi"], height=0.7)
            axes.annotate(f"{median:.0f}", (median + 4, at), va="center")
            labels.append((at, f"{NAMES[who]}, {form}, {threads}"))
            draw_floor(axes, found["floor_ms"][form], at, at + 1)
            at += 1
        at += 0.5
    finish(axes, labels)
    axes.set_xlabel("ms a step; dashed: its weights read once")
    save(figure, path)


def draw_floor(axes: Any, floor_ms: float, first: float, last: float) -> None:
    """A dashed line through the bars from ``first`` to before ``last``."""
    edges = first - 0.5, last - 0.5
    axes.vlines(floor_ms, *edges, color="black", linestyle="--", linewidth=1)


def finish(axes: Any, labels: list[tuple[float, str]]) -> None:
    """Name the bars, the first on top."""
    axes.set_yticks([place for place, _ in labels], [label for _, label in labels])
    axes.invert_yaxis()


if __name__ == "__main__":
    main()
