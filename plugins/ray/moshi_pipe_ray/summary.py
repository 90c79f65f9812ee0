"""What became of a run over a cluster: its log, its sessions and its report, in one place.

``sessions.jsonl`` has a line for every recording and ``ray.log`` one for whatever actors said; both
are written as it goes. ``run.json`` is that of every run; of more recordings than
:data:`LISTED` it lists those that failed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.report import (
    NodeReport,
    RunReport,
    SessionReport,
    SessionTotals,
    versions,
    write_report,
)

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.config import RunConfig
    from moshi_pipe_ray.worker import Ready

LISTED: Final = 10_000
"""Recordings that ``run.json`` lists one by one."""

SESSIONS_NAME: Final = "sessions.jsonl"
LOG_NAME: Final = "ray.log"


class Summary:
    """Gathers what is told, in bounded memory.

    Args:
        folder: Where to write.
        config: The run.
        seed: Of the run.
    """

    def __init__(self, folder: Path, config: RunConfig, seed: int) -> None:
        self._folder = folder
        self._config = config
        self._seed = seed
        self._totals = SessionTotals()
        self._sessions: list[SessionReport] | None = []  # None: too many
        self._failed: list[SessionReport] = []
        self._done: Counter[int] = Counter()
        self._actors: dict[int, Ready] = {}
        self._engines: list[RunReport] = []
        self._warned: set[str] = set()
        self._start_s = time.monotonic()
        self._ready_s: float | None = None  # of the first actor
        self._last_s = self._start_s  # the end of the last recording
        self._file = (folder / SESSIONS_NAME).open("w", encoding="utf-8")
        self._log = (folder / LOG_NAME).open("a", encoding="utf-8")

    def num_done(self, number: int) -> int:
        """Recordings that an actor, and those that it replaced, were done with."""
        return self._done[number]

    def add_actor(self, number: int, ready: Ready) -> None:
        """An actor is ready."""
        if self._ready_s is None:
            self._ready_s = time.monotonic()
        self._actors[number] = ready

    def add_engine(self, report: RunReport) -> None:
        """An actor has ended in order."""
        self._engines.append(report)

    def add(self, number: int, report: SessionReport) -> None:
        """A recording is done with."""
        self._last_s = time.monotonic()
        self._done[number] += report.status in ("done", "skipped")
        self._totals.add(report)
        line = {"actor": number, **asdict(report)}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._sessions is not None:
            self._sessions.append(report)
            if len(self._sessions) > LISTED:
                self._sessions = None
        if report.status == "failed" and len(self._failed) < LISTED:
            self._failed.append(report)

    def log(self, level: str, who: str, text: str) -> bool:
        """Write a line; returns whether it is a warning that was not there before."""
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._log.write(f"{at} {level} {who}: {text}\n")
        self._log.flush()
        if level not in ("WARNING", "ERROR", "CRITICAL") or text in self._warned:
            return False
        if len(self._warned) < LISTED:
            self._warned.add(text)
        return True

    def report(self, *, interrupted: bool) -> RunReport:
        """The report of all: its time is from the first actor's readiness to the last result.

        Args:
            interrupted: Whether it was cut short.
        """
        ready_s = time.monotonic() if self._ready_s is None else self._ready_s
        ready = next(iter(self._actors.values()), None)
        engines, config = self._engines, self._config
        sessions = self._failed if self._sessions is None else self._sessions
        actors = max(1, len(self._actors))
        return RunReport(
            model=config.model.name,
            graph=str(config.graph.get("name")),
            device=ready.device if ready else config.backend.device,
            dtype=ready.dtype if ready else config.backend.dtype,
            quant=ready.quant if ready else None,
            numerics=next((engine.numerics for engine in engines), None),
            seed=self._seed,
            output_dir=config.output_url or str(config.output_dir),
            slots=config.engine.slots * actors,
            wall_s=max(0.0, self._last_s - ready_s),
            load_s=ready_s - self._start_s,
            audio_s=self._totals.audio_s,
            frames=self._totals.frames,
            ticks=sum(engine.ticks for engine in engines),
            peak_rss_bytes=_largest(engine.peak_rss_bytes for engine in engines),
            peak_device_bytes=_largest(engine.peak_device_bytes for engine in engines),
            interrupted=interrupted,
            nodes=_merge([engine.nodes for engine in engines]),
            sessions=list(sessions),
            warnings=sorted({text for engine in engines for text in engine.warnings}),
            versions={**versions(), "ray": _ray_version()},
            live={},
            totals=self._totals if self._sessions is None else None,
            start={},
        )

    def close(self, report: RunReport, composed: str) -> None:
        """Write the report, and close all files."""
        write_report(report, composed, self._folder)
        self._file.close()
        self._log.close()


def _merge(engines: list[list[NodeReport]]) -> list[NodeReport]:
    """Times per node of all engines: means are weighted, of the rest it is the slowest engine's."""
    named: dict[str, list[NodeReport]] = {}
    for nodes in engines:
        for node in nodes:
            named.setdefault(node.name, []).append(node)
    merged = []
    for name, nodes in named.items():
        ticks = sum(node.ticks for node in nodes)
        mean_ms = sum(node.mean_ms * node.ticks for node in nodes) / max(1, ticks)
        slowest = [
            max(getattr(node, key) for node in nodes) for key in ("p50_ms", "p99_ms", "max_ms")
        ]
        merged.append(NodeReport(name, ticks, mean_ms, *slowest))
    return merged


def _largest(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")
