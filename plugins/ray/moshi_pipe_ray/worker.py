"""An engine of a cluster: an actor that processes what it is handed.

The run inside is the one of ``moshi-pipe``, with a source that gives what others hand to it. Its
results are moved to their place when a session is over, so that nothing half done is ever seen.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import shutil
import tempfile
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.build import run_here
from moshi_pipe.config import EngineOptions
from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.plugins import load_plugins
from moshi_pipe.progress import SilentUI
from moshi_pipe.result_store import ResultStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.host import Host
    from moshi_pipe.report import RunReport, SessionReport

_SCRATCH: Final = "moshi-pipe-ray-"
_PACKAGE: Final = "moshi_pipe"


class EngineLostError(Exception):
    """The engine of an actor is gone, and what it had is to be done by another."""


@dataclass(slots=True)
class News:
    """What an actor has to tell.

    Attributes:
        begun: Seconds that sessions will last, by id; None where not known.
        at_s: Seconds that running sessions have processed, by id.
        lines: What would be logged: level and text.
    """

    begun: dict[str, float | None]
    at_s: dict[str, float]
    lines: list[tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Ready:
    """What an actor says when its engine is ready, or cannot be.

    Attributes:
        where: Host and process id.
        device: Of the models.
        dtype: Of the weights.
        quant: How linear weights are stored.
        error: Why there is no engine; None when there is one.
    """

    where: str
    device: str = ""
    dtype: str = ""
    quant: str | None = None
    error: MoshiPipeError | None = None


class Worker:
    """One engine; made an actor by :mod:`moshi_pipe_ray.engine`.

    Args:
        config: The run, with its seed.
        place: Where results belong: an address, or a folder that this machine sees too.
        token: Name of a file that was put into that folder, to see whether it is the same here;
            None for an address.
        gives: What the inputs yield: ``audio`` or ``codes``.
    """

    def __init__(self, config: RunConfig, place: str, token: str | None, gives: str) -> None:
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-"))
        self._config = replace(config, engine=_own(config.engine), output_dir=folder.resolve())
        self._token = None if token is None else Path(place) / token
        self._store = ResultStore(place, folder)
        self._watch = _Watch(self._store)
        self._source = HandedSource(gives, self._watch.lose)
        self._ready: Future[Ready] = Future()
        self._report: RunReport | None = None
        self._thread = threading.Thread(target=self._run, name="moshi-pipe", daemon=True)

    async def ready(self) -> Ready:
        """Start, and wait until the engine is ready, or cannot be."""
        if not self._thread.is_alive():
            self._thread.start()
        return await asyncio.wrap_future(self._ready)

    async def process(self, packed: bytes) -> SessionReport:
        """Process a recording and move its results to their place.

        Args:
            packed: The session's input, pickled.

        Raises:
            EngineLostError: The engine is gone.
        """
        item: SessionInput = pickle.loads(packed)  # of the process that made this actor
        report = self._watch.expect(item.id)
        self._source.hand(item)
        return await asyncio.wrap_future(report)

    async def news(self) -> News:
        """What happened since this was asked last."""
        return self._watch.take()

    async def finish(self) -> RunReport | None:
        """End the run and return its report; None if it failed."""
        self._source.stop()
        await asyncio.to_thread(self._thread.join)
        self._store.close()
        return self._report

    def _run(self) -> None:
        """The run; on a thread of its own."""
        logger, handler = logging.getLogger(_PACKAGE), _Lines(self._watch)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        error: Exception | None = None
        self._source.when_attached(self._attached)
        try:
            self._check_place()
            config, plugins = self._config, load_plugins()
            self._report = run_here(config, self._watch, plugins, self._source, self._store)
        except Exception as failure:  # told to whoever waits
            error = failure
        finally:
            logger.removeHandler(handler)
            self._watch.lose(error or EngineLostError("the run of this actor has ended"))
            if not self._ready.done():
                known = isinstance(error, MoshiPipeError)
                told = error if known else MoshiPipeError(f"an actor failed: {error!r}")
                self._ready.set_result(Ready(_where(), error=_plain(told)))  # type: ignore[arg-type]

    def _attached(self, host: Host) -> None:
        facts = host.facts
        if not self._ready.done():
            self._ready.set_result(Ready(_where(), facts.device, facts.dtype, facts.quant))

    def _check_place(self) -> None:
        if self._token is not None and not self._token.is_file():
            raise MoshiPipeError(
                f"{os.uname().nodename} does not see the folder of results",
                got=f"no {self._token}",
                wanted="a folder that all machines of the cluster share, or an address",
                fix="set output_dir to an address, such as output_dir=s3://BUCKET/FOLDER",
            )


class HandedSource(Source):
    """Gives what it is handed, until it is stopped.

    Without end to the run, which then keeps no list of its sessions; how many are open at once is
    up to who hands them over.

    Args:
        gives: ``audio`` or ``codes``.
        lost: Told when the engine is gone.
    """

    endless = True

    def __init__(self, gives: str, lost: Any) -> None:
        self.gives = gives  # type: ignore[misc]
        self._lost = lost
        self._loop: asyncio.AbstractEventLoop | None = None
        self._items: asyncio.Queue[SessionInput | None] = asyncio.Queue()
        self._attached: Any = None

    def when_attached(self, call: Any) -> None:
        """Have ``call`` called with the host once the engine is ready."""
        self._attached = call

    def attach(self, host: Host) -> None:
        """The engine is ready."""
        self._loop = asyncio.get_running_loop()
        self._attached(host)

    def engine_lost(self, error: MoshiPipeError) -> None:
        """The engine is gone, before its sessions end."""
        self._lost(error)

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield what is handed over."""
        while (item := await self._items.get()) is not None:
            yield item

    def hand(self, item: SessionInput) -> None:
        """Process this one; from any thread, once the engine is ready."""
        self._put(item)

    def stop(self) -> None:
        """Give nothing more; from any thread."""
        self._put(None)

    def _put(self, item: SessionInput | None) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the run has ended, and told so
                self._loop.call_soon_threadsafe(self._items.put_nowait, item)


