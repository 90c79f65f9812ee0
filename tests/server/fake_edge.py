"""An edge process that is none: the other side of a link, and a host without an engine."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.engine.statistics import EngineStatistics
from moshi_pipe.graph.host import RunFacts
from moshi_pipe.graph.node import SessionSettings
from moshi_pipe.server.lane import Down, Lanes, Up
from moshi_pipe.server.link import Link, Put, Took, open_link
from moshi_pipe.server.process import EdgeProcess

if TYPE_CHECKING:
    from moshi_pipe.server.lane import DownReader, UpWriter

N = 1920


class FakeHost:
    """An engine of so many slots that does nothing."""

    def __init__(self, slots: int = 2, late: str = "drop_oldest") -> None:
        self.usable_slots = slots
        self.can_park = True
        self.done = EngineStatistics()
        self.cancelled: list[str] = []
        self.parked: list[str] = []
        self.facts = RunFacts(
            sample_rate=24_000,
            frame_samples=N,
            frame_s=0.08,
            late=late,
            slots=slots,
            model="tiny",
            model_type="moshi",
            random=True,
            backend="torch",
            device="cpu",
            dtype="float32",
            quant=None,
            settings=SessionSettings(),
            max_top_k=250,
            max_text_top_k=250,
        )

    def statistics(self) -> dict[str, Any]:
        return {**self.done.to_dict(), "late": 0}

    async def park(self, session_id: str) -> int:
        self.parked.append(session_id)
        return 10

    async def unpark(self, session_id: str) -> None:
        self.parked.remove(session_id)

    def cancel(self, session_id: str) -> None:
        self.cancelled.append(session_id)


class FakeEdge:
    """Speaks the link's protocol in this process; keeps what it is told, by connection."""

    def __init__(self, link: Link, lanes: Lanes) -> None:
        self.link = link
        self.lanes = lanes
        self.told: list[dict[str, Any]] = []
        self.took: dict[int, int] = {}
        self.news = asyncio.Event()
        self._up: dict[int, UpWriter] = {}
        self._down: dict[int, DownReader] = {}
        self._lane: dict[int, int] = {}
        self._rows: dict[int, int] = {}

    async def run(self) -> None:
        async for message in self.link.messages():
            if isinstance(message, Put):
                self._rows[message.lane] = message.rows
            elif isinstance(message, Took):
                self.took[message.lane] = message.rows
            else:
                self.told.append(message)
                if message["op"] == "seat":
                    conn, lane = message["conn"], message["lane"]
                    self._lane[conn], self._rows[lane] = lane, 0
                    self._up[conn] = self.lanes.up_writer(lane)
                    self._down[conn] = self.lanes.down_reader(lane)
            self.news.set()

    def open(self, conn: int, **request: Any) -> None:
        self.link.send({"op": "open", "conn": conn, "request": request})

    def gone(self, conn: int, *, lost: bool = False) -> None:
        self.link.send({"op": "gone", "conn": conn, "lost": lost, "why": "test"})

    def talk(self, conn: int, value: float, delivered_ns: int = 1) -> int:
        rows = self._up[conn].put(Up(delivered_ns, np.full(N, value, np.float32)))
        self.link.put(self._lane[conn], rows)
        return rows

    def hear(self, conn: int) -> Down | None:
        lane = self._lane[conn]
        answer = self._down[conn].take(self._rows[lane])
        if answer is not None:
            self.link.took(lane, self._down[conn].num_taken)
        return answer

    async def next_answer(self, conn: int) -> Down:
        while (answer := self.hear(conn)) is None:
            self.news.clear()
            await self.news.wait()
        return answer

    async def told_of(self, op: str, conn: int | None = None) -> dict[str, Any]:
        """The first message of this kind that was not asked for yet."""
        while True:
            for message in self.told:
                if message["op"] == op and conn in (None, message.get("conn")):
                    self.told.remove(message)
                    return message
            self.news.clear()
            await self.news.wait()


async def fake_edge(number: int = 0, num_lanes: int = 4) -> tuple[EdgeProcess, FakeEdge]:
    mine, its = socket.socketpair()
    lanes = Lanes(bytearray(Lanes.size(num_lanes, N)), num_lanes, N)
    process = EdgeProcess(number, await open_link(mine), lanes)
    return process, FakeEdge(await open_link(its), lanes)
