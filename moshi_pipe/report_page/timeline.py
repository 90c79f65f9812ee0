"""A conversation as a drawing: who speaks when, how loud, and the words; in strips of 12 s.

The user is above the time line and grows upwards, the model below it and downwards.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from moshi_pipe.report_page.sound import FRAME_S, SILENCE_DBFS, overlaps
from moshi_pipe.report_page.svg import frame, line, number, path, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moshi_pipe.report_page.collect import Word

STRIP_S: Final = 12.0
"""Seconds in a strip."""

_GUTTER: Final = 52.0
_PER_S: Final = 70.0
_LANE: Final = 40.0  # of loudness
_AXIS: Final = 34.0  # between both lanes: bars of turns, and times
_ROW: Final = 15.0  # of words
_ROWS: Final = 3
_LETTER: Final = 6.3  # width of a letter of a word, on average
_BAR: Final = 5.0

Turns = list[tuple[float, float]]


def strips(
    levels: Mapping[str, Sequence[float]],
    turns: Mapping[str, Turns],
    words: Mapping[str, Sequence[Word]],
    seconds: float,
) -> list[str]:
    """Draw a conversation.

    Args:
        levels: Loudness of each 80 ms in dBFS, by side.
        turns: When each side spoke.
        words: What was said.
        seconds: How much of it is drawn.

    Returns:
        One drawing per strip.
    """
    count = max(1, math.ceil(seconds / STRIP_S - 1e-6))
    begins = [i * STRIP_S for i in range(count)]
    return [_strip(begin, seconds, levels, turns, words) for begin in begins]


def _strip(
    begin: float,
    seconds: float,
    levels: Mapping[str, Sequence[float]],
    turns: Mapping[str, Turns],
    words: Mapping[str, Sequence[Word]],
) -> str:
    placed = {side: _place_words(words.get(side, ()), begin) for side in ("user", "model")}
    rows = {side: 1 + max((row for row, _, _ in placed[side]), default=-1) for side in placed}
    user_base = 6 + rows["user"] * _ROW + _LANE
    model_base = user_base + _AXIS
    height = model_base + _LANE + rows["model"] * _ROW + 8
    end = min(begin + STRIP_S, seconds)
    parts = [
        f'<rect class="both" x="{number(a)}" y="{number(user_base - _LANE)}" '
        f'width="{number(b - a)}" height="{number(2 * _LANE + _AXIS)}"/>'
        for a, b in _clipped(overlaps(turns.get("user", []), turns.get("model", [])), begin)
    ]
    parts += _times(begin, end, user_base)
    parts += [
        text(_GUTTER - 10, user_base - _LANE / 2 + 4, "user", "side user", "end"),
        text(_GUTTER - 10, model_base + _LANE / 2 + 4, "model", "side model", "end"),
        _area(levels.get("user", ()), begin, user_base, -1, "user"),
        _area(levels.get("model", ()), begin, model_base, 1, "model"),
    ]
    bars = {"user": user_base + 3, "model": model_base - 3 - _BAR}
    for side, y in bars.items():
        parts += [_turn(a, b, y, side, begin) for a, b in _clipped(turns.get(side, []), begin)]
    parts += _words(placed["model"], model_base + _LANE + 11, _ROW, "model")
    parts += _words(placed["user"], user_base - _LANE - 5, -_ROW, "user")
    parts.append(line(_GUTTER, user_base - _LANE, _GUTTER, model_base + _LANE, "head"))
    title = f"Conversation from {begin:g} to {end:.1f} s"
    width = _GUTTER + STRIP_S * _PER_S + 8
    drawing = frame(parts, title, width, height)
    data = f'data-begin="{begin:g}" data-gutter="{_GUTTER:g}" data-per-s="{_PER_S:g}"'
    return drawing.replace("<svg ", f'<svg class="strip" {data} ', 1)


def _x(time_s: float, begin: float) -> float:
    return _GUTTER + min(max(time_s - begin, 0.0), STRIP_S) * _PER_S


def _clipped(spans: Sequence[tuple[float, float]], begin: float) -> list[tuple[float, float]]:
    """Where spans lie in a strip, in pixels."""
    inside = [(a, b) for a, b in spans if b > begin and a < begin + STRIP_S]
    return [(_x(a, begin), _x(b, begin)) for a, b in inside]


def _times(begin: float, end: float, base: float) -> list[str]:
    """A number each second, between the lanes."""
    parts = []
    for second in range(math.ceil(begin), math.floor(min(end, begin + STRIP_S)) + 1):
        x = _x(second, begin)
        parts += [
            line(x, base - _LANE, x, base + _AXIS + _LANE, "grid"),
            text(x, base + _AXIS / 2 + 4, f"{second}", "tick"),
        ]
    return parts


def _area(levels: Sequence[float], begin: float, base: float, sign: int, side: str) -> str:
    """Loudness as an area from its base; as high as full scale."""
    first = round(begin / FRAME_S)
    shown = list(levels[first : first + round(STRIP_S / FRAME_S)])
    if not shown:
        return text(
            _GUTTER + 6, base + sign * 14 + (4 if sign > 0 else 0), "no audio here", "tick", "start"
        )
    points = [(_GUTTER, base)]
    for i, level in enumerate(shown):
        share = min(max(1 - level / SILENCE_DBFS, 0.0), 1.0)
        y = base + sign * share * _LANE
        points += [(_GUTTER + (i + side_) * FRAME_S * _PER_S, y) for side_ in (0, 1)]
    points.append((points[-1][0], base))
    return path(points, f"voice {side}", closed=True)


def _turn(left: float, right: float, y: float, side: str, begin: float) -> str:
    """A bar of a turn, which says its times to whoever points at it."""
    times = [(x - _GUTTER) / _PER_S + begin for x in (left, right)]
    return (
        f'<g><title>{side} {times[0]:.2f} to {times[1]:.2f} s</title><rect class="turn {side}" '
        f'x="{number(left)}" y="{number(y)}" width="{number(max(right - left, 2))}" '
        f'height="{_BAR:g}" rx="2.5"/></g>'
    )


def _place_words(words: Sequence[Word], begin: float) -> list[tuple[int, float, Word]]:
    """Give each word of a strip a row where it has room; one without room has none.

    Returns:
        Row, x and word.
    """
    free = [0.0] * _ROWS
    placed = []
    for word in words:
        if not begin <= word.start_s < begin + STRIP_S or not word.text.strip():
            continue
        x = _x(word.start_s, begin)
        row = next((i for i, until in enumerate(free) if until <= x), None)
        if row is not None:
            free[row] = x + len(word.text) * _LETTER + 5
            placed.append((row, x, word))
    return placed


def _words(
    placed: Sequence[tuple[int, float, Word]], y: float, row_y: float, side: str
) -> list[str]:
    edge = _GUTTER + STRIP_S * _PER_S
    parts = []
    for row, x, word in placed:
        room = int((edge + 8 - x) / _LETTER)
        shown = word.text if len(word.text) <= room else word.text[: max(room - 1, 0)] + "…"
        parts.append(text(x, y + row * row_y, _printable(shown), f"word {side}", "start"))
    return parts


def _printable(words: str) -> str:
    """Without what XML forbids."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words
    )
