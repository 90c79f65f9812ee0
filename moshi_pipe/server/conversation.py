"""One client of an edge process, from its first byte to its last.

::

    ASKED ── the engine answers ──▶ WAITING ── a slot is free ──▶ SEATED ──▶ ENDING ──▶ over
      └────────────── refused, failed, sent away, or gone ──────────────────▲

Three tasks belong to it, and end with it: one reads, one sends, one looks at the time.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from starlette.websockets import WebSocketDisconnect

from moshi_pipe.server import messages
from moshi_pipe.server.guard import BadMessages, Bucket, escaped
from moshi_pipe.server.intake import Intake, TooFast, make_intake
from moshi_pipe.server.messages import Close, Control, Kind, MessageError
from moshi_pipe.server.outbox import End, Outbox, Skipped
from moshi_pipe.units import NS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.engine.clock import Clock
    from moshi_pipe.server.lane import Down, DownReader, UpWriter
    from moshi_pipe.server.link import Link
    from moshi_pipe.server.options import ServerOptions
    from moshi_pipe.server.request import Request

ANSWER_S: Final = 2.0
"""Seconds that the engine has to answer a client that came in."""

END_S: Final = 3.0
"""Seconds that the end takes at most, beyond those of the answers that wait."""

_LOOK_S: Final = 0.5
_CLOSE_S: Final = 1.0  # for a close to leave, where the client does not read
_CLEAN: Final = (1000, 1001, 1005)  # a client that closes without a code is done, too
_BROKEN: Final = (1002, 1003, 1007, 1008, 1009)  # it broke the rules of websockets


class State(enum.Enum):
    """Where a conversation is."""

    ASKED = "asked"
    WAITING = "waiting"
    SEATED = "seated"
    ENDING = "ending"


class Socket(Protocol):
    """A websocket that was accepted, as ASGI has it."""

    async def receive(self) -> Mapping[str, Any]:
        """The next event: ``websocket.receive`` or ``websocket.disconnect``."""

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message, once there is room for it."""

    async def close(self, code: int, reason: str) -> None:
        """Send a close, once there is room for it."""


class Encoder(Protocol):
    """Makes bytes of a format, see :mod:`moshi_pipe.server.opus`."""

    def push(self, pcm: npt.NDArray[np.float32]) -> bytes:
        """Bytes that are complete now."""

    def finish(self) -> bytes:
        """What is left."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all conversations of an edge process share.

    Attributes:
        link: To the engine's process.
        options: Of the server.
        clock: What time it is; tests set their own.
        count: Counts an event by its name.
        log: Logs a line.
    """

    link: Link
    options: ServerOptions
    clock: Clock
    count: Callable[[str], None]
    log: Callable[[str], None]


