"""Runs side by side: what differs between their configurations, and numbers with their spread."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.identity import PACE, sets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from moshi_pipe.report_page.collect import RunPart

_ASIDE: Final = ("output_dir", "resume", "experiment", "seed", *(f"engine.{key}" for key in PACE))
"""Keys that make no other configuration: a group of runs differs in its seeds alone.

Unless they are of pace and a sweep names them.
"""

_UNIT_ENDS: Final = {
    "_s": "s",
    "_ms": "ms",
    "_db": "dB",
    "_hz": "Hz",
    "_wpm": "words/min",
    "_bits": "bit",
}

ABSENT: Final = "\N{EN DASH}"
"""What stands where there is no value."""


@dataclass(slots=True)
class Group:
    """Runs of one configuration, which differ in their seeds.

    Attributes:
        letter: Its name on the page.
        values: Of the keys that differ between groups.
        runs: Its runs.
    """

    letter: str
    values: dict[str, str]
    runs: list[RunPart] = field(default_factory=list)

    @property
    def label(self) -> str:
        """Its letter and what makes it differ."""
        values = ", ".join(f"{key.rpartition('.')[2]}={v}" for key, v in self.values.items())
        return f"{self.letter}: {values}" if values else self.letter


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over the runs of a group.

    Attributes:
        values: One per run that has it.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Their mean."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation, with n - 1; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def reach(self) -> tuple[float, ...]:
        """Mean less and plus standard deviation; nothing for fewer than two."""
        if self.mean is None or self.sd is None:
            return ()
        return self.mean - self.sd, self.mean + self.sd

    def __str__(self) -> str:
        if self.mean is None:
            return ABSENT
        if self.sd is None:
            return format_number(self.mean)
        digits = _decimals(self.sd, 2) if self.sd else _decimals(self.mean)
        return f"{_minus(self.mean, digits)} ± {self.sd:.{digits}f}"


def differing_keys(runs: Sequence[RunPart]) -> list[str]:
    """Keys whose values are not the same in all configurations, in their order."""
    known: dict[str, None] = {}
    for run in runs:
        known |= dict.fromkeys(run.config)
    configured = [run for run in runs if run.config]
    words = {word for run in runs for word in run.cell.get("overrides") or ()}
    names = {str(word).partition("=")[0].lstrip("+").replace("/", ".") for word in words}
    named = {f"engine.{key}" for key in PACE}
    named = {key for key in named if any(sets(name, key) for name in names)}
    return [
        key
        for key in known
        if (key not in _ASIDE or key in named)
        and len({_shown(run.config.get(key)) for run in configured}) > 1
    ]


def without_repeats(runs: Sequence[RunPart], keys: Sequence[str]) -> list[RunPart]:
    """Of runs with one signature and seed those that count, with a word on what is left out.

    A repeated run is no second sample. The one with the most sessions that are done counts, the
    newest of several. Live runs differ in what was said to them, and all count.

    Args:
        runs: In order.
        keys: That differ between configurations; the signature does not hold all of them.
    """
    same: dict[tuple[str, ...], list[RunPart]] = {}
    for i, run in enumerate(runs):
        signature, seed = run.report.get("signature"), run.report.get("seed")
        alone = not signature or seed is None or run.report.get("live") or run.report.get("endless")
        values = [_shown(run.config.get(key)) for key in keys]
        key = (str(i),) if alone else (str(signature), str(seed), *values)
        same.setdefault(key, []).append(run)
    kept = []
    for group in same.values():
        best = max(group, key=lambda run: (sum(one.counts for one in run.sessions), run.ended_s))
        best.problems += [
            f"{run.name} has the same signature and seed, and is left out"
            for run in group
            if run is not best
        ]
        kept.append(best)
    return kept


def group_runs(runs: Sequence[RunPart], keys: Sequence[str]) -> list[Group]:
    """Put runs together that differ in nothing but their seeds; in the order of the runs."""
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        values = tuple(_shown(run.config.get(key)) for key in keys)
        if values not in groups:
            named = dict(zip(keys, values, strict=True))
            groups[values] = Group(_letter(len(groups)), named)
        groups[values].runs.append(run)
    return list(groups.values())


def metric_names(runs: Sequence[RunPart]) -> list[str]:
    """Names of all metrics, in the order in which they appear."""
    names: dict[str, None] = {}
    for run in runs:
        for session in run.sessions:
            names |= dict.fromkeys(session.metrics)
    return list(names)


def shown_name(metric: str, unit: str) -> tuple[str, str]:
    """A metric's name and unit as a reader sees them: without what its unit says again.

    ``response_latency_s`` in ``s`` is response latency in s; ``user_turns`` needs no unit at all.
    """
    name = metric
    for end, of in _UNIT_ENDS.items():
        if unit == of:
            name = name.removesuffix(end)
    name = name.replace("_", " ").strip() or metric
    return name, "" if name.replace("_", " ").split()[-1:] == [unit] else unit


def run_value(run: RunPart, metric: str) -> float | None:
    """A metric of a run: the mean over its sessions that are done and have a value."""
    values = [session.metrics.get(metric) for session in run.sessions if session.counts]
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def spread(runs: Iterable[RunPart], metric: str) -> Spread:
    """A metric over the runs of a group."""
    values = (run_value(run, metric) for run in runs)
    return Spread(tuple(value for value in values if value is not None))


def format_number(value: float | None) -> str:
    """Three digits that count; whole numbers and large ones without decimals."""
    if value is None:
        return ABSENT
    if float(value).is_integer():
        return _minus(value, 0)
    return _minus(value, _decimals(value))


def _minus(value: float, digits: int) -> str:
    """A number with a minus that is as wide as a plus."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _decimals(value: float, digits: int = 3) -> int:
    """Decimals that show so many digits of a number, at most 4."""
    if value == 0:
        return 0
    return min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), 4)


def _letter(number: int) -> str:
    """A, B ... Z, AA, AB ..."""
    text = ""
    while True:
        number, rest = divmod(number, 26)
        text = chr(ord("A") + rest) + text
        if not number:
            return text
        number -= 1


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
