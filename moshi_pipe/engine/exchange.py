"""One session at the edge: from its input into the engine, from the engine into its sinks."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.engine.framing import Reframer
from moshi_pipe.engine.greeting import Greeting
from moshi_pipe.engine.session import TIMES, make_session
from moshi_pipe.errors import InputError, MoshiPipeError, OutputError, SessionError
from moshi_pipe.graph.format import Audio, Codes, Format, Text
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import FrameTimes, Packet
from moshi_pipe.units import NS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    import numpy.typing as npt

    from moshi_pipe.engine.clock import Clock
    from moshi_pipe.engine.ring import Ring
    from moshi_pipe.engine.session import Session
    from moshi_pipe.engine.waker import Waker
    from moshi_pipe.graph.node import SessionInfo, SessionInput, SessionSettings, Sink


@dataclass(slots=True)
class SessionPlan:
    """What the caller decided about one session input.

    Attributes:
        info: What sinks may know.
        settings: How it runs.
        sinks: Fresh sinks of this session.
        labels: Names of the sinks in reports.
        lead_s: Silence before its audio, in seconds.
        tail_s: Silence after it.
        source_plugin: Plugin that gave its input; None for the package's own.
        record: Whether anything of it may be kept.
        failure: Why it cannot run: it ends as soon as it begins.
        greeting_frames: Leave out what the model makes until it has written nothing for so many
            frames; None leaves nothing out.
    """

    info: SessionInfo
    settings: SessionSettings
    sinks: Sequence[Sink]
    lead_s: float = 0.0
    tail_s: float = 0.0
    source_plugin: str | None = None
    labels: Sequence[str] = ()
    record: bool = True
    failure: MoshiPipeError | None = None
    greeting_frames: int | None = None


@dataclass(slots=True)
class SessionResult:
    """How a session ended.

    Attributes:
        id: The session's id.
        meta: From the source.
        seed: Its seed.
        num_frames: Frames processed.
        num_dropped: Frames that were not, because the models were too late for them.
        audio_s: Duration in seconds, silence before and after included, padding not.
        wall_s: From getting a slot to closing the sinks.
        complete: Whether it ran to its end.
        failure: Why not; None also when it was interrupted.
        warnings: What the source has to say about its input.
        source: What the source reports.
        sinks: What each sink reports, in the plan's order; empty for one that failed.
        counters: Of its rings.
        held: What is reported of how a server held it; empty for models that run here.
        labels: Names of the sinks, in the same order.
        settings: How it ran; None when that is not known.
        record: Whether anything of it may be kept.
        greeting_s: What the model said at first and was left out, in seconds.
    """

    id: str
    meta: Mapping[str, Any]
    seed: int
    num_frames: int = 0
    num_dropped: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0
    complete: bool = False
    failure: MoshiPipeError | None = None
    warnings: list[str] = field(default_factory=list)
    source: Mapping[str, Any] = field(default_factory=dict)
    sinks: list[Mapping[str, Any]] = field(default_factory=list)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    held: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] = ()
    settings: SessionSettings | None = None
    record: bool = True
    greeting_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FrameDone:
    """A frame that went through.

    Attributes:
        frame: Its number in the session.
        packets: What the graph made of it.
        times: When.
        num_dropped: Frames of the session that were dropped so far.
    """

    frame: int
    packets: Sequence[Packet]
    times: FrameTimes
    num_dropped: int


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """What all sessions of an edge have in common.

    Attributes:
        input_name: Name of the graph's input.
        input_format: Its format.
        output_formats: Format per output that the engine makes.
        inbox_frames: Frames of a session that wait for the engine.
        outbox_frames: Frames of a session that wait for its sinks.
        inbox_policy: What happens when its inbox is full; see
            :data:`~moshi_pipe.engine.ring.POLICIES`.
        live: Whether audio comes at its own pace: then it is resampled with little delay.
    """

    input_name: str
    input_format: Format
    output_formats: Mapping[str, Format]
    inbox_frames: int = 25
    outbox_frames: int = 25
    inbox_policy: str = "block"
    live: bool = False


class Observer:
    """Told about sessions as they go; every method may be left as it is.

    Calls must be quick, and must not raise.
    """

    def on_open(self, item: SessionInput, plan: SessionPlan) -> None:
        """A session got its slot, or ended before it did; ``on_close`` follows in any case."""

    def on_frame(self, plan: SessionPlan, done: FrameDone) -> None:
        """A frame of a session was written to its sinks."""

    def on_close(self, result: SessionResult) -> None:
        """A session ended."""


class Exchange:
    """Carries one session. Whatever its source, sinks or observer raise ends this session alone.

    Args:
        item: What comes in.
        plan: How it runs and where it goes.
        options: What it has in common with others.
        observer: Told how it goes.
        clock: Stamps frames of a source that does not.
        waker: Of the loop that this runs in; the engine's thread wakes it.
    """

    def __init__(
        self,
        item: SessionInput,
        plan: SessionPlan,
        options: ExchangeOptions,
        *,
        observer: Observer,
        clock: Clock,
        waker: Waker,
    ) -> None:
        self._item = item
        self._plan = plan
        self._options = options
        self._observer = observer
        self._clock = clock
        self._waker = waker
        self.session: Session = make_session(
            item.id,
            plan.settings,
            {options.input_name: options.input_format},
            options.output_formats,
            inbox_frames=options.inbox_frames,
            outbox_frames=options.outbox_frames,
            inbox_policy=options.inbox_policy,
        )
        self._room, self._news = asyncio.Event(), asyncio.Event()
        self._opened: list[Sink] = []
        self._at: Sink | None = None  # the sink that was called last
        self._announced = False
        self._greeting = Greeting(plan.greeting_frames)
        self._num_fed = 0
        self._padding_s = 0.0

    async def run(
        self, submit: Callable[[Session], None], submitted: Callable[[], None]
    ) -> SessionResult:
        """Carry the session to its end.

        Args:
            submit: Lets the session wait for a slot.
            submitted: Called when it does.
        """
        session = self.session
        if self._plan.failure is not None:
            session.failure = self._plan.failure
            return await self._finish()
        try:
            await self._prepare()
            for sink in self._plan.sinks:
                self._at = sink
                await sink.open(self._plan.info)
                self._opened.append(sink)
            session.inbox.listen(on_take=lambda: self._waker.wake(self._room))
            session.outbox.listen(on_put=lambda: self._waker.wake(self._news))
            submit(session)
            submitted()
            await self._converse()
        except Exception as error:  # a sink of a plugin may raise anything
            session.failure = session.failure or self._failure(error)
        return await self._finish()

    async def _prepare(self) -> None:
        try:
            await self._item.prepare()
        except MoshiPipeError:
            raise
        except Exception as error:  # a source of a plugin may raise anything
            raise self._source_failed(error) from error

    async def _converse(self) -> None:
        """Feed and drain until the outbox has ended."""
        feeder = asyncio.create_task(self._feed())
        try:
            await self._drain()
        except Exception as error:  # as above; the engine lets go of the session first
            self.session.cancel(self._failure(error))
            while await self._take() is not None:
                pass
        finally:
            feeder.cancel()
            with suppress(asyncio.CancelledError):
                await feeder

    async def _feed(self) -> None:
        """Put the input into the inbox, waiting for room if that is its policy."""
        session, inbox = self.session, self.session.inbox
        try:
            async for frame in self._frames():
                at_ns = self._item.delivered_ns
                delivered_ns = self._clock.now_ns() if at_ns is None else at_ns
                row = {self._options.input_name: frame, TIMES: delivered_ns}
                while not inbox.put(self._num_fed, row):
                    if inbox.ended:
                        if inbox.policy == "close" and not session.cancelled:
                            session.cancel(_fell_behind(self._item, inbox.capacity))
                        return
                    self._room.clear()
                    if inbox.full and not inbox.ended:
                        await self._room.wait()
                self._num_fed += 1
            inbox.end()
        except Exception as error:  # a source of a plugin may raise anything
            known = isinstance(error, MoshiPipeError)
            session.cancel(error if known else self._source_failed(error))  # type: ignore[arg-type]

    async def _frames(self) -> AsyncIterator[npt.NDArray[Any]]:
        """What the engine takes: whole frames of audio, or columns of codes."""
        item, wanted = self._item, self._options.input_format
        async with aclosing(item.chunks()) as stream:  # type: ignore[type-var]
            if isinstance(wanted, Codes):
                async for codes_KT in stream:
                    for column_K in check_codes(item.id, np.asarray(codes_KT), wanted).T:
                        yield column_K
                return
            if not isinstance(wanted, Audio):
                raise InputError(f"a graph cannot be fed {wanted}")
            reframer = Reframer(
                item.sample_rate,
                wanted.sample_rate,
                wanted.frame_size,
                lead_s=self._plan.lead_s,
                tail_s=self._plan.tail_s,
                live=self._options.live,
                what=f"the audio of session {item.id}",
            )
            async for chunk_CN in stream:
                for frame in reframer.push(chunk_CN):
                    yield frame
            for frame in reframer.finish():
                self._padding_s = reframer.padding / wanted.sample_rate
                yield frame

    async def _drain(self) -> None:
        """Give what the engine made to the sinks, until it makes no more."""
        while (taken := await self._take()) is not None:
            self._announce()
            frame, row = taken
            times = FrameTimes(*row.pop(TIMES).tolist())
            row = self._greeting.without(row)
            # Text comes first: a sink that sends both together has it when the audio comes.
            names = sorted(row, key=lambda name: not self._is_text(name))
            packets = [self._packet(name, frame, row[name], times) for name in names]
            for sink in self._plan.sinks:
                for packet in packets:
                    if packet.output in sink.takes or packet.output in sink.optional:
                        self._at = sink
                        await sink.write(packet)
            dropped = self.session.inbox.counters.dropped
            self._observer.on_frame(self._plan, FrameDone(frame, packets, times, dropped))

    async def _take(self) -> tuple[int, dict[str, npt.NDArray[Any]]] | None:
        """The next row of the outbox; None when it has ended."""
        outbox = self.session.outbox
        while (taken := outbox.take()) is None:
            if outbox.finished:
                return None
            self._news.clear()
            if not len(outbox) and not outbox.ended:
                await self._news.wait()
        return taken

    def _packet(
        self, output: str, frame: int, value: npt.NDArray[Any], times: FrameTimes
    ) -> Packet:
        pts_ns = round(frame * self._plan.info.frame_s * NS_PER_SECOND)
        payload = int(value) if self._is_text(output) else value
        return Packet(output, frame, pts_ns, payload, times)

    def _is_text(self, output: str) -> bool:
        return isinstance(self._options.output_formats[output], Text)

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._observer.on_open(self._item, self._plan)

    async def _finish(self) -> SessionResult:
        """Close the sinks, and say what became of the session."""
        session, plan = self.session, self._plan
        if session.next_frame != self._num_fed:  # cut short, or the model spoke on
            self._padding_s = 0.0
        result = SessionResult(
            session.id,
            self._item.meta,
            plan.settings.seed,
            num_frames=session.num_frames,
            num_dropped=session.inbox.counters.dropped,
            audio_s=session.next_frame * plan.info.frame_s - self._padding_s,
            complete=session.failure is None and not session.cancelled,
            failure=session.failure,
            warnings=[*self._item.warnings, *session.warnings],
            held=session.report,
            labels=plan.labels,
            settings=plan.settings,
            record=plan.record,
            greeting_s=round(self._greeting.num_frames * plan.info.frame_s, 4),
            source=self._item.report(),
            counters={"inbox": _counts(session.inbox), "outbox": _counts(session.outbox)},
        )
        await self._close_sinks(result)
        with suppress(Exception):  # as above; it is over
            await self._item.release()
        if session.admitted_ns is not None:
            result.wall_s = (self._clock.now_ns() - session.admitted_ns) / NS_PER_SECOND
        self._announce()
        self._observer.on_close(result)
        return result

    async def _close_sinks(self, result: SessionResult) -> None:
        end = SessionEnd(self.session.next_frame, result.complete, self._padding_s)
        for sink in self._opened:
            try:
                result.sinks.append(await sink.close(end))
            except Exception as error:  # as above
                result.sinks.append({})
                result.complete = False
                self._at = sink
                result.failure = result.failure or self._failure(error)

    def _failure(self, error: Exception) -> MoshiPipeError:
        """Why a session ended, from whatever the sink that was called last raised."""
        item, plugin = self._item, getattr(self._at, "plugin", None)
        if isinstance(error, MoshiPipeError):
            return error
        if isinstance(error, OSError):
            return OutputError(
                f"the results of session {item.id} cannot be written",
                got=error.strerror or str(error),
                fix="check the free space and the permissions of the output folder",
            )
        failure = SessionError(
            f"a sink of session {item.id} failed" + _whose(plugin),
            got=f"{type(error).__name__}: {error}",
            fix=_without(plugin),
        )
        failure.__cause__ = error
        return failure

    def _source_failed(self, error: Exception) -> SessionError:
        plugin = self._plan.source_plugin
        failure = SessionError(
            f"the source of session {self._item.id} failed" + _whose(plugin),
            got=f"{type(error).__name__}: {error}",
            fix=_without(plugin),
        )
        failure.__cause__ = error
        return failure


def check_codes(
    session_id: str, codes_KT: npt.NDArray[Any], wanted: Codes
) -> npt.NDArray[np.int64]:
    """Return codes ``[K, T]`` as int64 if they are what a port takes.

    Raises:
        InputError: They have another shape, or values outside the codebooks.
    """
    if codes_KT.ndim != 2 or codes_KT.shape[0] != wanted.num_codebooks:
        raise InputError(
            f"the codes of session {session_id} do not fit the model",
            got=f"an array {list(codes_KT.shape)}",
            wanted=f"[{wanted.num_codebooks}, frames]",
        )
    if codes_KT.size and not (codes_KT.min() >= 0 and codes_KT.max() < wanted.cardinality):
        raise InputError(
            f"the codes of session {session_id} do not fit the model",
            got=f"values from {codes_KT.min()} to {codes_KT.max()}",
            wanted=f"0 to {wanted.cardinality - 1}",
        )
    return codes_KT.astype(np.int64, copy=False)


def _counts(ring: Ring) -> dict[str, int]:
    counters = ring.counters
    return {
        "put": counters.put,
        "taken": counters.taken,
        "dropped": counters.dropped,
        "longest": counters.longest,
    }


def _whose(plugin: str | None) -> str:
    return "" if plugin is None else f": it is of plugin {plugin}"


def _without(plugin: str | None) -> str | None:
    if plugin is None:
        return None
    return f"tell its authors; to run without it: -p no:{plugin}"


def _fell_behind(item: SessionInput, frames: int) -> SessionError:
    return SessionError(
        f"session {item.id} was ended: the models fell behind",
        got=f"{frames} frames waiting, the most that engine.max_lag_ms allows",
        fix="use a smaller model or a faster machine, or let it skip: engine.late=drop_oldest",
    )
