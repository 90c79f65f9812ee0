"""Draw the codec and the language model against their peers, from what the benchmarks printed.

    python benchmarks/plot_cpu.py lines.jsonl docs

Takes the lines of bench_codec.py and bench_lm.py; writes ``codec.svg`` and ``lm.svg``. Needs
matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from plots import COLOURS, new_figure, save

NAMES = {"ours": "moshi-pipe", "moshi": "moshi 0.2.13", "rustymimi": "rustymimi 0.4.1"}
FRAME_MS = 80


def main() -> None:
    """Read lines, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.lines.read_text().splitlines() if line[:1] == "{"]
    for row in rows:
        if row["bench"] == "codec" and row["slots"] == 1:
            draw_codec(row, args.folder / "codec.svg")
        if row["bench"] == "lm" and row["preset"] == "943m":
            draw_lm(row, args.folder / "lm.svg")


def draw_codec(row: dict[str, Any], path: Path) -> None:
    """Encode and decode of a frame, stacked, by contestant and number of threads."""
    figure, axes = new_figure(height=2.8)
    labels, at = [], 0.0
    for threads, found in row["threads"].items():
        bars = [(name, found[name]) for name in NAMES if name in found]
        for name, times in bars:
            encode, decode = (times[way]["median_ms"] for way in ("encode", "decode"))
            axes.barh(at, encode, color=COLOURS[0], height=0.7)
            axes.barh(at, decode, left=encode, color=COLOURS[4], height=0.7)
            axes.annotate(f"{encode + decode:.0f}", (encode + decode + 1, at), va="center")
            labels.append((at, f"{NAMES[name]}, {threads} thread{'s'[: int(threads) > 1]}"))
            at += 1
        edges = at - len(bars) - 0.5, at - 0.5
        axes.vlines(found["floor_ms"], *edges, color="black", linestyle="--", linewidth=1)
        at += 0.5
    axes.set_yticks([place for place, _ in labels], [label for _, label in labels])
    axes.invert_yaxis()
    axes.axvline(FRAME_MS, color="grey", linewidth=0.8)
    axes.set_xlabel("ms for a frame of 80 ms: encode (blue) and decode; dashed: weights read once")
    save(figure, path)


def draw_lm(row: dict[str, Any], path: Path) -> None:
    """A step of the language model by contestant, type and number of threads."""
    figure, axes = new_figure(height=2.8)
    labels, at = [], 0.0
    for setting, found in row["results"].items():
        dtype = setting.partition(",")[0]
        pairs = [("ours fast", "moshi-pipe", COLOURS[0]), ("moshi", NAMES["moshi"], COLOURS[1])]
        for key, name, colour in pairs:
            median = found[key]["median_ms"]
            axes.barh(at, median, color=colour, height=0.7)
            axes.annotate(
                f"{median:.0f}", (median, at), (3, 0), textcoords="offset points", va="center"
            )
            labels.append(
                (at, f"{name}, {setting.replace('threads', 'thread' + 's' * ('1' not in setting))}")
            )
            at += 1
        axes.vlines(
            found["floor_ms"][dtype], at - 2.5, at - 0.5, color="black", linestyle="--", linewidth=1
        )
        at += 0.5
    axes.set_yticks([place for place, _ in labels], [label for _, label in labels])
    axes.invert_yaxis()
    axes.set_xlabel("ms a step, 943M parameters; dashed: weights read once")
    save(figure, path)


if __name__ == "__main__":
    main()
