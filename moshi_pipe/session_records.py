"""What a run writes about its sessions, beside what their sinks write."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import traceback
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError, OutputError
from moshi_pipe.frame_times import write_frame_times
from moshi_pipe.report import SessionReport, write_atomically
from moshi_pipe.resume import session_signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from moshi_pipe.engine.exchange import SessionResult
    from moshi_pipe.engine.lateness import TickTimes
    from moshi_pipe.graph.node import SessionSettings, Sink
    from moshi_pipe.result_store import ResultStore

_PART: Final = ("start_s", "duration_s", "channel")
"""What a source may say of which part of its file a session is."""

_RECORD_END: Final = ".session.json"
_METRICS_END: Final = ".metrics.json"

_LOG: Final = logging.getLogger(__name__)


class SessionRecords:
    """Names the files about sessions, and writes them.

    Those of a source without end are written on other threads, as conversations go on meanwhile,
    and without the times of frames.

    Args:
        folder: Where results go.
        shared: What all records have in common.
        signature: Of the run.
        settings: What a session gets that asks for nothing.
        nodes: Of the schedule, in order.
        ticks: Gives the last ticks of the engine.
        endless: Whether the source is without end.
        store: Where results belong, if that is not the folder.
    """

    def __init__(
        self,
        folder: Path,
        shared: Mapping[str, Any],
        *,
        signature: str,
        settings: SessionSettings,
        nodes: Sequence[str],
        ticks: Callable[[], Iterable[TickTimes]],
        endless: bool,
        store: ResultStore | None = None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._shared = shared
        self._signature = signature
        self._settings = settings
        self._nodes = nodes
        self._ticks = ticks
        self._endless = endless
        self._sinks: dict[str, Sequence[Sink]] = {}  # of live sessions that are open
        self._writers: dict[Path, str] = {}  # which session writes a file
        self._writing: set[asyncio.Future[None]] = set()

    def path(self, session_id: str) -> Path:
        """The file about a session."""
        return self._folder / f"{session_id}{_RECORD_END}"

    def forget(self, session_id: str) -> None:
        """Remove what an earlier run wrote about a session, as its results are overwritten now."""
        for end in (_RECORD_END, _METRICS_END):
            path = self._folder / f"{session_id}{end}"
            if self._writers.get(path, session_id) == session_id:  # no other's
                path.unlink(missing_ok=True)

    def signature(self, meta: Mapping[str, Any], seed: int) -> str:
        """Identifies a session's configuration and input."""
        return session_signature(self._signature, meta, seed)

    def claim(self, session_id: str, outputs: Sequence[Path]) -> None:
        """Refuse a file that another session of this run writes: it would be lost.

        Of a source without end, files with the session's id as a word of their names are no
        other's, and are not remembered.

        Raises:
            ConfigError: Names the file and both sessions.
        """
        own = re.compile(rf"(?<![0-9A-Za-z]){re.escape(session_id)}(?![0-9A-Za-z])")
        for path in outputs:
            if self._endless and own.search(path.name):
                continue
            first = self._writers.setdefault(path, session_id)
            if first != session_id:
                raise ConfigError(
                    f"two sessions would write {path}",
                    got=f"{first} and {session_id}",
                    wanted="a name for each: {stem} or {id} in the path of the sink",
                )

    def watch(self, session_id: str, sinks: Sequence[Sink]) -> None:
        """Remember the sinks of a live session, for the times of its frames."""
        if not self._endless:
            self._sinks[session_id] = sinks

    def report(self, result: SessionResult) -> SessionReport:
        """Turn a result into its report, and write it beside the session's files if that may be."""
        sinks = [self._placed(sink) for sink in result.sinks]
        status = "done" if result.complete else "failed" if result.failure else "interrupted"
        report = SessionReport(
            id=result.id,
            status=status,
            frames=result.num_frames,
            audio_s=round(result.audio_s, 4),
            wall_s=round(result.wall_s, 4),
            seed=result.seed,
            input=result.meta.get("path"),
            warnings=[*result.warnings, *_said(sinks)],
            files=[file for sink in sinks for file in sink.get("files", ())],
            error=None if result.failure is None else str(result.failure),
            exit_code=0 if result.failure is None else result.failure.exit_code,
            dropped=result.num_dropped,
            source=dict(result.source),
            greeting_s=result.greeting_s,
            sinks=dict(zip(result.labels, sinks, strict=False)),
        )
        live_sinks = self._sinks.pop(result.id, None)
        if not result.record:
            return report
        text = self._record(result, report)
        if self._store is not None:
            written = [file for sink in result.sinks for file in sink.get("files", ())]
            if live_sinks is not None:
                written.append(str(self._write_frame_times(result.id, live_sinks)))
            files = [Path(file) for file in written]
            self._store.move_session(result.id, files, self.path(result.id), text)
            return report
        if self._endless:
            self._write_apart(result.id, text)
            return report
        try:
            write_atomically(self.path(result.id), text)
            if live_sinks is not None:
                self._write_frame_times(result.id, live_sinks)
        except OutputError as error:
            report.warnings.append(str(error))
        return report

    async def finish(self) -> None:
        """Wait until all is written."""
        if self._writing:
            await asyncio.wait(self._writing)
        if self._store is not None:
            await self._store.finish()

    def _placed(self, sink: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a sink reports, with its files where they belong."""
        if self._store is None or "files" not in sink:
            return sink
        return {**sink, "files": [self._store.where(file) for file in sink["files"]]}

    def _record(self, result: SessionResult, report: SessionReport) -> str:
        settings = result.settings or replace(self._settings, seed=result.seed)
        record = {
            **asdict(report),
            **self._shared,
            "part": {name: result.meta[name] for name in _PART if name in result.meta},
            "signature": self.signature(result.meta, result.seed),
            "settings": asdict(settings),
            "rings": result.counters,
            "remote": dict(result.held),
            "traceback": _traceback(result.failure),
        }
        return json.dumps(record, indent=1, ensure_ascii=False) + "\n"

    def _write_apart(self, session_id: str, text: str) -> None:
        write = partial(write_atomically, self.path(session_id), text)
        writing = asyncio.get_running_loop().run_in_executor(None, write)
        self._writing.add(writing)
        writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self._writing.discard(writing)
        if not writing.cancelled() and writing.exception() is not None:
            _LOG.warning("%s", writing.exception())

    def _write_frame_times(self, session_id: str, sinks: Sequence[Sink]) -> Path:
        """Write when each thing happened in the last minute of a live session."""
        audible_ns = {frame: at for sink in sinks for frame, at in sink.audible_ns.items()}
        path = self._folder / f"{session_id}.times.jsonl"
        write_frame_times(path, session_id, list(self._ticks()), self._nodes, audible_ns)
        return path


def _said(sinks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sinks have to say of a session."""
    given = [sink.get("warnings") for sink in sinks]
    return [str(said) for one in given if isinstance(one, list | tuple) for said in one]


def _traceback(failure: BaseException | None) -> list[str] | None:
    """Where a session failed, as Python tells it."""
    return None if failure is None else "".join(traceback.format_exception(failure)).splitlines()
