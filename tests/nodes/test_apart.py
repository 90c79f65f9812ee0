"""A sink on its own thread: order, bounds, errors, and nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.nodes import MemorySink, session_info

from moshi_pipe.errors import OutputError
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.apart import ApartSink

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from moshi_pipe.graph.node import SessionInfo

INFO = session_info("s", Path())


def packet(frame: int) -> Packet:
    return Packet("audio", frame, 0, np.zeros((1, 8), np.float32))


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 10))


class Stuck(MemorySink):
    """A disk that takes nothing until it is freed; every call must come from one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.threads: set[int] = set()

    async def open(self, session: SessionInfo) -> None:
        self.threads.add(threading.get_ident())

    async def write(self, packet: Packet) -> None:
        self.free.wait()
        self.threads.add(threading.get_ident())
        await super().write(packet)

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        self.threads.add(threading.get_ident())
        return await super().close(end)


def test_nobody_waits_and_what_does_not_fit_is_counted() -> None:
    async def go() -> tuple[Stuck, Mapping[str, Any]]:
        stuck = Stuck()
        sink = ApartSink(stuck, max_waiting=5)
        await sink.open(INFO)
        for frame in range(8):
            await sink.write(packet(frame))
        assert stuck.packets == []
        stuck.free.set()
        return stuck, await sink.close(SessionEnd(8))

    stuck, report = run(go())

    assert [p.frame for p in stuck.packets] == [0, 1, 2, 3, 4]
    assert stuck.closed == (8, True)
    assert report == {"packets": 5, "dropped_packets": 3}
    assert len(stuck.threads) == 1
    assert threading.get_ident() not in stuck.threads


def test_an_error_is_raised_by_the_next_call_and_the_sink_is_closed() -> None:
    failing = MemorySink(fail_at=1)

    async def go() -> None:
        sink = ApartSink(failing)
        await sink.open(INFO)
        for frame in range(3):
            await sink.write(packet(frame))
        await sink.close(SessionEnd(3))

    with pytest.raises(OutputError, match="the disk is full"):
        run(go())

    assert [p.frame for p in failing.packets] == [0]
    assert failing.closed == (3, True)


def test_it_says_what_the_other_sink_says() -> None:
    sink = ApartSink(MemorySink(takes=("text",)))

    assert sink.takes == ("text",)
    assert sink.outputs(INFO) == []
    run(sink.open(INFO))
    run(sink.close(SessionEnd(0)))
