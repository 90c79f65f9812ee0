"""One call: what the caller says as a session's input, and the way back as its sink.

Shape letters: C audio channel, N PCM sample.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.engine.live_resampler import LiveResampler
from moshi_pipe.engine.statistics import Histogram
from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo, SessionInput, Sink
from moshi_pipe.units import NS_PER_MS
from moshi_pipe_telephone import messages, mulaw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import numpy.typing as npt

    from moshi_pipe.engine.clock import Clock
    from moshi_pipe.graph.packet import Packet

PACKET: Final = 160
"""Bytes of a packet to the caller: 20 ms, as telephone networks send them."""

MAX_WAITING: Final = 100
"""Packets that wait for the model, or for the connection: 2 s each way."""

MARK_EVERY: Final = 50
"""Packets between two marks: one second."""

CLOSE_S: Final = 2.0
"""What the end of a call waits for the connection at most, twice: to send, and to close."""

_MAX_MARKS: Final = 64
_MAX_DIGITS: Final = 64


class Call(SessionInput):
    """What the caller says.

    Args:
        name: Unique in the run; the session's id.
        start: What the other side said of the call.
        connection: The websocket, of ``websockets.asyncio.server``.
        clock: Stamps packets.
        max_behind_ms: Of the way back; see :class:`Outbox`.

    Attributes:
        outbox: What waits to be sent.
        done: Set when the session is over and its last word was sent.
        ended: Why the input ended: ``stop``, ``closed``, ``idle``, ``limit``, ``stopped`` or what
            the other side did wrong; None while it goes on.
    """

    def __init__(
        self,
        name: str,
        start: messages.Start,
        connection: Any,
        clock: Clock,
        *,
        max_behind_ms: float,
    ) -> None:
        self.id = name
        self.meta: Mapping[str, Any] = {
            "stem": name,
            "stream_sid": start.stream_sid,
            "call_sid": start.call_sid,
        }
        self.sample_rate = mulaw.SAMPLE_RATE
        self.warnings: list[str] = []
        self.outbox = Outbox(start.stream_sid, connection, clock, max_behind_ms=max_behind_ms)
        self.sinks = [CallSink(self)]
        self.connection = connection
        self.done = asyncio.Event()
        self.ended: str | None = None
        self.refused: Mapping[str, int] = {}
        self._start = start
        self._clock = clock
        self._packets: deque[tuple[bytes, int]] = deque(maxlen=MAX_WAITING)
        self._news = asyncio.Event()
        self._num_packets = self._num_dropped = 0
        self._digits = ""

    def hear(self, message: messages.Message) -> bool:
        """Take a message of the caller.

        Returns:
            Whether it was sound.

        Raises:
            CallError: It does not belong into a call that has begun.
        """
        if isinstance(message, messages.Media):
            self._num_packets += 1
            self._num_dropped += len(self._packets) == MAX_WAITING
            self._packets.append((message.payload, self._clock.now_ns()))
            self._news.set()
            return True
        if isinstance(message, messages.Start):
            raise messages.CallError(messages.NOT_ALLOWED, "second start")
        if isinstance(message, messages.Stop):
            self.hang_up("stop")
        elif isinstance(message, messages.Mark):
            self.outbox.played(message.name)
        elif isinstance(message, messages.Dtmf) and len(self._digits) < _MAX_DIGITS:
            self._digits += message.digit
        return False

    def hang_up(self, why: str) -> None:
        """End the input after what was heard so far; the first reason stays."""
        self.ended = self.ended or why
        self._news.set()

    async def chunks(self) -> AsyncIterator[npt.NDArray[np.float32]]:
        """Yield packets as they come, float32 ``[1, N]`` at 8 kHz."""
        while True:
            self._news.clear()
            if not self._packets:
                if self.ended is not None:
                    break
                await self._news.wait()
            while self._packets:
                payload, self.delivered_ns = self._packets.popleft()
                yield mulaw.decode(payload)[None]
        if self._num_dropped:
            self.warnings.append(f"{self._num_dropped} packets of the caller were not taken")

    def report(self) -> Mapping[str, Any]:
        """The call, what it lost, and what the server refused so far."""
        return {
            "stream_sid": self._start.stream_sid,
            "call_sid": self._start.call_sid,
            "parameters": {k: v for k, v in self._start.parameters.items() if k != "token"},
            "digits": self._digits,
            "ended": self.ended,
            "packets": self._num_packets,
            "dropped_packets": self._num_dropped,
            "refused": dict(self.refused),
        }


class Outbox:
    """Sends to the caller what it is given, as fast as the connection takes it.

    Holds :data:`MAX_WAITING` packets at most; the oldest is dropped and counted. Each second a
    mark is sent along; it comes back when all before it was played. When that takes too long, the
    other side is told to forget what it holds: late speech is worth less than speech in time.

    Args:
        stream_sid: Named in every message.
        connection: The websocket.
        clock: Measures how long marks take.
        max_behind_ms: How long a mark may take.
    """

    def __init__(
        self, stream_sid: str, connection: Any, clock: Clock, *, max_behind_ms: float
    ) -> None:
        self.num_sent = self.num_dropped = self.num_cleared = 0
        self.behind = Histogram()
        self._sid = stream_sid
        self._connection = connection
        self._clock = clock
        self._max_behind_ns = round(max_behind_ms * NS_PER_MS)
        self._waiting: deque[tuple[str, str]] = deque()  # kind and message
        self._num_packets = 0
        self._num_waiting = 0
        self._marks: dict[str, int] = {}
        self._news = asyncio.Event()
        self._ended = False

    def put(self, packet: bytes) -> None:
        """Queue a packet of :data:`PACKET` bytes."""
        if self._num_waiting == MAX_WAITING:
            self._forget_oldest()
        self._waiting.append(("media", messages.media(self._sid, packet)))
        self._num_waiting += 1
        self._num_packets += 1
        if self._num_packets % MARK_EVERY == 0:
            name = str(self._num_packets)
            self._waiting.append(("mark", messages.mark(self._sid, name)))
            self._marks[name] = self._clock.now_ns()
            if len(self._marks) > _MAX_MARKS:  # nobody echoes them
                del self._marks[next(iter(self._marks))]
        self._news.set()

    def played(self, name: str) -> None:
        """Take a mark that came back."""
        sent_ns = self._marks.pop(name, None)
        if sent_ns is None:
            return
        behind_ns = self._clock.now_ns() - sent_ns
        self.behind.add(behind_ns)
        if behind_ns > self._max_behind_ns:
            self.num_cleared += 1
            self._marks.clear()  # those on their way come back at once, and say nothing
            self._waiting.clear()
            self.num_dropped += self._num_waiting
            self._num_waiting = 0
            self._waiting.append(("clear", messages.clear(self._sid)))
            self._news.set()

    def end(self) -> None:
        """Let :meth:`run` return once all is sent."""
        self._ended = True
        self._news.set()

    async def run(self) -> None:
        """Send until :meth:`end`; ends early when the connection does."""
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):
            while True:
                while self._waiting:
                    kind, message = self._waiting.popleft()
                    if kind == "media":
                        self._num_waiting -= 1
                        self.num_sent += 1
                    await self._connection.send(message)
                if self._ended:
                    return
                self._news.clear()
                await self._news.wait()

    def _forget_oldest(self) -> None:
        while self._waiting and self._waiting.popleft()[0] != "media":
            pass
        self._num_waiting -= 1
        self.num_dropped += 1


class CallSink(Sink):
    """What the caller hears: the model's voice at 8 kHz in packets of 20 ms.

    Never waits: packets go to the call's outbox at the pace of the model. Frames that were dropped
    are left out, so that the conversation stays in time.

    Args:
        call: Where it goes.
    """

    takes = ("audio",)
    realtime = True
    keeps = False

    def __init__(self, call: Call) -> None:
        self._call = call
        self._resampler: LiveResampler | None = None
        self._sample_rate = 0
        self._rest = b""
        self._sender: asyncio.Task[None] | None = None

    async def open(self, session: SessionInfo) -> None:
        """Begin to send.

        Raises:
            ConfigError: The graph makes no audio.
        """
        form = session.formats.get("audio")
        if not isinstance(form, Audio):
            raise ConfigError(
                "source=telephone needs the output 'audio', which this graph does not make",
                fix="choose graph=dialogue or graph=codec",
            )
        self._sample_rate = form.sample_rate
        if form.sample_rate != mulaw.SAMPLE_RATE:
            self._resampler = LiveResampler(form.sample_rate, mulaw.SAMPLE_RATE)
        self._sender = asyncio.create_task(self._call.outbox.run())

    async def write(self, packet: Packet) -> None:
        """Queue a frame."""
        self._push(np.asarray(packet.payload, np.float32)[0])

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Send what is left, and hang up; takes a few seconds at most."""
        call, outbox = self._call, self._call.outbox
        if self._resampler is not None:
            held = int(np.ceil(self._resampler.delay_s * self._sample_rate))
            self._push(np.zeros(held, np.float32))
        if self._rest:
            outbox.put(self._rest.ljust(PACKET, bytes([mulaw.SILENCE])))
        outbox.end()
        if self._sender is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._sender, CLOSE_S)
        call.hang_up("model")
        await self._hang_up(end)
        call.done.set()
        return {
            "sink": "telephone",
            "packets": outbox.num_sent,
            "dropped_packets": outbox.num_dropped,
            "cleared": outbox.num_cleared,
            "behind": outbox.behind.to_dict(),  # from the queue to the ear, by marks
        }

    async def _hang_up(self, end: SessionEnd) -> None:
        why = self._call.ended
        code = messages.DONE if end.complete else messages.FAILED
        if why == "stopped":
            code = messages.LEAVING
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._call.connection.close(code, why or ""), CLOSE_S)

    def _push(self, samples_N: npt.NDArray[np.float32]) -> None:
        if self._resampler is not None:
            samples_N = self._resampler.push(samples_N)
        data = self._rest + mulaw.encode(samples_N)
        whole = len(data) // PACKET * PACKET
        for at in range(0, whole, PACKET):
            self._call.outbox.put(data[at : at + PACKET])
        self._rest = data[whole:]