class _Watch(SilentUI):
    """Learns from the run how its sessions go; for other threads to ask."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._expected: dict[str, Future[SessionReport]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = News({}, {}, [])
        self._failure: Exception | None = None

    def expect(self, session_id: str) -> Future[SessionReport]:
        """The report of a session that will be handed over."""
        report: Future[SessionReport] = Future()
        with self._lock:
            if self._failure is not None:
                report.set_exception(EngineLostError(str(self._failure)))
            else:
                self._expected[session_id] = report
        return report

    def lose(self, error: Exception) -> None:
        """The engine is gone: whoever waits for a session is told."""
        with self._lock:
            self._failure = self._failure or error
            waiting, self._expected = self._expected, {}
        for report in waiting.values():
            report.set_exception(EngineLostError(str(error)))

    def take(self) -> News:
        """What happened since this was asked last."""
        with self._lock:
            news, self._news = self._news, News({}, {}, [])
        return news

    def say(self, level: int, text: str) -> None:
        """A line for the log."""
        with self._lock:
            self._news.lines.append((level, text))

    def note(self, text: str) -> None:
        """Pass it on."""
        self.say(logging.INFO, text)

    def warn(self, text: str) -> None:
        """Pass it on."""
        self.say(logging.WARNING, text)

    def session_begins(self, session_id: str, audio_s: float | None) -> None:
        """Pass it on."""
        with self._lock:
            self._news.begun[session_id] = audio_s

    def session_at(self, session_id: str, done_s: float) -> None:
        """Pass on the last."""
        with self._lock:
            self._news.at_s[session_id] = done_s

    def session_ends(self, report: SessionReport) -> None:
        """Answer whoever waits, once all is in its place."""
        task = asyncio.get_running_loop().create_task(self._answer(report))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, report: SessionReport) -> None:
        await self._store.settled(report.id)
        with self._lock:
            waiting = self._expected.pop(report.id, None)
        if waiting is not None:
            waiting.set_result(report)


class _Lines(logging.Handler):
    def __init__(self, watch: _Watch) -> None:
        super().__init__(logging.INFO)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self._watch.say(record.levelno, record.getMessage())


def _own(engine: EngineOptions) -> EngineOptions:
    """The part that an engine of this process has; a lost one is not made again here."""
    return EngineOptions(
        slots=engine.slots,
        threads=engine.threads,
        inbox_frames=engine.inbox_frames,
        outbox_frames=engine.outbox_frames,
        late=engine.late,
        restarts=0,
    )


def _plain(error: MoshiPipeError) -> MoshiPipeError:
    """An error of the same kind that travels between processes."""
    plain = MoshiPipeError(error.what, got=error.got, wanted=error.wanted, fix=error.fix)
    plain.exit_code = error.exit_code
    return plain


def _where() -> str:
    return f"{os.uname().nodename}, process {os.getpid()}"


def _sweep() -> None:
    """Remove what actors left behind that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*-*"):
        process = folder.name.removeprefix(_SCRATCH).partition("-")[0]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError):  # it lives, or is none of ours
            continue
