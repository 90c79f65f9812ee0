"""An edge process in this process, with an engine that is none at the other end of its link."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moshi_pipe.server.edge_process import serve
from moshi_pipe.server.lane import Down, Lanes
from moshi_pipe.server.link import Link, Put, Took, open_link
from moshi_pipe.server.options import ServerOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from moshi_pipe.server.lane import DownWriter, UpReader

N = 1920
WITHIN_S = 20.0


def facts(*, lossless: bool = False) -> dict[str, Any]:
    """What an engine says of itself."""
    return {
        "formats": ["ogg_opus", "pcm_s16le", "pcm_f32le"],
        "sample_rate": 24_000,
        "frame_samples": N,
        "lossless": lossless,
        "limits": {"max_s": 600.0, "message_bytes": 65_536, "messages_per_s": 200},
        "settings": {
            "audio_temperature": {"min": 0.0, "max": 2.0, "default": 0.8},
            "text_temperature": {"min": 0.0, "max": 2.0, "default": 0.7},
            "audio_topk": {"min": 1, "max": 250, "default": 250},
            "text_topk": {"min": 1, "max": 250, "default": 25},
            "repetition_penalty": {"min": 1.0, "max": 2.0, "default": 1.0},
            "max_s": {"min": 1.0, "max": 600.0, "default": 600.0},
            "recording": {"offered": True},
        },
    }


@dataclass
class Seated:
    """A connection that the engine knows."""

    conn: int
    request: dict[str, Any]
    lane: int | None = None
    up: UpReader | None = None
    down: DownWriter | None = None
    put: int = 0
    taken_down: int = 0
    heard: list[npt.NDArray[np.float32]] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    gone: dict[str, Any] | None = None


class FakeEngine:
    """Seats whoever comes, and answers every frame with itself, negated.

    Attributes:
        seats: Whether to seat; else the test does.
        takes: Whether to take frames.
        answers: Whether to answer those that it takes.
    """

    def __init__(self, link: Link, lanes: Lanes, *, lossless: bool = False) -> None:
        self.link = link
        self.lanes = lanes
        self.lossless = lossless
        self.seats = True
        self.takes = True
        self.answers = True
        self.seated: dict[int, Seated] = {}
        self.told: list[dict[str, Any]] = []
        self.news = asyncio.Event()

    def ready(self) -> None:
        """Say that conversations can begin."""
        self.link.send({"op": "ready", "facts": facts(lossless=self.lossless)})

    async def run(self) -> None:
        """Take what the edge says."""
        async for message in self.link.messages():
            if isinstance(message, Put):
                one = self._of_lane(message.lane)
                one.put = message.rows
                self._take(one)
            elif isinstance(message, Took):
                self._of_lane(message.lane).taken_down = message.rows
            else:
                self._hear(message)
            self.news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is true that messages make so."""
        while not true():
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), WITHIN_S)

    async def client(self, number: int = 0) -> Seated:
        """The connection that came so and so, once it has come."""
        await self.until(lambda: len(self.seated) > number)
        return list(self.seated.values())[number]

    def seat(self, one: Seated) -> None:
        """Seat a connection."""
        taken = {other.lane for other in self.seated.values() if other.gone is None}
        one.lane = next(lane for lane in range(self.lanes.count) if lane not in taken)
        one.up, one.down = self.lanes.up_reader(one.lane), self.lanes.down_writer(one.lane)
        session = {"type": "session", "session": f"ws-{one.conn}"}
        self.link.send({"op": "seat", "conn": one.conn, "lane": one.lane, "session": session})

    def answer(self, one: Seated, row: Down) -> None:
        """Put an answer into the lane of a connection."""
        assert one.down is not None
        assert one.lane is not None
        self.link.put(one.lane, one.down.put(row))

    def room(self, one: Seated) -> int:
        """Answers that its lane takes now."""
        assert one.down is not None
        return one.down.room(one.taken_down)

    def end(self, one: Seated, close: int = 1000, reason: str = "done", error: str = "") -> None:
        """End a connection after what it was answered."""
        rows = 0 if one.down is None else one.down.num_put
        self.link.send(
            {
                "op": "end",
                "conn": one.conn,
                "rows": rows,
                "close": close,
                "reason": reason,
                "error": error or None,
            }
        )

    def take(self, one: Seated) -> None:
        """Take what waits, from now on."""
        self.takes = True
        self._take(one)

    def _take(self, one: Seated) -> None:
        if not self.takes or one.up is None or one.lane is None:
            return
        before = one.up.num_taken
        while (frame := one.up.take(one.put)) is not None:
            one.heard.append(frame.pcm_N)
            if self.answers and self.room(one):
                number = len(one.heard) - 1
                self.answer(one, Down(number, frame.delivered_ns, -frame.pcm_N, f"▁{number}"))
        if one.up.num_taken > before:
            self.link.took(one.lane, one.up.num_taken)
        self._end_turn(one)

    def _hear(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "open":
            one = self.seated[message["conn"]] = Seated(message["conn"], message["request"])
            if self.seats:
                self.seat(one)
        elif op == "ask":
            value = "moshi_up 1\n" if message["what"] == "metrics" else {"server": "fake"}
            self.link.send({"op": "answer", "id": message["id"], "value": value})
        elif op in ("end_turn", "gone"):
            one = self.seated[message["conn"]]
            one.told.append(message)
            if op == "gone":
                one.gone = message
            self._end_turn(one)
        self.told.append(message)

    def _end_turn(self, one: Seated) -> None:
        ends = [told for told in one.told if told["op"] == "end_turn"]
        if ends and one.gone is None and len(one.heard) == ends[0]["rows"]:
            self.end(one)

    def _of_lane(self, lane: int) -> Seated:
        return next(one for one in self.seated.values() if one.lane == lane and one.gone is None)

    def counted(self, name: str) -> int:
        """How often an event was told of."""
        return sum(one["counts"].get(name, 0) for one in self.told if one["op"] == "counts")


@dataclass
class Edge:
    """An edge process that serves.

    Attributes:
        port: Where.
        engine: The other end of its link.
        serving: Its end, with the code it ends with.
    """

    port: int
    engine: FakeEngine
    serving: asyncio.Task[int]

    @property
    def url(self) -> str:
        """Of conversations."""
        return f"ws://127.0.0.1:{self.port}/api/chat"


@asynccontextmanager
async def edge(
    options: ServerOptions | None = None, *, lossless: bool = False, num_lanes: int = 8
) -> AsyncIterator[Edge]:
    """An edge process that serves, with an engine that is ready."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    mine, its = socket.socketpair()
    memory = bytearray(Lanes.size(num_lanes, N))
    link, other = await open_link(mine), await open_link(its)
    engine = FakeEngine(link, Lanes(memory, num_lanes, N), lossless=lossless)
    port = listening.getsockname()[1]
    serving = asyncio.ensure_future(
        serve(0, options or ServerOptions(), [listening], other, Lanes(memory, num_lanes, N))
    )
    running = asyncio.ensure_future(engine.run())
    engine.ready()
    try:
        await engine.until(lambda: any(one["op"] == "hello" for one in engine.told))
        yield Edge(port, engine, serving)
    finally:
        engine.link.send({"op": "stop"})
        try:
            await asyncio.wait_for(serving, WITHIN_S)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            link.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on an event loop, in bounded time, and leave no task behind."""

    async def bounded() -> None:
        await asyncio.wait_for(test(), WITHIN_S)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks are left: {left}"

    asyncio.run(bounded())


def noise(num_frames: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Frames of noise, float32 ``[frames, N]``."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.5, 0.5, (num_frames, N)).astype(np.float32)
