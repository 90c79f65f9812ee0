"""Small parts of drawings: numbers, text, axes. Colours are classes that the page's style fills."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

WIDTH: Final = 460.0
HEIGHT: Final = 230.0
LEFT: Final = 46.0
RIGHT: Final = 12.0
TOP: Final = 14.0
BOTTOM: Final = 40.0

NUM_COLOURS: Final = 8
"""Classes ``g0`` to ``g7`` of configurations; further ones are not drawn."""


def number(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, words: str, kind: str = "tick", anchor: str = "middle") -> str:
    """Words at a place; whatever they hold is shown, never read as markup."""
    return (
        f'<text class="{kind}" x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def mark(value: float) -> str:
    """A number beside an axis."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
    return f'<line class="{kind}" {ends}/>'


def path(points: Iterable[tuple[float, float]], kind: str, *, closed: bool = False) -> str:
    """A line through points."""
    steps = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return f'<path class="{kind}" d="M{steps}{"Z" if closed else ""}"/>'


def frame(parts: Sequence[str], title: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """A drawing with a name for those who do not see it."""
    size = f'viewBox="0 0 {number(width)} {number(height)}"'
    name = escape(title, quote=True)
    return f'<svg {size} role="img" aria-label="{name}">{"".join(parts)}</svg>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    span = max(high - low, 1e-9)
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if raw <= power * m * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10 ... within bounds; only powers of ten where there are many."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    marks = (m * 10.0**p for p in powers for m in factors)
    return [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]


def axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    place: tuple[Callable[[float], float], Callable[[float], float]],
    labels: tuple[str, str],
) -> list[str]:
    """Grid, numbers and names of both axes."""
    x_of, y_of = place
    floor = HEIGHT - BOTTOM
    parts = []
    for tick in y_ticks:
        parts += [
            line(LEFT, y_of(tick), WIDTH - RIGHT, y_of(tick), "grid"),
            text(LEFT - 6, y_of(tick) + 4, mark(tick), anchor="end"),
        ]
    for tick in x_ticks:
        parts += [
            line(x_of(tick), floor, x_of(tick), floor + 4, "axis"),
            text(x_of(tick), floor + 16, mark(tick)),
        ]
    parts += [
        line(LEFT, floor, WIDTH - RIGHT, floor, "axis"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, labels[0], "name"),
        text(LEFT - 38, TOP - 4, labels[1], "name", "start"),
    ]
    return parts
