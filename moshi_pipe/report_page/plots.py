"""Plots over runs: how long ticks took, when, how fast answers came, and metrics with spread."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.report_page.collect import as_number
from moshi_pipe.report_page.compare import spread
from moshi_pipe.report_page.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    NUM_COLOURS,
    RIGHT,
    TOP,
    WIDTH,
    axes,
    frame,
    line,
    log_ticks,
    mark,
    nice_ticks,
    number,
    path,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from moshi_pipe.report_page.collect import RunPart
    from moshi_pipe.report_page.compare import Group

_FRAME_MS: Final = 80.0
_LONGEST_MS: Final = 1e9  # a class above is broken
_PER_DECADE: Final = 16  # classes of a drawn histogram
_RESPONSE_BIN_S: Final = 0.16
_RIDGE: Final = 58.0  # height of one of many histograms
_RIDGES: Final = 150.0  # and of all, where they are few
_NOTE: Final = 96.0  # beside a histogram, for what its highest bar is
_POINTS: Final = 48  # of a line over time
_SHOW_FRAME_ABOVE: Final = 0.4  # of a frame: below, its line would only flatten the others


def drawn(groups: Sequence[Group]) -> list[tuple[int, Group]]:
    """Configurations that have a colour."""
    return list(enumerate(groups))[:NUM_COLOURS]


def latency_histogram(groups: Sequence[Group]) -> str | None:
    """Share of ticks by their time, or of live answers; None where no run says."""
    live = any(_classes(run, "answer") for group in groups for run in group.runs)
    shares = {i: _shares(group, "answer" if live else "tick") for i, group in drawn(groups)}
    shares = {i: row for i, row in shares.items() if row}
    if not shares:
        return None
    first = min(min(row) for row in shares.values()) - 1
    last = max(max(row) for row in shares.values()) + 1
    low, high = 10 ** (first / _PER_DECADE), 10 ** (last / _PER_DECADE)
    x_of = _log_x(low, high)
    rows = {
        i: [
            (x_of(10 ** ((k - 1) / _PER_DECADE)), x_of(10 ** (k / _PER_DECADE)), row.get(k, 0.0))
            for k in range(first + 1, last + 1)
        ]
        for i, row in shares.items()
    }
    ticks = [(x_of(tick), mark(tick)) for tick in log_ticks(low, high)]
    limit = (x_of(_FRAME_MS), "one frame") if low < _FRAME_MS < high else None
    name = "ms from delivery to answer" if live else "ms per tick"
    return _ridges(groups, rows, ticks, name, "%", limit)


def _ridges(
    groups: Sequence[Group],
    rows: Mapping[int, Sequence[tuple[float, float, float]]],
    ticks: Sequence[tuple[float, str]],
    name: str,
    unit: str,
    limit: tuple[float, str] | None = None,
) -> str:
    """Histograms under each other, all to one scale, each with its configuration's letter.

    Args:
        groups: Configurations.
        rows: Left, right and height of the bars, by number of the configuration.
        ticks: Places and words below the last.
        name: Of the axis.
        unit: Of the heights.
        limit: Place and name of a line through all.
    """
    tall = _RIDGES / len(rows) if len(rows) < 3 else _RIDGE
    most = max(height for row in rows.values() for _, _, height in row) or 1.0
    floor = TOP + tall * len(rows)
    parts = [line(x, TOP, x, floor + 4, "grid") for x, _ in ticks]
    parts += [text(x, floor + 16, words) for x, words in ticks]
    parts.append(text((LEFT + WIDTH - _NOTE) / 2, floor + 34, name, "name"))
    if limit is not None:
        parts.append(line(limit[0], TOP - 2, limit[0], floor, "limit"))
        parts.append(text(limit[0], TOP - 4, limit[1]))
    for place, (i, row) in enumerate(rows.items()):
        base = TOP + tall * (place + 1)
        scale = (tall - 12) / most
        top = [(x, base - height * scale) for a, b, height in row for x in (a, b)]
        highest = max(height for _, _, height in row)
        parts += [
            path([(top[0][0], base), *top, (top[-1][0], base)], f"area g{i}", closed=True),
            path(top, f"curve g{i}"),
            line(LEFT, base, WIDTH - _NOTE, base, "axis"),
            text(LEFT - 8, base - 4, groups[i].letter, "letter", "end"),
            text(WIDTH, base - 4, f"up to {highest:.3g} {unit}", "tick", "end"),
        ]
    return frame(parts, f"Histograms: {name}", height=floor + 40)


def _classes(run: RunPart, key: str) -> list[tuple[float, int]]:
    """Classes of a histogram that a run wrote: upper bound in ms, count."""
    timing = run.report.get("timing")
    rows = timing.get(key) if isinstance(timing, dict) else None
    found = []
    for row in rows if isinstance(rows, list) else []:
        match row:
            case [int() | float() as bound, int() as count] if (
                0 < bound < _LONGEST_MS and count > 0
            ):
                found.append((float(bound), count))
    return found


def _shares(group: Group, key: str) -> dict[int, float]:
    """Percent of ticks by class, over all runs of a group."""
    counts: dict[int, int] = defaultdict(int)
    for run in group.runs:
        for bound, count in _classes(run, key):
            counts[math.ceil(math.log10(bound) * _PER_DECADE - 0.5)] += count
    total = sum(counts.values())
    return {edge: 100 * count / total for edge, count in sorted(counts.items())}


def ticks_over_time(groups: Sequence[Group]) -> str | None:
    """Time of ticks along each run; None where no run says."""
    lines = [(i, *series) for i, group in drawn(groups) for series in map(_series, group.runs)]
    lines = [(i, size, means) for i, size, means in lines if means]
    if not lines:
        return None
    longest = max(size * len(means) for _, size, means in lines)
    ordered = sorted(value for _, _, means in lines for value in means)
    typical = ordered[int(0.98 * (len(ordered) - 1))]  # a first tick may take hundreds of ms
    most = max(typical * 1.4, _FRAME_MS * 1.1 if typical > _SHOW_FRAME_ABOVE * _FRAME_MS else 0)
    x_of, y_of = _linear_x(0, longest), _linear_y(0, most)
    labels = ("ticks since the run began", "ms per tick")
    parts = axes(nice_ticks(0, longest), nice_ticks(0, most, 4), (x_of, y_of), labels)
    if most > _FRAME_MS:
        parts += [
            line(LEFT, y_of(_FRAME_MS), WIDTH - RIGHT, y_of(_FRAME_MS), "limit"),
            text(WIDTH - RIGHT, y_of(_FRAME_MS) - 4, "one frame", "tick", "end"),
        ]
    for i, size, means in lines:
        points = [(x_of((k + 0.5) * size), y_of(min(mean, most))) for k, mean in enumerate(means)]
        parts.append(path(points, f"curve thin g{i}"))
    return frame(parts, "Tick time over the run")


def _series(run: RunPart) -> tuple[int, list[float]]:
    """Ticks per window, and means in ms."""
    timing = run.report.get("timing")
    over = timing.get("over_time") if isinstance(timing, dict) else None
    given: Mapping[str, Any] = over if isinstance(over, dict) else {}
    size, means = given.get("ticks_per_window"), given.get("mean_ms")
    if not isinstance(size, int) or size < 1 or not isinstance(means, list):
        return 1, []
    values = [value for mean in means if (value := as_number(mean)) is not None]
    together = math.ceil(len(values) / _POINTS) or 1
    parts = [values[k : k + together] for k in range(0, len(values), together)]
    return size * together, [sum(part) / len(part) for part in parts]


def response_histogram(groups: Sequence[Group], times: Mapping[str, Sequence[float]]) -> str | None:
    """How long the model took to answer; None without an answer.

    Args:
        groups: Configurations.
        times: Seconds of each answer, by the letter of the configuration.
    """
    known = {i: list(times.get(group.letter, ())) for i, group in drawn(groups)}
    known = {i: values for i, values in known.items() if values}
    if not known:
        return None
    high = max(2.0, min(8.0, max(max(values) for values in known.values())) + _RESPONSE_BIN_S)
    bins = math.ceil(high / _RESPONSE_BIN_S)
    x_of = _linear_x(0, bins * _RESPONSE_BIN_S, _NOTE)
    rows = {}
    for i, values in known.items():
        counts = [0] * bins
        for value in values:
            counts[min(int(value / _RESPONSE_BIN_S), bins - 1)] += 1
        edges = [x_of(k * _RESPONSE_BIN_S) for k in range(bins + 1)]
        rows[i] = list(zip(edges, edges[1:], map(float, counts), strict=False))
    ticks = [(x_of(tick), mark(tick)) for tick in nice_ticks(0, high)]
    name = "s from the user's end to the model's begin"
    return _ridges(groups, rows, ticks, name, "answers")


_STRIP_HEIGHT: Final = 150.0
_STRIP_WIDTH: Final = 300.0


def metric_strip(groups: Sequence[Group], metric: str) -> str:
    """A metric of every run as a dot, with mean and standard deviation of each configuration."""
    shown = drawn(groups)
    values = [spread(group.runs, metric) for _, group in shown]
    reach = [value for row in values for value in (*row.values, *row.reach)]
    low, high = min(reach), max(reach)
    margin = (high - low) * 0.15 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    floor = _STRIP_HEIGHT - 24

    def y_of(value: float) -> float:
        return floor - (value - low) / (high - low) * (floor - 10)

    parts = []
    for tick in nice_ticks(low, high, 4):
        parts += [
            line(44, y_of(tick), _STRIP_WIDTH - 6, y_of(tick), "grid"),
            text(38, y_of(tick) + 4, mark(tick), anchor="end"),
        ]
    step = (_STRIP_WIDTH - 50) / len(shown)
    for (i, group), row in zip(shown, values, strict=True):
        x = 44 + step * (i + 0.5)
        parts.append(text(x, _STRIP_HEIGHT - 6, group.letter, "letter"))
        if row.mean is None:
            continue
        if row.reach:
            parts.append(line(x, y_of(row.reach[0]), x, y_of(row.reach[1]), f"bar g{i}"))
            parts.append(line(x - 9, y_of(row.mean), x + 9, y_of(row.mean), f"bar g{i}"))
        apart = min(8.0, step / (2 * len(row.values)))  # so that equal values are seen
        for k, value in enumerate(row.values):
            cx = number(x + apart * (k - (len(row.values) - 1) / 2))
            parts.append(f'<circle class="dot g{i}" cx="{cx}" cy="{number(y_of(value))}" r="3.2"/>')
    return frame(parts, f"{metric} by configuration", _STRIP_WIDTH, _STRIP_HEIGHT)


def _linear_x(low: float, high: float, right: float = RIGHT) -> Callable[[float], float]:
    return lambda x: LEFT + (x - low) / (high - low) * (WIDTH - LEFT - right)


def _log_x(low: float, high: float) -> Callable[[float], float]:
    linear = _linear_x(math.log10(low), math.log10(high), _NOTE)
    return lambda x: linear(math.log10(x))


def _linear_y(low: float, high: float) -> Callable[[float], float]:
    return lambda y: HEIGHT - BOTTOM - (y - low) / ((high - low) or 1) * (HEIGHT - BOTTOM - TOP)
