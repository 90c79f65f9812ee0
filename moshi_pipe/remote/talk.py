"""One session held by a remote model: frames from its inbox there, answers into its outbox.

::

    inbox ──▶ sender ──▶ websocket ──▶ server
                 │ frames in flight, oldest first
    outbox ◀── receiver ◀── websocket ◀── server

The first frames of a connection have no answer, as with the reference's servers; from then on the
next answer belongs to the oldest frame in flight. So an answer is recorded in step with what was
heard, however long it was under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.engine.session import TIMES, Session, SessionState
from moshi_pipe.errors import BackendError, SessionError
from moshi_pipe.remote.audio import (
    FRAME_SIZE,
    SAMPLE_RATE,
    AudioError,
    Decoder,
    make_decoder,
    make_encoder,
)
from moshi_pipe.remote.connection import Connection, connect
from moshi_pipe.remote.failures import LostError, ResumeRefusedError
from moshi_pipe.remote.rows import Rows, Sent
from moshi_pipe.server.messages import AudioFormat, Kind, Message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import numpy.typing as npt

    from moshi_pipe.engine.clock import Clock
    from moshi_pipe.engine.lateness import TickTimes
    from moshi_pipe.models.remote import RemoteOptions
    from moshi_pipe.remote.pieces import Pieces

FRAME_S: Final = FRAME_SIZE / SAMPLE_RATE  # 0.08

_LOOK_S: Final = 0.5  # between two looks at the time while nothing comes
_DRAIN_S: Final = 2.0  # for the last answers of a server that does not say when it is done
_LINGER_S: Final = 0.5  # for the text of the last answer
_LONGEST_TAIL: Final = 250  # frames: 20 s, as engine.max_tail_s
_FIRST_PAUSE_S: Final = 0.25  # before connecting again; doubled each time
_LONGEST_PAUSE_S: Final = 4.0


@dataclass(frozen=True, slots=True)
class TalkOptions:
    """What all sessions have in common.

    Attributes:
        server: Where it is.
        query: Parameters of every conversation.
        input_name: Name of the graph's input.
        user_outputs: Outputs of the graph that are its input.
        live: Whether frames come at their own pace.
        window_frames: Frames that may be without an answer: then a recording waits, and a live
            source gets none for the oldest.
    """

    server: RemoteOptions
    query: Mapping[str, str]
    input_name: str
    user_outputs: tuple[str, ...] = ()
    live: bool = False
    window_frames: int = 25


class Talk:
    """Holds one session; what goes wrong ends it alone.

    Args:
        session: Taken from its rings.
        options: What it has in common with others.
        pieces: Numbers what the model says.
        clock: Stamps frames.
        tell: Given sentences for people.
        count: Told of every frame that was answered.
        sleep: Waits for the next frame of a recording.

    Attributes:
        connected: Whether a server ever began.
    """

    def __init__(
        self,
        session: Session,
        options: TalkOptions,
        pieces: Pieces,
        clock: Clock,
        *,
        tell: Callable[[str], None],
        count: Callable[[TickTimes], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.session = session
        self.connected = False
        self._options = options
        self._clock = clock
        self._tell = tell
        self._sleep = sleep
        self._rows = Rows(session, options.user_outputs, pieces, clock, count)
        self._longest_gap_s = 0.0  # between two messages of this connection
        self._unanswered = 0  # frames of this connection that will get no answer
        self._sent_all = self._told_end = False
        self._again: deque[Sent] = deque()  # frames that a lost conversation did not answer
        self._progress = False
        self._token: str | None = None
        self._facts: dict[str, Any] = {"connections": 0, "reconnects": 0, "unanswered_frames": 0}
        self._lost_frames = 0  # as the server counts them

    async def run(self) -> None:
        """Hold the session to its end.

        Raises:
            MoshiPipeError: It could not be held; what was answered is in the outbox.
        """
        session, loop = self.session, asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._rows.changed.set)

        session.inbox.listen(on_put=wake)
        session.outbox.listen(on_take=wake)
        attempts = 0
        try:
            while not session.cancelled:
                try:
                    connection = await self._until_cancelled(self._connect())
                    if connection is None:
                        return
                    try:
                        await self._converse(connection)
                    finally:
                        self._keep_facts(connection)
                        await connection.close()
                except LostError as lost:
                    attempts = 1 if self._progress else attempts + 1
                    await self._lose(lost, attempts)
                except ResumeRefusedError as refused:
                    self._forget(refused)
                except BackendError as error:  # the server does not come back at once
                    if not self.connected or attempts == 0:
                        raise
                    attempts += 1
                    await self._lose(LostError(error.got or error.what), attempts)
                else:
                    return
        finally:
            session.report = dict(self._facts)

    # ---- connecting

    async def _connect(self) -> Connection:
        seed = str(self.session.settings.seed)
        query = {
            **self._options.query,
            "seed": seed,
            "audio_seed": seed,
            "text_seed": seed,
        }
        if self._token is not None:
            query["resume"] = self._token
        connection = await connect(self._options.server, query, self._tell)
        self._facts["connections"] += 1
        self._begin(connection)
        return connection

    def _begin(self, connection: Connection) -> None:
        """The server is there: what waited for it until now is old."""
        session = self.session
        if self._options.live:
            while session.inbox.take() is not None:
                pass
        if not self.connected:
            session.inbox.counters.dropped = 0  # nobody was late for what came before the start
            session.state = SessionState.RUNNING
            session.admitted_ns = self._clock.now_ns()
        self.connected = True
        self._progress = False
        self._unanswered = connection.answer_offset if self._token is None else 0
        self._lost_frames = 0
        self._longest_gap_s = 0.0
        self._sent_all = self._told_end = False

    async def _lose(self, lost: LostError, attempts: int) -> None:
        """Say that the connection was lost, and wait before the next attempt.

        Raises:
            SessionError: There were enough.
        """
        if self._token is None and not self._options.live:
            # A new conversation has not heard them.
            self._again.extendleft(reversed(self._rows.take_back()))
        else:
            self._facts["unanswered_frames"] += await self._rows.release()
        most = self._options.server.reconnect
        if not self.connected or attempts > most:
            raise SessionError(
                f"the conversation of session {self.session.id} was lost",
                got=lost.why,
                fix="allow more attempts: model.reconnect=N" if self.connected else None,
            ) from lost
        at_s = self.session.next_frame * FRAME_S
        self._facts["reconnects"] += 1
        kept = "the same conversation, if the server still holds it"
        new = "a new conversation, which knows nothing of what was said"
        said = f"{lost.why}; after {at_s:.1f} s comes {kept if self._token else new}"
        if attempts == 1:
            self.session.warnings.append(said)
        self._tell(said)
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempts - 1))
        await self._until_cancelled(self._sleep(pause_s))

    def _forget(self, refused: ResumeRefusedError) -> None:
        """Begin anew: the server no longer holds the conversation.

        Raises:
            SessionError: There was none to continue.
        """
        if self._token is None:
            raise SessionError(
                f"the server ended session {self.session.id}", got=refused.why
            ) from refused
        self._token = None
        at_s = self.session.next_frame * FRAME_S
        said = f"the server did not hold the conversation any more; a new one began at {at_s:.1f} s"
        self.session.warnings.append(said)
        self._tell(said)

    async def _until_cancelled(self, wanted: Awaitable[Any]) -> Any:
        """Wait for something, but not when the session is no longer wanted; then None."""
        task = asyncio.ensure_future(wanted)
        try:
            while not task.done():
                if self.session.cancelled:
                    return None
                await self._rows.wait_for_change({task})
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    # ---- talking

    async def _converse(self, connection: Connection) -> None:
        """Send and receive until the last word."""
        sender = asyncio.ensure_future(self._send(connection))
        receiver = asyncio.ensure_future(self._receive(connection))
        try:
            await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_EXCEPTION)
            if not receiver.done():  # it has yet to read what came before the connection broke
                await asyncio.wait({receiver}, timeout=_DRAIN_S)
            for task in (receiver, sender):  # the receiver hears why a connection ended
                if task.done():
                    task.result()
        finally:
            for task in (sender, receiver):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send(self, connection: Connection) -> None:
        """Send what is in the inbox, until it ends."""
        encoder = make_encoder(AudioFormat(self._options.server.audio))
        due_s = asyncio.get_running_loop().time()
        while (frame := await self._next_frame()) is not None:
            due_s = await self._pace(due_s)
            await self._make_room()
            frame.sent_ns = self._clock.now_ns()
            self._rows.sent(frame)
            payload = encoder.push(frame.audio[0])
            if payload:
                await connection.send(Kind.AUDIO, payload)
            if self._unanswered:
                self._unanswered -= 1
                await self._rows.release(1)
        self._sent_all = True
        await self._tell_end(connection)
        self._rows.changed.set()

    async def _tell_end(self, connection: Connection) -> None:
        """Tell a server that knows the word that the input has ended, once both are known."""
        tells = self._sent_all and not self._told_end and connection.is_ours
        if tells and not self.session.cancelled:
            self._told_end = True
            await connection.end_turn()

    async def _next_frame(self) -> Sent | None:
        """The next frame to send; None when there is no further one."""
        if self._again:
            return self._again.popleft()
        inbox = self.session.inbox
        while (row := inbox.take()) is None:
            if inbox.finished or self.session.cancelled:
                return None
            self._rows.changed.clear()
            if not len(inbox) and not inbox.ended:
                await self._rows.wait_for_change()
        if self.session.cancelled:
            return None
        frame, values = row
        return Sent(frame, values[self._options.input_name], int(values[TIMES][0]))

    async def _pace(self, due_s: float) -> float:
        """Wait until a frame of a recording would have been said; returns when the next is due."""
        pace = self._options.server.pace
        if self._options.live or pace is None:
            return due_s
        now_s = asyncio.get_running_loop().time()
        if due_s > now_s:
            await self._until_cancelled(self._sleep(due_s - now_s))
        return max(due_s, now_s - FRAME_S) + FRAME_S / pace

    async def _make_room(self) -> None:
        """Let no more frames be in flight than may be."""
        while len(self._rows) >= self._options.window_frames and not self.session.cancelled:
            if self._options.live:
                self._facts["unanswered_frames"] += 1
                await self._rows.release(1)
            else:
                self._rows.changed.clear()
                await self._rows.wait_for_change()

    async def _receive(self, connection: Connection) -> None:
        """Take what the server says, until it has said all."""
        decoder = make_decoder(AudioFormat(self._options.server.audio))
        rest_N = np.zeros(0, dtype=np.float32)
        loop = asyncio.get_running_loop()
        last_s = loop.time()
        waiting = asyncio.ensure_future(connection.receive())
        try:
            while not self.session.cancelled:
                await asyncio.wait({waiting}, timeout=_LOOK_S)
                if not waiting.done():
                    if self._is_over(connection, loop.time() - last_s):
                        break
                    continue
                try:
                    message = waiting.result()
                except LostError:
                    if self._has_ended(connection):
                        break
                    raise
                now_s = loop.time()
                self._longest_gap_s = max(self._longest_gap_s, now_s - last_s)
                last_s = now_s
                if message.kind is Kind.AUDIO:
                    rest_N = np.concatenate([rest_N, self._decode(decoder, message.payload)])
                    rest_N = await self._answer(rest_N)
                else:
                    await self._take(connection, message)
                if self._says_too_much(connection):
                    break
                waiting = asyncio.ensure_future(connection.receive())
        finally:
            waiting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await waiting
        if not self.session.cancelled:
            self._facts["unanswered_frames"] += await self._rows.release()

    async def _answer(self, samples_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Put whole frames of what the server says to those that they answer; gives the rest."""
        while samples_N.size >= FRAME_SIZE:
            self._progress = True
            await self._rows.answer(samples_N[None, :FRAME_SIZE], more=self._sent_all)
            samples_N = samples_N[FRAME_SIZE:]
        return samples_N

    async def _take(self, connection: Connection, message: Message) -> None:
        """Take a message that is not audio."""
        if message.kind is Kind.TEXT:
            await self._rows.say(message.payload.decode("utf-8", errors="replace"))
        elif message.kind is Kind.METADATA:
            await self._learn(connection.read_metadata(message.payload))
            await self._tell_end(connection)
        elif message.kind is Kind.ERROR:
            said = message.payload.decode("utf-8", errors="replace")[:500]
            self._tell(f"the server says: {said}")

    def _has_ended(self, connection: Connection) -> bool:
        """Whether a connection that ended had nothing more to give."""
        if connection.closed_well():
            self._token = None  # nothing is left that could be continued
            return self._sent_all and (self._told_end or not len(self._rows))
        return self._sent_all and not connection.is_ours and not len(self._rows)

    def _is_over(self, connection: Connection, quiet_s: float) -> bool:
        """Whether nothing more is to come, after so long without a message.

        Raises:
            LostError: Something should have come by now.
        """
        silence_s = self._options.server.silence_s
        if self._sent_all and not connection.is_ours:
            drain_s = min(silence_s, max(_DRAIN_S, 2 * self._longest_gap_s))
            return quiet_s >= (drain_s if len(self._rows) else _LINGER_S)
        if quiet_s >= silence_s and (len(self._rows) or self._sent_all):
            raise LostError(f"the server said nothing for {silence_s:g} s")
        return False

    def _says_too_much(self, connection: Connection) -> bool:
        """Whether a server that knows no end speaks on and on after the input."""
        if self._sent_all and not connection.is_ours and self._rows.num_surplus > _LONGEST_TAIL:
            self._tell("the server speaks on although the input has ended; the rest is left out")
            return True
        return False

    def _decode(self, decoder: Decoder, payload: bytes) -> npt.NDArray[np.float32]:
        """Samples of a payload.

        Raises:
            SessionError: It is not in the format that was asked for.
        """
        try:
            return decoder.push(payload)
        except AudioError as error:
            raise SessionError(
                f"the server's audio for session {self.session.id} cannot be decoded",
                got=str(error),
                wanted=self._options.server.audio,
                fix="leave model.audio as it is, unless the server is moshi-pipe",
            ) from error

    # ---- what the server says

    async def _learn(self, values: Mapping[str, Any]) -> None:
        """Take over what the server says about the conversation."""
        kind = values.get("type")
        if kind == "session":
            resume = values.get("resume")
            if isinstance(resume, dict) and isinstance(resume.get("token"), str):
                self._token = resume["token"]
        elif kind == "stats":
            counts = (values.get("dropped_frames"), values.get("skipped_frames"))
            lost = sum(count for count in counts if isinstance(count, int))
            if lost > self._lost_frames:
                more, self._lost_frames = lost - self._lost_frames, lost
                self._facts["lost_frames"] = self._facts.get("lost_frames", 0) + more
                await self._rows.release(more)
        elif kind == "ending":
            self._tell(f"the server ends soon: {str(values.get('reason'))[:80]}")

    def _keep_facts(self, connection: Connection) -> None:
        facts = dict(connection.facts)
        session = facts.pop("session", None)
        if session is not None:
            shown = ("server", "model", "session", "resumed", "seed", "limits", "sampling")
            facts["session"] = {key: session[key] for key in shown if key in session}
        self._facts |= {"url": connection.url, **facts, "ignored": dict(connection.ignored)}
        if self._rows.num_surplus:
            self._facts["surplus_frames"] = self._rows.num_surplus
