"""The page itself: what the template is given, from runs that were read."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import moshi_pipe
from moshi_pipe.report_page import plots
from moshi_pipe.report_page.collect import as_number
from moshi_pipe.report_page.compare import (
    ABSENT,
    Group,
    differing_keys,
    format_number,
    group_runs,
    metric_names,
    shown_name,
    spread,
    without_repeats,
)
from moshi_pipe.report_page.conversation import (
    DETAIL_S,
    MEASURE_UNITS,
    Heard,
    Player,
    Players,
    hear,
    length_s,
)
from moshi_pipe.report_page.svg import NUM_COLOURS
from moshi_pipe.report_page.timeline import strips
from moshi_pipe.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.report_page.collect import RunPart, SessionPart

TEMPLATES: Final = Path(__file__).resolve().parents[1] / "templates" / "report"

_COLUMNS_OF_GROUPS: Final = 5  # more groups than this are rows of the metrics table
_CAPTIONS: Final = (
    "How long a tick took: all models and copies of one 80 ms step. Live: from the delivery of a "
    "frame to its answer.",
    "Tick time along each run, means over equal windows; what is higher than the drawing is drawn "
    "at its edge.",
    "Response time: from the end of a user's turn to the model's next begin, where the model was "
    "silent and begins before the user goes on.",
)


@dataclass(frozen=True, slots=True)
class PageOptions:
    """What a reader chose.

    Attributes:
        title: Of the page.
        path: Where it goes.
        audio: ``opus``, ``mp3``, ``flac``, ``link`` or ``none``.
        audio_mb: Megabytes of audio in the page at most.
        sessions: Conversations on the page at most.
    """

    title: str
    path: Path
    audio: str = "opus"
    audio_mb: float = 24.0
    sessions: int = 24


@dataclass(slots=True)
class Study:
    """Runs, compared.

    Attributes:
        runs: In order.
        keys: That differ.
        groups: Runs of one configuration.
        metrics: Names, in order.
        units: Of metrics.
        responses: Seconds of each answer in sessions that are done, by the letter of the group.
        heard: What each session's audio said, by id of the object.
    """

    runs: list[RunPart]
    keys: list[str]
    groups: list[Group]
    metrics: list[str] = field(default_factory=list)
    units: dict[str, str] = field(default_factory=dict)
    responses: dict[str, list[float]] = field(default_factory=dict)
    heard: dict[int, Heard] = field(default_factory=dict)


def study(runs: list[RunPart]) -> Study:
    """Compare runs, each configuration and seed once, and listen to their sessions."""
    keys = differing_keys(runs)
    runs = without_repeats(runs, keys)
    found = Study(runs, keys, group_runs(runs, keys))
    responses: dict[str, list[float]] = defaultdict(list)
    for group in found.groups:
        for run in group.runs:
            for part in run.sessions:
                heard = found.heard[id(part)] = hear(part)
                part.metrics = {**part.metrics, **heard.measures}
                if part.counts:
                    responses[group.letter] += heard.responses
    found.responses = dict(responses)
    found.metrics = metric_names(runs)
    found.units = dict(MEASURE_UNITS)
    for run in runs:
        found.units |= run.units
    return found


def write_page(found: Study, options: PageOptions) -> str:
    """The page as HTML, which needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "duration": format_duration,
        "index_of": lambda values, value: values.index(value),
    }
    style, script = ((TEMPLATES / f"page.{end}").read_text("utf-8") for end in ("css", "js"))
    players = Players(options.audio, int(options.audio_mb * 1e6), options.path)
    conversations = _conversations(found, players, options.sessions)
    return environment.get_template("page.html.j2").render(
        title=options.title,
        version=moshi_pipe.__version__,
        date=datetime.now(timezone.utc).strftime("%-d %B %Y"),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        media="data: file: 'self'" if options.audio == "link" or players.linked else "data:",
        summary=_summary(found),
        found=found,
        colours=NUM_COLOURS,
        rows=[_run_row(group, run) for group in found.groups for run in group.runs],
        table=_metrics_table(found),
        strips=_metric_strips(found),
        figures=_figures(found),
        conversations=conversations,
        hidden=sum(len(run.sessions) for run in found.runs) - len(conversations),
        problems=_problems(found),
        versions=_versions(found.runs),
        by_loudness=any(heard.by_loudness and heard.turns for heard in found.heard.values()),
        detail_s=DETAIL_S,
    )


def _summary(found: Study) -> str:
    """What the page is about, in a sentence."""
    sessions = [part for run in found.runs for part in run.sessions]
    audio_s = sum(as_number(part.record.get("audio_s")) or 0.0 for part in sessions)
    models = sorted({str(run.report.get("model")) for run in found.runs if run.report.get("model")})
    seeds = {str(run.report["seed"]) for run in found.runs if "seed" in run.report}
    parts = [
        format_count(len(found.runs), "run"),
        format_count(len(found.groups), "configuration"),
        format_count(len(seeds), "seed"),
        format_count(len(sessions), "session"),
        f"{format_duration(audio_s)} of audio",
    ]
    return ", ".join(parts) + (f"; model {', '.join(models)}" if models else "")


