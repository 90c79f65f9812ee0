"""What an edge process knows of the engine's: its readiness, its answers, who is whose client."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.server.link import Put, Took
from moshi_pipe.server.messages import Close
from moshi_pipe.server.outbox import End

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moshi_pipe.server.conversation import Conversation
    from moshi_pipe.server.lane import Lanes
    from moshi_pipe.server.link import Link

ASK_S: Final = 2.0
"""Seconds that the engine has to answer a question."""

KEEP_S: Final = 1.0
"""Seconds for which an answer is taken as still true."""

_MAX_NAMES: Final = 200  # of counts; they are ours, so there are few


class NoAnswer(Exception):
    """The engine's process does not answer."""


class Switchboard:
    """Connects conversations with the engine's process.

    Args:
        link: To the engine's process.
        lanes: That it shares.
        gauges: What there is now, told with the counts.

    Attributes:
        facts: Of the engine, once it is ready; None before, and when it was lost.
        why_not: Why nobody can come in; None when they can.
        stopped: Set once the engine's process says that the end has come.
    """

    def __init__(
        self, link: Link, lanes: Lanes, gauges: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        self.link = link
        self.facts: dict[str, Any] | None = None
        self.why_not: str | None = "the model is being loaded"
        self.stopped = False
        self._lanes = lanes
        self._gauges = gauges
        self._numbers = itertools.count(1)
        self._by_conn: dict[int, Conversation] = {}
        self._by_lane: dict[int, Conversation] = {}
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._asking: dict[str, asyncio.Future[Any]] = {}
        self._answers: dict[str, tuple[float, Any]] = {}
        self._counts: Counter[str] = Counter()
        self._telling: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._by_conn)

    def number(self) -> int:
        """A number for a connection, never given twice."""
        return next(self._numbers)

    def enter(self, conversation: Conversation) -> None:
        """Connect a conversation."""
        self._by_conn[conversation.conn] = conversation
        self._tell_soon()

    def leave(self, conversation: Conversation) -> None:
        """Forget a conversation that has told the engine of its end."""
        self._by_conn.pop(conversation.conn, None)
        lane = conversation.lane
        if lane is not None and self._by_lane.get(lane) is conversation:
            del self._by_lane[lane]
        self._tell_soon()

    def count(self, name: str) -> None:
        """Count an event; the engine's process is told once a second."""
        if name in self._counts or len(self._counts) < _MAX_NAMES:
            self._counts[name] += 1
        self._tell_soon()

    def log(self, text: str) -> None:
        """Log a line in the engine's process."""
        self.link.send({"op": "log", "level": "warning", "text": text})

    async def ask(self, what: str) -> Any:
        """Ask the engine's process: ``info`` or ``metrics``; the answer is kept for a moment.

        Raises:
            NoAnswer: There is none in time.
        """
        kept = self._answers.get(what)
        if kept is not None and time.monotonic() - kept[0] < KEEP_S:
            return kept[1]
        asking = self._asking.get(what)
        if asking is None:
            asking = self._asking[what] = asyncio.ensure_future(self._ask(what))
            asking.add_done_callback(lambda _: self._asking.pop(what, None))
        try:
            return await asyncio.shield(asking)
        except asyncio.TimeoutError as error:
            raise NoAnswer("the engine does not answer") from error

    async def _ask(self, what: str) -> Any:
        number = self.number()
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        self.link.send({"op": "ask", "id": number, "what": what})
        try:
            value = await asyncio.wait_for(answer, ASK_S)
        finally:
            del self._questions[number]
        self._answers[what] = (time.monotonic(), value)
        return value

    async def listen(self) -> None:
        """Hand on what the engine's process says, until it says ``stop`` or its link closes.

        Raises:
            LinkError: It says what is no message.
            LaneError: It disagrees about a lane.
        """
        async for message in self.link.messages():
            if isinstance(message, Put):
                if (conversation := self._by_lane.get(message.lane)) is not None:
                    conversation.put(message.rows)
            elif isinstance(message, Took):
                if (conversation := self._by_lane.get(message.lane)) is not None:
                    conversation.took(message.rows)
            else:
                self._understand(message)
            if self.stopped:
                return

    def end_all(self, close: Close, reason: str, error: str) -> None:
        """End every conversation at once."""
        for conversation in list(self._by_conn.values()):
            conversation.end(0, End(close, reason, error), lost=True)

    def close(self) -> None:
        """Tell what is left to tell, and nothing any more."""
        if self._telling is not None:
            self._telling.cancel()
            self._tell()
        for asking in list(self._asking.values()):
            asking.cancel()

    def _understand(self, message: dict[str, Any]) -> None:
        op = message.get("op")
        if op == "ready":
            self.facts, self.why_not = dict(message["facts"]), None
        elif op == "not_ready":
            self.facts, self.why_not = None, str(message["why"])
        elif op == "drain":
            self.why_not = "the server stops"
        elif op == "stop":
            self.stopped = True
        elif op == "answer":
            answer = self._questions.get(message["id"])
            if answer is not None and not answer.done():
                answer.set_result(message["value"])
        elif (conversation := self._by_conn.get(message.get("conn", 0))) is not None:
            self._pass_on(conversation, message)

    def _pass_on(self, conversation: Conversation, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "queue":
            conversation.queued(message["position"], message["waiting"])
        elif op == "seat":
            lane = message["lane"]
            self._by_lane[lane] = conversation
            up, down = self._lanes.up_writer(lane), self._lanes.down_reader(lane)
            conversation.seat(lane, up, down, message["session"])
        elif op == "say":
            conversation.say(message["metadata"])
        elif op in ("end", "refuse"):
            end = End(Close(message["close"]), message["reason"], message.get("error"))
            conversation.end(message.get("rows", 0), end)

    def _tell_soon(self) -> None:
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(1.0, self._tell)

    def _tell(self) -> None:
        self._telling = None
        if self._counts:
            self.link.send({"op": "counts", "counts": dict(self._counts)})
            self._counts.clear()
        self.link.send({"op": "gauges", "gauges": dict(self._gauges())})