class Conversation:
    """Speaks the protocol with one client, for the engine.

    Args:
        conn: Its number on the link.
        socket: The client.
        request: What it asked for.
        facts: Of the engine; see :mod:`moshi_pipe.server.link`.
        setting: What it shares with others.

    Attributes:
        conn: Its number on the link.
        state: Where it is.
        lane: The number of its lane; None before it has one.
    """

    def __init__(
        self,
        conn: int,
        socket: Socket,
        request: Request,
        facts: dict[str, Any],
        setting: Setting,
    ) -> None:
        self.conn = conn
        self.state = State.ASKED
        self.lane: int | None = None
        self._socket = socket
        self._request = request
        self._setting = setting
        options = setting.options
        frame_s = facts["frame_samples"] / facts["sample_rate"]
        self._lossless = bool(facts["lossless"])
        self._outbox = Outbox(round(options.outbox_s / frame_s))
        self._intake: Intake = make_intake(request.audio, request.rate, facts, self._put)
        self._encoder: Encoder | None = None
        self._reader: DownReader | None = None
        self._rows_put = 0  # by the engine
        self._end: tuple[int, End] | None = None
        self._messages = Bucket(options.messages_per_s, 2.0 * options.messages_per_s)
        self._bad = BadMessages()
        self._bad_answers = Bucket(1.0, 3.0)
        self._paused = False
        self._input_ended = False
        self._frame = 0
        self._late = 0
        self._dropped = 0
        self._latency_ms = 0.0
        self._stats_ns = 0
        self._state_ns = self._now_ns()
        self._sending_ns: int | None = None
        self._lost: tuple[bool, str] = (True, "connection lost")
        self._over = asyncio.Event()

    # What the client's side does.

    async def run(self) -> None:
        """Hold the conversation until it is over; the engine is told of its end in any case."""
        fields = self._request.to_link()
        self._setting.link.send({"op": "open", "conn": self.conn, "request": fields})
        tasks = [
            asyncio.ensure_future(one) for one in (self._read(), self._send_all(), self._look())
        ]
        over = asyncio.ensure_future(self._over.wait())
        try:
            done, _ = await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not over and task.exception() is not None:
                    await self._fail(task.exception())
        finally:
            for task in (*tasks, over):
                task.cancel()
            await asyncio.gather(*tasks, over, return_exceptions=True)
            lost, why = self._lost
            self._setting.link.send(
                {
                    "op": "gone",
                    "conn": self.conn,
                    "lost": lost and not self._input_ended,
                    "why": why,
                }
            )

    async def _read(self) -> None:
        while True:
            event = await self._socket.receive()
            if event["type"] != "websocket.receive":
                self._disconnected(int(event.get("code", 1006)))
                return
            if not await self._in_time():
                continue
            data = event.get("bytes")
            if data is None:
                data = event.get("text") or ""
            self._handle(data)
            if self._lossless:
                await self._intake.room.wait()

    async def _in_time(self) -> bool:
        """Whether a message that came counts: not at the end, and not beyond the rate."""
        if self.state is State.ENDING:
            return False
        if self._messages.take(self._now_ns() / NS_PER_SECOND):
            return True
        if not self._lossless:
            self._send_away("too_fast", "there are more messages than the server takes")
            return False
        while not self._messages.take(self._now_ns() / NS_PER_SECOND):
            wait_ns = int(self._messages.wait_s() * NS_PER_SECOND) + 1
            await self._setting.clock.sleep_until(self._now_ns() + wait_ns)
        return True

    def _handle(self, data: bytes | str) -> None:
        try:
            message = messages.parse(data)
            if message.kind is Kind.AUDIO:
                self._hear(message.payload)
            elif message.kind is Kind.CONTROL:
                self._control(message.payload)
            elif message.kind is Kind.PING:
                self._ping(message.payload)
            elif message.kind is not Kind.HANDSHAKE:
                what = f"clients send no messages of kind {message.kind.value}"
                self._answer_bad(MessageError("unexpected_kind", what))
        except MessageError as error:
            self._answer_bad(error)

    def _hear(self, payload: bytes) -> None:
        if self.state is not State.SEATED:
            self._setting.count("early_audio")
        elif not self._paused and not self._input_ended:
            try:
                self._intake.push(payload, self._now_ns())
            except TooFast:
                self._send_away("too_fast", "audio comes in faster than it is spoken")

    def _control(self, payload: bytes) -> None:
        try:
            control = Control(payload[0]) if len(payload) == 1 else None
        except ValueError:
            control = None
        if control is None:
            raise MessageError("control", "a control message is one byte, 0 to 3")
        if control is Control.RESTART:
            self._outbox.put(messages.error("unsupported", "a conversation cannot be restarted"))
        elif control is Control.END_TURN:
            self._end_turn()
        elif self.state is State.SEATED:
            self._paused = control is Control.PAUSE

    def _end_turn(self) -> None:
        if self.state in (State.ASKED, State.WAITING):
            self._close(End(Close.DONE, "done"), lost=False)
        elif self.state is State.SEATED and not self._input_ended:
            self._input_ended = True
            rows = self._intake.finish(self._now_ns())
            self._setting.link.send({"op": "end_turn", "conn": self.conn, "rows": rows})

    def _ping(self, payload: bytes) -> None:
        if len(payload) > messages.MAX_PING:
            raise MessageError("ping", f"a ping holds {messages.MAX_PING} bytes at most")
        self._outbox.put(messages.build(Kind.PING, payload))

    def _answer_bad(self, error: MessageError) -> None:
        now_s = self._now_ns() / NS_PER_SECOND
        self._setting.count(f"bad_messages.{error.code}")
        if self._bad.too_many(now_s):
            self._send_away("too_many_bad_messages", "too many messages could not be understood")
        elif self._bad_answers.take(now_s):
            self._outbox.put(messages.error("bad_message", str(error)))

    def _disconnected(self, code: int) -> None:
        if self.state is not State.ENDING:
            self._lost = (code not in (*_CLEAN, *_BROKEN), f"closed with {code}")
            if code in _BROKEN:
                self._setting.count(f"broken.{code}")
        self._over.set()

    # What the engine's side does.

    def queued(self, position: int, waiting: int) -> None:
        """It waits for a slot."""
        if self.state in (State.ASKED, State.WAITING):
            self._go(State.WAITING)
            values = {"type": "queue", "position": position, "waiting": waiting}
            self._outbox.put(messages.metadata(values))

    def seat(self, lane: int, up: UpWriter, down: DownReader, session: Mapping[str, Any]) -> None:
        """It has a slot, and a lane to it."""
        if self.state not in (State.ASKED, State.WAITING):
            return
        from moshi_pipe.server.opus import make_encoder

        self._go(State.SEATED)
        self.lane = lane
        self._encoder = make_encoder(self._request.audio)
        self._reader = down
        self._intake.seat(up)
        self._stats_ns = self._now_ns()
        self._outbox.put(messages.HANDSHAKE, must=True)
        self._outbox.put(messages.metadata(session), must=True)

    def say(self, values: Mapping[str, Any]) -> None:
        """Forward metadata."""
        self._outbox.put(messages.metadata(values), must=True)

    def took(self, rows: int) -> None:
        """The engine has taken so many frames so far."""
        if self.state is State.SEATED:
            self._intake.took(rows)

    def put(self, rows: int) -> None:
        """The engine has put so many answers so far."""
        self._rows_put = rows
        self._take_rows()

    def end(self, rows: int, end: End, *, lost: bool = False) -> None:
        """End after so many answers; at once where there are none to wait for."""
        if self.state is State.SEATED and rows > 0:
            self._end = (rows, end)
            self._take_rows()
        else:
            self._close(end, lost=lost)

    # Sending.

    def _take_rows(self) -> None:
        """Move answers from the lane to the outbox; lossless, those that find room there."""
        reader, lane = self._reader, self.lane
        if reader is None or lane is None or self.state is not State.SEATED:
            return
        before = reader.num_taken
        while not (self._lossless and self._outbox.full):
            row = reader.take(self._rows_put)
            if row is None:
                break
            self._note(row)
            skipped = self._outbox.num_skipped
            self._outbox.put_row(row)
            if self._outbox.num_skipped > skipped:
                self._setting.count("skips")
        if reader.num_taken > before:
            self._setting.link.took(lane, reader.num_taken)
            self._stats()
        if self._end is not None and reader.num_taken >= self._end[0]:
            self._close(self._end[1], lost=False)

    def _note(self, row: Down) -> None:
        self._frame, self._late, self._dropped = row.frame, row.late, row.dropped
        if row.delivered_ns:
            self._latency_ms = (self._now_ns() - row.delivered_ns) / 1e6

    def _stats(self) -> None:
        now_ns = self._now_ns()
        if now_ns - self._stats_ns < NS_PER_SECOND:
            return
        self._stats_ns = now_ns
        self._outbox.put(
            messages.metadata(
                {
                    "type": "stats",
                    "latency_ms": round(self._latency_ms, 1),
                    "dropped_frames": self._dropped + self._intake.num_dropped,
                    "skipped_frames": self._outbox.num_skipped,
                    "late_frames": self._late,
                    "frame": self._frame,
                }
            )
        )

    async def _send_all(self) -> None:
        while True:
            item = await self._outbox.get()
            if isinstance(item, End):
                await self._send_end(item)
                return
            if isinstance(item, bytes):
                await self._send(item)
            elif isinstance(item, Skipped):
                await self._send(messages.metadata({"type": "skipped", "frames": item.frames}))
            else:
                await self._send_row(item)
                if self._lossless:
                    self._take_rows()

    async def _send_row(self, row: Down) -> None:
        if row.audio_N is not None and self._encoder is not None:
            await self._send_audio(self._encoder.push(row.audio_N))
        if row.text:
            await self._send(messages.text(row.text))

    async def _send_audio(self, data: bytes) -> None:
        if data:
            await self._send(messages.build(Kind.AUDIO, data))

    async def _send(self, message: bytes) -> None:
        self._sending_ns = self._now_ns()
        await self._socket.send_bytes(message)
        self._sending_ns = None

    async def _send_end(self, end: End) -> None:
        if self._encoder is not None and end.close is Close.DONE:
            await self._send_audio(self._encoder.finish())
        if end.error is not None:
            await self._send(messages.build(Kind.ERROR, end.error.encode()))
        await self._socket.close(end.close, end.reason)
        self._over.set()

    # Time, and the end.

    async def _look(self) -> None:
        """Look at the time twice a second: is the engine silent, is the client stuck?"""
        clock, options = self._setting.clock, self._setting.options
        while True:
            await clock.sleep_until(self._now_ns() + int(_LOOK_S * NS_PER_SECOND))
            age_s = (self._now_ns() - self._state_ns) / NS_PER_SECOND
            if self.state is State.ASKED and age_s >= ANSWER_S:
                error = "at_capacity: the engine does not answer in time; try again later"
                self._close(End(Close.TRY_LATER, "at_capacity", error), lost=False)
            elif self.state is State.ENDING:
                if age_s >= END_S + options.outbox_s:
                    return await self._give_up()
            elif (
                self._sending_ns is not None
                and self._now_ns() - self._sending_ns >= options.stall_s * NS_PER_SECOND
            ):
                self._setting.count("too_slow")
                self._lost = (True, "too_slow")
                self._go(State.ENDING)
                return await self._give_up(Close.POLICY, "too_slow")

    async def _give_up(self, code: Close = Close.GOING_AWAY, reason: str = "") -> None:
        """Close past what the client does not take; it may not even take that."""
        try:
            await asyncio.wait_for(self._socket.close(code, reason), _CLOSE_S)
        except (asyncio.TimeoutError, RuntimeError, OSError, WebSocketDisconnect):
            self._setting.count("unclosed")
        finally:
            self._over.set()

    def _send_away(self, code: str, what: str) -> None:
        self._setting.count(f"sent_away.{code}")
        self._close(End(Close.POLICY, code, f"{code}: {what}"), lost=False)

    def _close(self, end: End, *, lost: bool) -> None:
        if self.state is not State.ENDING:
            self._go(State.ENDING)
            self._lost = (lost, end.reason)
            self._intake.room.set()
            self._outbox.end(end)

    async def _fail(self, error: BaseException | None) -> None:
        """A mistake of ours ends this conversation, and no other."""
        if _is_gone(error):
            return
        what = f"{type(error).__name__}: {error}"
        self._setting.log(f"conversation {self.conn} failed: {escaped(what)}")
        self._setting.count("failed")
        self._lost = (True, "internal")
        await self._give_up(Close.INTERNAL, "internal")

    def _put(self, rows: int) -> None:
        if self.lane is not None:
            self._setting.link.put(self.lane, rows)

    def _go(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._state_ns = self._now_ns()

    def _now_ns(self) -> int:
        return self._setting.clock.now_ns()


def _is_gone(error: BaseException | None) -> bool:
    """Whether an error says no more than that the client is gone."""
    return isinstance(error, (WebSocketDisconnect, OSError))
