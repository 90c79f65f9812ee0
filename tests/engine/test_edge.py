"""The edge: what a sink, a source or the engine does wrong ends what it must and no more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.nodes import AUDIO, FRAME, Accumulate, ArrayInput, ListSource, MemorySink, session_info

from moshi_pipe.engine.edge import Edge
from moshi_pipe.engine.engine import Engine, TickOptions
from moshi_pipe.engine.exchange import ExchangeOptions, Observer, SessionPlan, SessionResult
from moshi_pipe.errors import BackendError, InputError
from moshi_pipe.graph.node import SessionEnd, SessionInput, SessionSettings, Source
from moshi_pipe.graph.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from moshi_pipe.graph.node import BatchedNode, SessionInfo, Tick, Value
    from moshi_pipe.graph.packet import Packet

ECHO = Schedule("heard", ("node",), {"node": {"audio": "heard"}}, {"audio": "node.audio"})


class Log(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.results: dict[str, SessionResult] = {}

    def on_open(self, item: SessionInput, plan: SessionPlan) -> None:
        self.opened.append(item.id)

    def on_close(self, result: SessionResult) -> None:
        self.results[result.id] = result


class Clumsy(MemorySink):
    """Raises what no sink should, in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def stumble(self, where: str) -> None:
        if where == self.where:
            raise ValueError(f"a mistake in {where}")

    async def open(self, session: SessionInfo) -> None:
        self.stumble("open")
        await super().open(session)

    async def write(self, packet: Packet) -> None:
        self.stumble("write")
        await super().write(packet)

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        self.stumble("close")
        return await super().close(end)


def items(count: int, num_frames: int = 4) -> list[ArrayInput]:
    return [ArrayInput(f"s{i}", np.full(num_frames * FRAME, 0.1)) for i in range(count)]


def run(
    source: Source,
    make_sink: Callable[[str], MemorySink],
    *,
    node: BatchedNode | None = None,
    num_slots: int = 4,
    before: Callable[[Edge], None] | None = None,
) -> Log:
    """Run everything within ten seconds; whatever the edge raises comes after the log is kept."""
    log = Log()
    used = node or Accumulate()
    options = TickOptions(num_slots=num_slots)
    engine = Engine(lambda: {"node": used}, ECHO, input_format=AUDIO, options=options)

    def plan(item: SessionInput) -> SessionPlan:
        sinks = [make_sink(item.id), MemorySink()]
        return SessionPlan(session_info(item.id, Path()), SessionSettings(seed=0), sinks)

    async def go() -> None:
        edge = Edge(
            engine,
            ExchangeOptions("heard", AUDIO, {"audio": AUDIO}),
            plan=plan,
            observer=log,
        )
        engine.start()
        if before is not None:
            before(edge)
        await edge.run(source)

    try:
        asyncio.run(asyncio.wait_for(go(), 10))
    except (BackendError, InputError) as error:
        log.error = error  # type: ignore[attr-defined]
    finally:
        engine.stop()
    return log


@pytest.mark.parametrize("where", ["open", "write", "close"])
def test_a_sink_that_raises_anything_ends_its_session_alone(where: str) -> None:
    log = run(ListSource(items(6)), lambda name: Clumsy(where if name == "s2" else ""))

    assert [name for name, result in log.results.items() if result.failure] == ["s2"]
    broken = log.results["s2"]
    assert f"ValueError: a mistake in {where}" in str(broken.failure)
    assert not broken.complete
    assert all(result.complete for name, result in log.results.items() if name != "s2")
    assert sorted(log.opened) == sorted(log.results)


def test_the_report_of_a_sink_stays_in_its_place_when_another_fails() -> None:
    log = run(ListSource(items(1)), lambda _: Clumsy("close"))

    assert log.results["s0"].sinks == [{}, {"packets": 4}]


def test_sessions_end_with_the_engine_even_those_that_come_later() -> None:
    class Fragile(Accumulate):
        def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
            if len(self.ticks) == 2:
                raise ZeroDivisionError("no such tick")
            return super().step(inputs, tick)

    log = run(ListSource(items(9)), lambda _: MemorySink(), node=Fragile(), num_slots=1)

    assert "ZeroDivisionError" in str(log.error)  # type: ignore[attr-defined]
    assert log.results
    assert not any(result.complete for result in log.results.values())


def test_a_source_that_breaks_ends_after_the_sessions_that_it_gave() -> None:
    class Breaking(ListSource):
        async def sessions(self) -> AsyncIterator[SessionInput]:
            async for item in super().sessions():
                yield item
            raise KeyError("the next one")

    log = run(Breaking(items(3)), lambda _: MemorySink())

    assert "the source failed" in str(log.error)  # type: ignore[attr-defined]
    assert [result.complete for result in log.results.values()] == [True] * 3


def test_a_stop_reaches_a_session_whose_sinks_are_opening() -> None:
    edges: list[Edge] = []

    class Stopping(MemorySink):
        async def open(self, session: SessionInfo) -> None:
            await super().open(session)
            edges[0].stop()

    log = run(ListSource(items(5)), lambda _: Stopping(), before=edges.append)

    assert list(log.results) == ["s0"]
    assert not log.results["s0"].complete
    assert log.results["s0"].failure is None
