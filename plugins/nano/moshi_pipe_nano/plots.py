"""Curves of a training as SVG pictures: ``stage=plots`` draws the folder's journals."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe_nano.options import Options

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 34, 40
_COLOURS: Final = ("#4269d0", "#ff725c", "#3ca951", "#a463f2", "#97bbf5", "#9c6b4e",
                   "#c49a00")  # fmt: skip
_GREY: Final = "#888888"
_TICKS: Final = 5
_SERIES: Final = {
    "codec": (("spectrum", "waveform", "commitment"), ("unheard_accuracy",)),
    "decoder": (("spectrum", "waveform"),),
    "lm": (
        ("text", "heard", "counted", "semantic", "acoustic", "unseen_text", "unseen_heard"),
        ("text_right", "heard_right", "unseen_text_right", "unseen_heard_right", "right"),
    ),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a picture.

    Attributes:
        name: As in the journal.
        points: Step and value, in order.
    """

    name: str
    points: Sequence[tuple[float, float]]


def draw_journals(options: Options) -> list[Path]:
    """Draw every journal of the folder; returns the pictures."""
    folder, drawn = Path(options.out), []
    for journal, groups in _SERIES.items():
        path = folder / f"{journal}.jsonl"
        if not path.exists():
            continue
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for number, names in enumerate(groups):
            curves = [curve for name in names if (curve := _curve(rows, name)).points]
            if not curves:
                continue
            picture = folder / f"{journal}-{('loss', 'right')[number]}.svg"
            title = f"{journal}: {('losses, logarithmic', 'shares that are right')[number]}"
            picture.write_text(draw(curves, title, logarithmic=number == 0), encoding="utf-8")
            drawn.append(picture)
    return drawn


def draw(curves: Sequence[Curve], title: str, *, logarithmic: bool) -> str:
    """A picture of curves over steps; a logarithmic axis takes values above zero."""
    ends = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    low, high = (min(values), max(values)) if logarithmic else (0.0, 1.0)
    first, last = min(ends), max(ends)
    length = max(last - first, 1)

    def x(step: float) -> float:
        return _LEFT + (step - first) / length * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        if logarithmic:
            share = math.log(value / low) / max(math.log(high / low), 1e-9)
        else:
            share = (value - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{_GREY}">',
        f'<text x="{_LEFT}" y="18" font-size="14">{title}</text>',
    ]
    for i in range(_TICKS + 1):
        share = i / _TICKS
        value = low * (high / low) ** share if logarithmic else low + (high - low) * share
        out.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="{_GREY}" stroke-opacity="0.25"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>'
            f'<text x="{x(first + length * share):.1f}" y="{_HEIGHT - _BOTTOM + 18}" '
            f'text-anchor="middle">{first + length * share:.0f}</text>'
        )
    for i, curve in enumerate(curves):
        colour = _COLOURS[i % len(_COLOURS)]
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve.points)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{_TOP + 8 + 18 * i}" fill="{colour}">'
            f"{curve.name}</text>"
        )
    out.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">steps</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _curve(rows: Sequence[dict[str, float]], name: str) -> Curve:
    return Curve(name, [(row["step"], row[name]) for row in rows if row.get(name, 0.0) > 0.0])
