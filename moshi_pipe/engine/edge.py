"""The edge: between the asynchronous world of sources and sinks and the engine's rings.

One task per session and direction. The edge knows the engine only through sessions' rings.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.engine.framing import Reframer
from moshi_pipe.engine.ring import Ring
from moshi_pipe.engine.session import Session
from moshi_pipe.errors import InputError, MoshiPipeError, OutputError, SessionError
from moshi_pipe.graph.format import Audio, Codes, Format, Text
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.units import NS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    import numpy.typing as npt

    from moshi_pipe.engine.engine import Engine
    from moshi_pipe.graph.node import SessionInfo, SessionInput, SessionSettings, Sink, Source


@dataclass(slots=True)
class SessionPlan:
    """What the caller decided about one session input.

    Attributes:
        info: What sinks may know.
        settings: How it runs.
        sinks: Fresh sinks of this session.
        lead_s: Silence before its audio, in seconds.
        tail_s: Silence after it.
    """

    info: SessionInfo
    settings: SessionSettings
    sinks: Sequence[Sink]
    lead_s: float = 0.0
    tail_s: float = 0.0


@dataclass(slots=True)
class SessionResult:
    """How a session ended.

    Attributes:
        id: The session's id.
        meta: From the source.
        seed: Its seed.
        num_frames: Frames processed.
        audio_s: Their duration in seconds, without padding.
        padding_s: How much of the last frame only fills it up.
        wall_s: From opening its sinks to closing them.
        complete: Whether it ran to its end.
        failure: Why not; None also when it was interrupted.
        warnings: What the source has to say about its input.
        sinks: What each sink reports.
        counters: Of its rings.
    """

    id: str
    meta: Mapping[str, Any]
    seed: int
    num_frames: int = 0
    audio_s: float = 0.0
    padding_s: float = 0.0
    wall_s: float = 0.0
    complete: bool = False
    failure: MoshiPipeError | None = None
    warnings: list[str] = field(default_factory=list)
    sinks: list[Mapping[str, Any]] = field(default_factory=list)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)


class Observer:
    """Told about sessions as they go; every method may be left as it is. Calls must be quick."""

    def on_open(self, item: SessionInput, plan: SessionPlan) -> None:
        """A session's sinks are open and it waits for a slot."""

    def on_frame(self, plan: SessionPlan, frame: int, packets: Sequence[Packet]) -> None:
        """A frame of a session was written to its sinks."""

    def on_close(self, result: SessionResult) -> None:
        """A session ended."""


