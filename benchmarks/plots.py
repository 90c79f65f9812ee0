"""How the plots of benchmarks look, and what they are drawn from; needs matplotlib."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

COLOURS: Final = ("#2471a3", "#c0392b", "#1e8449", "#7d3c98", "#b9770e")
FRAME_MS: Final = 80


def printed_rows(path: Path) -> list[dict[str, Any]]:
    """What benchmarks printed into a file, whatever else stands there."""
    return [json.loads(line) for line in path.read_text().splitlines() if line[:1] == "{"]


def new_figure(width: float = 6.4, height: float = 3.6) -> tuple[Any, Any]:
    """A figure and its axes, without what is no data."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "moshi-pipe"
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write an SVG that is the same for the same figures."""
    figure.savefig(path, metadata={"Date": None})