def _run_row(group: Group, run: RunPart) -> dict[str, Any]:
    """A run as a row of its table."""
    report, statuses = run.report, [part.status for part in run.sessions]
    peak = as_number(report.get("peak_rss_bytes"))
    places = [
        str(report[key]) for key in ("device", "dtype", "quant", "numerics") if report.get(key)
    ]
    counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    return {
        "letter": group.letter,
        "name": run.name,
        "seed": report.get("seed", run.config.get("seed")),
        "model": report.get("model") or run.config.get("model.name") or ABSENT,
        "where": ", ".join(places) or ABSENT,
        "sessions": ", ".join(counts) or "none",
        "audio": as_number(report.get("audio_s")),
        "speed": as_number(report.get("speed")),
        "tick_ms": _mean_tick_ms(run),
        "memory": format_bytes(peak) if peak else ABSENT,
        "signature": str(report.get("signature") or ABSENT),
    }


def _mean_tick_ms(run: RunPart) -> float | None:
    """Mean time per tick in all nodes; None where the run does not say."""
    nodes = run.report.get("nodes")
    listed = [node for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    means = [mean for node in listed if (mean := as_number(node.get("mean_ms"))) is not None]
    return sum(means) if means else None


def _metrics_table(found: Study) -> dict[str, Any]:
    """Numbers of each configuration: metrics as rows, or as columns where groups are many."""
    cells = [[_cell(group, metric) for group in found.groups] for metric in found.metrics]
    names = [shown_name(name, found.units.get(name, "")) for name in found.metrics]
    return {
        "wide": len(found.groups) > _COLUMNS_OF_GROUPS,
        "names": names,
        "cells": cells,
        "by_group": list(zip(*cells, strict=True)),
        "counts": [len(group.runs) for group in found.groups],
    }


def _cell(group: Group, metric: str) -> str:
    """A metric of a configuration; how many runs have it, where some have not."""
    values = spread(group.runs, metric)
    some = 0 < len(values.values) < len(group.runs)
    return f"{values} (n = {len(values.values)})" if some else str(values)


def _metric_strips(found: Study) -> list[tuple[str, str, str]]:
    """Drawings of metrics with name and unit, where there is something to compare."""
    if len(found.groups) < 2:
        return []
    shown = plots.drawn(found.groups)
    made = []
    for metric in found.metrics:
        values = [value for _, group in shown for value in spread(group.runs, metric).values]
        if len(set(values)) > 1:
            drawing = plots.metric_strip(found.groups, metric)
            made.append((*shown_name(metric, found.units.get(metric, "")), drawing))
    return made


def _figures(found: Study) -> list[dict[str, str]]:
    """Plots over runs, with what each shows."""
    drawings = (
        plots.latency_histogram(found.groups),
        plots.ticks_over_time(found.groups),
        plots.response_histogram(found.groups, found.responses),
    )
    made = zip(drawings, _CAPTIONS, strict=True)
    return [{"svg": svg, "text": text} for svg, text in made if svg is not None]


@dataclass(slots=True)
class Conversation:
    """A session on the page; see the template for what each of its words is for."""

    letter: str
    colour: int
    title: str
    run: str
    seed: Any
    status: str
    seconds: float
    by_loudness: bool
    strips: list[str]
    players: list[Player]
    text: str
    problems: list[str]
    metrics: list[tuple[str, str, str]]


def _conversations(found: Study, players: Players, most: int) -> list[Conversation]:
    """Sessions that are shown: the first of each run, then the second ..."""
    placed = [
        (i, group, run, part)
        for group in found.groups
        for run in group.runs
        for i, part in enumerate(run.sessions)
    ]
    shown = sorted(placed, key=lambda item: item[0])[: max(most, 0)]
    letters = {group.letter: i for i, group in enumerate(found.groups)}
    shown.sort(key=lambda item: (item[0], letters[item[1].letter]))
    return [
        _conversation(found, group, letters[group.letter], run, part, players)
        for _, group, run, part in shown
    ]


def _conversation(
    found: Study, group: Group, colour: int, run: RunPart, part: SessionPart, players: Players
) -> Conversation:
    heard = found.heard[id(part)]
    seconds = length_s(part, heard)
    shown_s = min(seconds, DETAIL_S)
    drawn = strips(heard.levels, heard.turns, part.words, shown_s) if seconds > 0 else []
    return Conversation(
        letter=group.letter,
        colour=colour,
        title=part.id,
        run=run.name,
        seed=run.report.get("seed", run.config.get("seed")),
        status=part.status,
        seconds=seconds,
        by_loudness=heard.by_loudness and bool(heard.turns),
        strips=drawn,
        players=players.players(part),
        text=" ".join(word.text for word in part.words.get("model", ())),
        problems=list(part.problems),
        metrics=[
            (*shown_name(name, found.units.get(name, "")), format_number(value))
            for name, value in part.metrics.items()
        ],
    )


def _problems(found: Study) -> list[tuple[str, str]]:
    """What is missing, by place."""
    made = []
    for run in found.runs:
        made += [(run.name, problem) for problem in run.problems]
        made += [
            (f"{run.name}: {part.id}", said) for part in run.sessions for said in part.problems
        ]
    return made


def _versions(runs: Sequence[RunPart]) -> list[tuple[str, str]]:
    """Packages, and all versions of each that made these runs."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for run in runs:
        versions = run.report.get("versions")
        for name, version in (versions if isinstance(versions, dict) else {}).items():
            found[str(name)][str(version)] = None
    return [(name, ", ".join(versions)) for name, versions in found.items()]