class Edge:
    """Feeds an engine from a source and its results to sinks.

    Args:
        engine: Started or about to be.
        input_name: Name of the graph's input.
        input_format: Its format.
        output_formats: Format per graph output.
        plan: Decides about each session input; None skips it.
        observer: Told how it goes.
        inbox_frames: Frames of a session that wait for the engine.
        outbox_frames: Frames of a session that wait for its sinks.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        input_name: str,
        input_format: Format,
        output_formats: Mapping[str, Format],
        plan: Callable[[SessionInput], SessionPlan | None],
        observer: Observer | None = None,
        inbox_frames: int = 25,
        outbox_frames: int = 25,
    ) -> None:
        self._engine = engine
        self._input_name = input_name
        self._input_format = input_format
        self._output_formats = dict(output_formats)
        self._plan = plan
        self._observer = observer or Observer()
        self._inbox_frames = inbox_frames
        self._outbox_frames = outbox_frames
        self._open: dict[str, Session] = {}
        self._stopping = False

    async def run(self, source: Source) -> list[SessionResult]:
        """Process every session of a source.

        Sessions are submitted in the source's order; twice as many as there are slots are open at
        once. A session that fails ends alone. A source that fails ends the run, after the sessions
        that it gave.

        Returns:
            One result per session that was not skipped, in the source's order.

        Raises:
            MoshiPipeError: The source failed, or the engine did.
        """
        room = asyncio.Semaphore(2 * self._engine.num_slots)
        tasks: list[asyncio.Task[SessionResult]] = []
        failure: MoshiPipeError | None = None
        try:
            async for item in source.sessions():
                if self._stopping:
                    break
                plan = self._plan(item)
                if plan is None:
                    continue
                await room.acquire()
                if self._stopping:
                    break
                opened: asyncio.Event = asyncio.Event()
                task = asyncio.create_task(self._session(item, plan, opened))
                task.add_done_callback(lambda _: room.release())
                task.add_done_callback(lambda _, opened=opened: opened.set())  # type: ignore[misc]
                tasks.append(task)
                await opened.wait()  # keeps the order of submission
        except MoshiPipeError as error:
            failure = error
        self._engine.no_more()
        results = [await task for task in tasks]
        if failure is None:
            failure = self._engine.error
        if failure is not None:
            raise failure
        return results

    def stop(self) -> None:
        """Take no further session and end those that run; their sinks are closed as incomplete."""
        self._stopping = True
        for session in list(self._open.values()):
            session.cancel()

    async def _session(
        self, item: SessionInput, plan: SessionPlan, submitted: asyncio.Event
    ) -> SessionResult:
        start = time.monotonic()
        result = SessionResult(item.id, item.meta, plan.settings.seed)
        opened: list[Sink] = []
        session = self._make_session(item, plan)
        try:
            for sink in plan.sinks:
                await sink.open(plan.info)
                opened.append(sink)
            self._observer.on_open(item, plan)
            await self._converse(item, plan, session, submitted, result)
        except MoshiPipeError as error:
            session.failure = session.failure or error
        except OSError as error:
            session.failure = session.failure or _as_output_error(item, error)
        result.failure = session.failure
        result.complete = session.failure is None and not session.cancelled
        result.num_frames = session.num_frames
        if session.num_frames != session.inbox.counters.put:  # cut short, or the model spoke on
            result.padding_s = 0.0
        result.audio_s = session.num_frames * plan.info.frame_s - result.padding_s
        result.warnings = list(item.warnings)
        await self._close_sinks(opened, result)
        result.wall_s = time.monotonic() - start
        result.counters = {
            "inbox": _counts(session.inbox),
            "outbox": _counts(session.outbox),
        }
        self._observer.on_close(result)
        return result

    async def _converse(
        self,
        item: SessionInput,
        plan: SessionPlan,
        session: Session,
        submitted: asyncio.Event,
        result: SessionResult,
    ) -> None:
        """Feed and drain until the outbox has ended."""
        loop = asyncio.get_running_loop()
        room, news = asyncio.Event(), asyncio.Event()
        session.inbox.listen(on_take=lambda: _wake(loop, room))
        session.outbox.listen(on_put=lambda: _wake(loop, news))
        self._open[session.id] = session
        self._engine.submit(session)
        submitted.set()
        feeder = asyncio.create_task(self._feed(item, plan, session, room, result))
        try:
            await self._drain(plan, session, news)
        except (MoshiPipeError, OSError) as error:
            reason = error if isinstance(error, MoshiPipeError) else _as_output_error(item, error)
            session.cancel(reason)
            while not session.outbox.finished:  # the engine lets go of the session first
                if session.outbox.take() is None:
                    news.clear()
                    if not session.outbox.finished:
                        await news.wait()
        finally:
            feeder.cancel()
            with suppress(asyncio.CancelledError):
                await feeder
            del self._open[session.id]

    async def _feed(
        self,
        item: SessionInput,
        plan: SessionPlan,
        session: Session,
        room: asyncio.Event,
        result: SessionResult,
    ) -> None:
        try:
            async for frame in self._frames(item, plan, result):
                while not session.inbox.put(0, {self._input_name: frame}):
                    if session.inbox.ended:
                        return
                    room.clear()
                    if session.inbox.full and not session.inbox.ended:
                        await room.wait()
            session.inbox.end()
        except InputError as error:
            session.cancel(error)
        except Exception as error:  # a source of a plugin may raise anything
            session.cancel(
                SessionError(
                    f"the source of session {item.id} failed",
                    got=f"{type(error).__name__}: {error}",
                )
            )

    async def _frames(
        self, item: SessionInput, plan: SessionPlan, result: SessionResult
    ) -> AsyncIterator[npt.NDArray[Any]]:
        """What the engine takes: whole frames of audio, or columns of codes."""
        wanted = self._input_format
        chunks = item.chunks()
        async with aclosing(chunks) as stream:  # type: ignore[type-var]
            if isinstance(wanted, Codes):
                async for codes_KT in stream:
                    for column_K in _columns(item, np.asarray(codes_KT), wanted):
                        yield column_K
                return
            if not isinstance(wanted, Audio):
                raise InputError(f"a graph cannot be fed {wanted}")
            reframer = Reframer(
                item.sample_rate,
                wanted.sample_rate,
                wanted.frame_size,
                lead_s=plan.lead_s,
                tail_s=plan.tail_s,
                what=f"the audio of session {item.id}",
            )
            async for chunk_CN in stream:
                for frame in reframer.push(chunk_CN):
                    yield frame
            for frame in reframer.finish():
                result.padding_s = reframer.padding / wanted.sample_rate
                yield frame

    async def _drain(self, plan: SessionPlan, session: Session, news: asyncio.Event) -> None:
        while True:
            taken = session.outbox.take()
            if taken is None:
                if session.outbox.finished:
                    return
                news.clear()
                if not len(session.outbox) and not session.outbox.ended:
                    await news.wait()
                continue
            frame, row = taken
            packets = [self._packet(plan, name, frame, value) for name, value in row.items()]
            for sink in plan.sinks:
                for packet in packets:
                    if packet.output in sink.takes or packet.output in sink.optional:
                        await sink.write(packet)
            self._observer.on_frame(plan, frame, packets)

    def _packet(
        self, plan: SessionPlan, output: str, frame: int, value: npt.NDArray[Any]
    ) -> Packet:
        payload = int(value) if isinstance(self._output_formats[output], Text) else value
        pts_ns = round(frame * plan.info.frame_s * NS_PER_SECOND)
        return Packet(output=output, frame=frame, pts_ns=pts_ns, payload=payload)

    async def _close_sinks(self, opened: Sequence[Sink], result: SessionResult) -> None:
        end = SessionEnd(result.num_frames, result.complete, result.padding_s)
        for sink in opened:
            try:
                report = await sink.close(end)
            except (MoshiPipeError, OSError) as error:
                result.complete = False
                if result.failure is None:
                    wrapped = isinstance(error, MoshiPipeError)
                    result.failure = error if wrapped else OutputError(str(error))  # type: ignore[assignment]
                continue
            result.sinks.append(report)

    def _make_session(self, item: SessionInput, plan: SessionPlan) -> Session:
        wanted = {name for sink in plan.sinks for name in (*sink.takes, *sink.optional)}
        columns = {
            name: (fmt.shape, fmt.dtype)
            for name, fmt in self._output_formats.items()
            if name in wanted or isinstance(fmt, Text)
        }
        form = self._input_format
        inbox = Ring({self._input_name: (form.shape, form.dtype)}, capacity=self._inbox_frames)
        outbox = Ring(columns, capacity=self._outbox_frames)
        return Session(item.id, plan.settings, inbox, outbox)


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event of the loop from another thread; a loop that has closed needs no waking."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


def _columns(
    item: SessionInput, codes_KT: npt.NDArray[np.int64], wanted: Codes
) -> list[npt.NDArray[np.int64]]:
    if codes_KT.ndim != 2 or codes_KT.shape[0] != wanted.num_codebooks:
        raise InputError(
            f"the codes of session {item.id} do not fit the model",
            got=f"an array {list(codes_KT.shape)}",
            wanted=f"[{wanted.num_codebooks}, frames]",
        )
    if codes_KT.size and not (codes_KT.min() >= 0 and codes_KT.max() < wanted.cardinality):
        raise InputError(
            f"the codes of session {item.id} do not fit the model",
            got=f"values from {codes_KT.min()} to {codes_KT.max()}",
            wanted=f"0 to {wanted.cardinality - 1}",
        )
    return list(codes_KT.T)


def _counts(ring: Ring) -> dict[str, int]:
    counters = ring.counters
    return {
        "put": counters.put,
        "taken": counters.taken,
        "dropped": counters.dropped,
        "longest": counters.longest,
    }


def _as_output_error(item: SessionInput, error: OSError) -> OutputError:
    return OutputError(
        f"the results of session {item.id} cannot be written",
        got=error.strerror or str(error),
        fix="check the free space and the permissions of the output folder",
    )
