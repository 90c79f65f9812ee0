"""A guest: one conversation of a server, across the connections that its client makes.

Shape letters: C audio channel, N PCM sample.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.graph.node import SessionInput
from moshi_pipe.server.lane import LaneError
from moshi_pipe.server.messages import Close

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.server.connection import Connection
    from moshi_pipe.server.counts import ServerCounts
    from moshi_pipe.server.lane import Down
    from moshi_pipe.server.lobby import Seat

ENDING_S: Final = 10.0
"""Seconds before its end that a client is told of it."""

_LONGEST: Final = 2.0  # live: times ``max_s``, by the clock

_SEED_BITS: Final = 31  # of seeds that nobody chose, to be told and typed

_CLOSES: Final = {
    "done": Close.DONE,
    "time_limit": Close.DONE,
    "idle": Close.DONE,
    "shutdown": Close.GOING_AWAY,
}


def make_id() -> str:
    """An id that is safe as a file name, and that nobody can guess."""
    return f"ws-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(8)}"


class Guest(SessionInput):
    """What a client says.

    Args:
        seat: Its place in the lobby.
        request: What its client asked for.
        sample_rate: Hz of frames.
        frame_s: Duration of a frame.
        max_s: Longest conversation, in seconds of audio.
        idle_s: Seconds without audio after which it ends.
        record: Whether other sinks may keep it: its client consents, and the server offers it.
        lossless: Nothing is dropped: who cannot keep up is waited for.
        counts: Of the server.
        now_s: A clock.
        on_over: Called once, when the conversation is over and has left its slot.

    Attributes:
        seat: Its place in the lobby.
        seed: What its client chose, or else drawn, so that the client can be told.
        connection: Where its client is; None while it is away.
        ended: Why its input ended: ``done``, ``time_limit``, ``idle``, ``shutdown``, ``left``,
            ``lost`` or ``failed``; None while it goes on.
        is_over: Whether all is said.
        has_sink: Set by the sink that says good-bye.
        num_skipped: Answers that were not sent, as there was no room or no client.
    """

    def __init__(
        self,
        seat: Seat,
        request: Mapping[str, Any],
        *,
        sample_rate: int,
        frame_s: float,
        max_s: float,
        idle_s: float,
        record: bool,
        lossless: bool,
        counts: ServerCounts,
        now_s: Callable[[], float],
        on_over: Callable[[Guest], None],
    ) -> None:
        self.id = make_id()
        self.meta: Mapping[str, Any] = {"stem": self.id}
        self.sample_rate = sample_rate
        seed = request.get("seed")
        self.seed = secrets.randbits(_SEED_BITS) if seed is None else int(seed)
        self.settings: Mapping[str, Any] = dict(request.get("settings") or {})
        self.record = record
        self.lossless = lossless
        self.counts = counts
        self.reply = self
        self.warnings: list[str] = []
        self.seat = seat
        self.connection: Connection | None = None
        self.ended: str | None = None
        self.is_over = False
        self.num_frames = self.num_skipped = self.num_resumed = 0
        self.max_s = max_s
        self.has_sink = False
        self._frame_s = frame_s
        self._max_frames = max(1, round(max_s / frame_s))
        self._idle_s = idle_s
        self._now_s = now_s
        self._on_over = on_over
        self._heard_s = self._began_s = now_s()
        self._away_since_s: float | None = None
        self._end_rows: int | None = None  # of this connection
        self._told: set[str] = set()
        self._moved = asyncio.Event()  # the connection is another one, or the input has ended

    @property
    def left_s(self) -> float:
        """Seconds of audio that it may still go on."""
        return max(0.0, (self._max_frames - self.num_frames) * self._frame_s)

    def attach(self, connection: Connection) -> None:
        """Its client is here, for the first time or again."""
        self.num_resumed += self.connection is None and self.num_frames > 0
        self.connection = connection
        self._end_rows = None
        if self._away_since_s is not None:  # the time away is not idle, and coming back no sound
            away_s = self._now_s() - self._away_since_s
            self._heard_s += away_s
            self._began_s += away_s
            self._away_since_s = None
        self._told.clear()
        self._moved.set()

    def detach(self) -> None:
        """Its client is away."""
        if self.connection is not None:
            self.connection.drop()
            self.connection = None
            self._away_since_s = self._now_s()
            self._moved.set()
        if self._end_rows is not None:
            self.end("done")  # the rest of it is lost with the connection

    def end_turn(self, rows: int) -> None:
        """The client says no more after so many frames of its connection."""
        self._end_rows = rows
        self.seat.ending = True
        self._wake()

    def end(self, why: str) -> None:
        """End the input; the first reason stays."""
        if self.ended is None:
            self.ended = why
            self.seat.ending = True
            self._wake()

    def check(self) -> None:
        """End what is idle or lasts for too long; to be called twice a second or so."""
        if self.connection is None or self.ended is not None:
            return
        if not self.lossless and self._now_s() - self._began_s > _LONGEST * self.max_s:
            self.end("time_limit")  # sound in drops would hold the slot for days
            return
        left_s = self._heard_s + self._idle_s - self._now_s()
        if left_s <= 0:
            self.end("idle")
        elif left_s > ENDING_S or self._idle_s <= ENDING_S:
            self._told.discard("idle")
        else:
            self.announce("idle", left_s)

    def announce(self, why: str, in_s: float) -> None:
        """Tell the client that the end comes; once for each reason and connection."""
        if self.connection is not None and why not in self._told:
            self._told.add(why)
            self.connection.say({"type": "ending", "reason": why, "in_s": round(in_s, 1)})

    async def chunks(self) -> AsyncIterator[npt.NDArray[np.float32]]:
        """Yield frames as they come, float32 ``[1, N]``; waits while the client is away."""
        while self.ended is None:
            connection = self.connection
            waited_on = self._moved if connection is None else connection.news
            waited_on.clear()
            frame = None
            if connection is not None:
                try:
                    frame = connection.take()
                except LaneError:
                    connection.edge.link.close()  # the source sees it end, and goes on without
                    self.detach()
            if frame is not None:
                self._heard_s = self._now_s()
                self.delivered_ns = frame.delivered_ns
                self.num_frames += 1
                self.counts.frames += 1
                yield frame.pcm_N[None]
                self._check_limit()
            elif connection is not None and connection.num_taken == self._end_rows:
                self.end("done")
            elif self.ended is None and connection is self.connection:
                if connection is not None and connection.closed:
                    self.detach()
                    continue
                await waited_on.wait()

    async def send(self, answer: Down) -> None:
        """Send an answer to the client.

        What finds no room, or no client, is dropped and counted; lossless, it is waited for.
        """
        while not self.is_over:
            connection = self.connection
            waited_on = self._moved if connection is None else connection.news
            waited_on.clear()
            if connection is not None and connection.room():
                connection.put(answer)
                return
            comes_back = connection is not None or self.ended is None
            if not self.lossless or not comes_back or self.ended == "shutdown":
                break
            await waited_on.wait()
        self.num_skipped += 1
        self.counts.skipped += 1

    def finish(self, *, complete: bool) -> None:
        """The conversation is over and has left its slot: say good-bye."""
        if self.ended is None:
            self.ended = "done" if complete else "failed"
        close = _CLOSES.get(self.ended, Close.INTERNAL)
        if complete or close is not Close.DONE:
            self.close(close, self.ended if close is not Close.INTERNAL else "internal")
        else:
            self.close(Close.INTERNAL, "internal")

    def close(self, close: Close, reason: str, error: str | None = None) -> None:
        """Close its connection and leave; later calls do nothing."""
        if self.is_over:
            return
        self.is_over = True
        self.ended = self.ended or "failed"
        if close is Close.INTERNAL and error is None:
            error = "internal: the conversation failed; the server's log says why"
        elif close is Close.GOING_AWAY and error is None:
            error = "shutdown: the server stops"
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.end(close, reason, error)
        self._moved.set()
        self._on_over(self)

    def report(self) -> Mapping[str, Any]:
        """How it went; called when the session has ended."""
        if not self.has_sink:  # nobody else says good-bye
            asyncio.get_running_loop().call_soon(lambda: self.finish(complete=False))
        return {
            "ended": self.ended,
            "frames": self.num_frames,
            "skipped_answers": self.num_skipped,
            "resumed": self.num_resumed,
        }

    def _check_limit(self) -> None:
        if self.num_frames >= self._max_frames:
            self.end("time_limit")
        elif self.left_s <= ENDING_S < self.max_s:
            self.announce("time_limit", self.left_s)

    def _wake(self) -> None:
        self._moved.set()
        if self.connection is not None:
            self.connection.news.set()
