"""In the place of the engine: sessions are held by a server, each on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.engine.lateness import Lateness, TickTimes, Verdict
from moshi_pipe.engine.session import Session, SessionState
from moshi_pipe.engine.statistics import EngineStatistics, Histogram
from moshi_pipe.errors import BackendError, MoshiPipeError, SessionError
from moshi_pipe.remote.talk import FRAME_S, Talk, TalkOptions
from moshi_pipe.units import NS_PER_MS, NS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable

    from moshi_pipe.remote.pieces import Pieces

_LOG: Final = logging.getLogger(__name__)
_FRAME_NS: Final = round(FRAME_S * NS_PER_SECOND)
_BUDGET_NS: Final = 300 * NS_PER_MS
"""From a frame's delivery to its answer; people find a longer silence on a line odd.
Source: ITU-T G.114 (400 ms both ways at most)."""

NODE: Final = "model"


class RemoteLateness(Lateness):
    """Whether a server kept up, the network included."""

    def verdict(self, *, dropped: int = 0, underruns: int = 0) -> Verdict:
        """Say how long answers took."""
        median_ms = self.tick.percentile_ns(50) / NS_PER_MS
        p99_ms = self.tick.percentile_ns(99) / NS_PER_MS
        took = f"half of all answers came within {median_ms:.0f} ms, 99 of 100 within {p99_ms:.0f}"
        late, lost = (self.num_late, "answers late"), (dropped, "frames dropped")
        counts = (late, lost, (underruns, "underruns"))
        trouble = ", ".join(f"{count} {what}" for count, what in counts if count)
        if not trouble:
            return Verdict("steady", True, f"in time: {took}")
        return Verdict("device", False, f"{trouble}; {took}: the server or the network is slow")


class RemoteEngine:
    """Holds sessions on a server; what edges need of an engine, and nothing of models.

    Args:
        options: What all sessions have in common.
        pieces: Numbers what the model says.
        num_slots: Connections at once.
        clock: Source of time.
        on_late: Live: as for an engine.
        on_failure: As for an engine.

    Attributes:
        num_slots: Sessions that it holds at once.
        statistics: What it did; the node ``model`` is the time from frame to answer.
        lateness: Whether answers came in time; live only.
        error: Why it ended; None while it runs and when nothing failed.
        ready: Set at once: there is nothing to load.
        made_ns: Nothing.
        warm_ns: Nothing.
    """

    def __init__(
        self,
        options: TalkOptions,
        pieces: Pieces,
        *,
        num_slots: int = 1,
        clock: Clock | None = None,
        on_late: Callable[[str, int, int], None] | None = None,
        on_failure: Callable[[MoshiPipeError], None] | None = None,
    ) -> None:
        self.num_slots = num_slots
        self.statistics = EngineStatistics(nodes={NODE: Histogram()})
        self.lateness: Lateness = RemoteLateness(_FRAME_NS, _BUDGET_NS)
        self.error: MoshiPipeError | None = None
        self.ready = threading.Event()
        self.made_ns = self.warm_ns = 0
        self._options = options
        self._pieces = pieces
        self._clock = clock or SystemClock()
        self._on_late = on_late
        self._on_failure = on_failure
        self._waiting: deque[Session] = deque()
        self._no_more = self._stopping = self._closed = False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._held: set[Session] = set()
        self._ever_connected = False

    # ---- called by the edge, from any thread

    def start(self) -> None:
        """Begin to hold sessions, on a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="remote", daemon=True)
        self._thread.start()

    def submit(self, session: Session) -> None:
        """Let a session wait for a connection; they get one in the order of submission."""
        with self._lock:
            refused = self._closed
            if not refused:
                self._waiting.append(session)
        if refused:
            self._end(session)
        self.notify()

    def no_more(self) -> None:
        """Say that no session will be submitted any more."""
        self._no_more = True
        self.notify()

    @property
    def usable_slots(self) -> int:
        """All: whether a server keeps up is its own to say."""
        return self.num_slots

    @property
    def can_park(self) -> bool:
        """No: a server keeps the state of its conversations."""
        return False

    def park(self, session: Session, done: Callable[[int | MoshiPipeError], None]) -> None:
        """Refuse."""
        done(SessionError(f"session {session.id} cannot leave its connection"))

    def unpark(self, session: Session, done: Callable[[int | MoshiPipeError], None]) -> None:
        """Refuse."""
        done(SessionError(f"session {session.id} is not parked"))

    def stop(self) -> None:
        """End every session as cancelled, and the thread."""
        self._stopping = True
        self.notify()
        if self._thread is not None:
            self._thread.join()

    def notify(self) -> None:
        """Wake the thread."""
        loop, news = self._loop, self._news
        if loop is not None and news is not None:
            with suppress(RuntimeError):  # it has closed
                loop.call_soon_threadsafe(news.set)

    # ---- its own thread

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # as for an engine: it ends the run, not the process
            self.error = self.error or BackendError(
                "the connection to the server failed",
                got=f"{type(error).__name__}: {error}",
                fix="run again with --verbose for the traceback",
            )
        finally:
            if self.error is not None and self._on_failure is not None:
                self._on_failure(self.error)
            with self._lock:
                self._closed = True
                left = [*self._waiting]
                self._waiting.clear()
            for session in left:
                self._end(session)
            self.ready.set()

    async def _serve(self) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()
        self.ready.set()
        while not self._stopping and self.error is None:
            self._news.clear()
            while self._waiting and len(tasks) < self.num_slots:
                with self._lock:
                    session = self._waiting.popleft()
                tasks.add(asyncio.create_task(self._hold(session)))
            if self._no_more and not self._waiting and not tasks:
                break
            news = asyncio.ensure_future(self._news.wait())
            await asyncio.wait({news, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            tasks = {task for task in tasks if not task.done()}
        for session in list(self._held):
            session.failure = session.failure or self.error
            session.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _hold(self, session: Session) -> None:
        """Hold one session to its end."""
        talk = Talk(
            session,
            self._options,
            self._pieces,
            self._clock,
            tell=lambda text: _LOG.info("session %s: %s", session.id, text),
            count=self._count,
        )
        self._held.add(session)
        self.statistics.sessions += 1
        try:
            if not session.cancelled:
                await talk.run()
        except MoshiPipeError as error:
            fatal = isinstance(error, BackendError) and not self._ever_connected
            if fatal and not talk.connected:
                self.error = self.error or error
            session.failure = session.failure or error
        except Exception as error:  # a bug must not end the other conversations
            session.failure = session.failure or SessionError(
                f"session {session.id} failed", got=f"{type(error).__name__}: {error}"
            )
            session.failure.__cause__ = error
        finally:
            self._ever_connected = self._ever_connected or talk.connected
            self._held.discard(session)
            self._close(session)

    def _count(self, times: TickTimes) -> None:
        """Add an answer to the statistics."""
        took_ns = times.end_ns - times.start_ns
        self.statistics.ticks += 1
        self.statistics.frames += 1
        self.statistics.rows += 1
        self.statistics.tick.add(took_ns)
        self.statistics.series.add(took_ns)
        self.statistics.nodes[NODE].add(took_ns)
        if self._options.live:
            for late in self.lateness.add(times):
                if self._on_late is not None:
                    self._on_late(*late)

    def _end(self, session: Session) -> None:
        session.failure = session.failure or self.error
        session.cancelled = True
        self._close(session)

    def _close(self, session: Session) -> None:
        self.lateness.forget(session.id)
        session.state = SessionState.CLOSED
        session.outbox.end()
        session.inbox.end()
