"""Live ticks on a manual clock: models that are too slow, an hour of it, late frames, counters."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.nodes import Accumulate, ArrayInput, ListSource, MemorySink, session_info

from moshi_pipe.engine.clock import ManualClock
from moshi_pipe.engine.edge import Edge
from moshi_pipe.engine.engine import Engine, TickOptions
from moshi_pipe.engine.exchange import ExchangeOptions, SessionPlan, SessionResult
from moshi_pipe.engine.session import TIMES, make_session
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionSettings
from moshi_pipe.graph.schedule import Schedule

MS = 1_000_000
FRAME_NS = 80 * MS
AUDIO = Audio(sample_rate=100, frame_size=8)
ECHO = Schedule(
    order=("node",),
    input="heard",
    inputs={"node": {"audio": "heard"}},
    outputs={"audio": "node.audio"},
)


class World:
    """A device that delivers a frame every 80 ms, whatever the engine does in the meantime."""

    def __init__(self, policy: str, inbox_frames: int, cost_ms: float) -> None:
        self.clock = ManualClock()
        self.session = make_session(
            "s",
            SessionSettings(),
            {"heard": AUDIO},
            {"audio": AUDIO},
            inbox_frames=inbox_frames,
            outbox_frames=4,
            inbox_policy=policy,
        )
        self.cost_ns = round(cost_ms * MS)
        self.delivered = 0
        self.taken: list[int] = []
        self.late: list[tuple[str, int, int]] = []
        self.keep = True
        self.engine = Engine(
            lambda: {"node": Slow(self)},
            ECHO,
            input_format=AUDIO,
            options=TickOptions(num_slots=1, live=True),
            clock=self.clock,
            on_late=lambda *what: self.late.append(what) if self.keep else None,
        )
        self.engine.open()
        self.engine.submit(self.session)

    def pass_time(self, duration_ns: int) -> None:
        """Move the clock; frames that are due on the way are delivered when they are due."""
        until_ns = self.clock.now_ns() + duration_ns
        while (due_ns := (self.delivered + 1) * FRAME_NS) <= until_ns:
            self.clock.advance(due_ns - self.clock.now_ns())
            frame = np.full((1, 8), self.delivered, np.float32)
            self.session.inbox.put(self.delivered, {"heard": frame, TIMES: due_ns})
            self.delivered += 1
        self.clock.advance(until_ns - self.clock.now_ns())

    def run(self, frames: int) -> None:
        """Until so many frames were delivered."""
        while self.delivered < frames:
            if not self.engine.tick():
                self.pass_time((self.delivered + 1) * FRAME_NS - self.clock.now_ns())
            while (taken := self.session.outbox.take()) is not None:
                if self.keep:
                    self.taken.append(taken[0])


class Slow(Accumulate):
    """Takes its time."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def step(self, inputs: Any, tick: Any) -> Any:
        """Let the world go on."""
        self._world.pass_time(self._world.cost_ns)
        self.ticks.clear()
        return super().step(inputs, tick)


@dataclass
class Expected:
    """What a queue in front of a server with a fixed cost does, worked out on its own."""

    taken: list[int]
    dropped: int
    max_lag_ns: int


def expect(policy: str, capacity: int, cost_ns: int, frames: int) -> Expected:
    """Serve from a bounded queue; the clock jumps from delivery to delivery."""
    queue: deque[int] = deque()
    result = Expected([], 0, 0)
    free_ns = 0

    def serve(until_ns: int) -> None:
        nonlocal free_ns
        while queue:
            start_ns = max(free_ns, (queue[0] + 1) * FRAME_NS)
            if start_ns >= until_ns:
                return
            frame = queue.popleft()
            result.taken.append(frame)
            result.max_lag_ns = max(result.max_lag_ns, start_ns - (frame + 1) * FRAME_NS)
            free_ns = start_ns + cost_ns

    for frame in range(frames):
        serve((frame + 1) * FRAME_NS)
        if len(queue) == capacity:
            lost = len(queue) if policy == "drop_all" else 1
            result.dropped += lost
            for _ in range(lost):
                queue.popleft()
        queue.append(frame)
    return result


@pytest.mark.parametrize("cost_ms", [50, 90, 200])
@pytest.mark.parametrize("policy", ["drop_oldest", "drop_all"])
def test_lag_stays_bounded_and_every_frame_is_counted(policy: str, cost_ms: float) -> None:
    world = World(policy, inbox_frames=5, cost_ms=cost_ms)
    world.run(1000)

    want = expect(policy, 5, world.cost_ns, world.delivered)
    counters = world.session.inbox.counters
    assert world.taken == want.taken[: len(world.taken)]
    assert len(want.taken) - len(world.taken) <= 1  # the last one may still be at work
    assert counters.dropped == want.dropped
    assert counters.put == world.delivered
    assert counters.put == counters.taken + counters.dropped + len(world.session.inbox)
    assert world.engine.lateness.lag.max_ns == want.max_lag_ns
    assert want.max_lag_ns <= 5 * FRAME_NS
    assert bool(want.dropped) == (cost_ms > 80)


@pytest.mark.parametrize(
    ("cost_ms", "cause", "in_time"), [(50, "steady", True), (90, "steady", False)]
)
def test_the_verdict_of_a_steady_cost(cost_ms: float, cause: str, in_time: bool) -> None:
    world = World("drop_oldest", inbox_frames=5, cost_ms=cost_ms)
    world.run(500)

    verdict = world.engine.lateness.verdict(dropped=world.session.inbox.counters.dropped)

    assert (verdict.cause, verdict.in_time) == (cause, in_time)
    assert f"{cost_ms}" in verdict.text


def test_late_frames_are_told_one_by_one() -> None:
    world = World("drop_oldest", inbox_frames=5, cost_ms=90)
    world.run(20)

    told = [frame for _, frame, _ in world.late]
    assert told == world.taken
    assert world.late[0] == ("s", 0, 10 * MS)
    assert world.engine.lateness.num_late == len(world.late)


def test_a_frame_knows_its_times() -> None:
    world = World("drop_oldest", inbox_frames=5, cost_ms=30)
    world.pass_time(3 * FRAME_NS)
    world.engine.tick()

    taken = world.session.outbox.take()

    assert taken is not None
    assert taken[1][TIMES].tolist() == [80 * MS, 240 * MS, 270 * MS, 30 * MS]
    times = world.engine.lateness.recent[-1]
    assert times.nodes == ((240 * MS, 270 * MS),)
    assert times.frames == (("s", 0, 80 * MS),)


@pytest.mark.heavy
def test_an_hour_of_a_model_that_is_too_slow_is_flat() -> None:
    world = World("drop_oldest", inbox_frames=5, cost_ms=90)
    world.keep = False
    world.run(3000)
    gc.collect()
    tracemalloc.start()
    world.run(4000)
    before = tracemalloc.get_traced_memory()[0]
    early = world.engine.lateness.lag.max_ns
    world.run(45_000)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert world.engine.lateness.lag.max_ns == early <= 5 * FRAME_NS
    assert after - before < 50_000
    assert world.session.next_frame == pytest.approx(45_000, abs=10)


def overfill(policy: str, frames: int) -> tuple[SessionResult, MemorySink]:
    """All frames are there before the engine ticks for the first time; three may wait."""
    sink = MemorySink()
    options = TickOptions(num_slots=1, live=True)
    engine = Engine(lambda: {"node": Accumulate()}, ECHO, input_format=AUDIO, options=options)
    given = asyncio.Event()

    class All(ArrayInput):
        async def chunks(self) -> Any:
            try:
                async for chunk in super().chunks():
                    yield chunk
            finally:  # all was taken, or no more is wanted
                given.set()

    async def go() -> SessionResult:
        edge = Edge(
            engine,
            ExchangeOptions(
                "heard", AUDIO, {"audio": AUDIO}, inbox_frames=3, inbox_policy=policy, live=True
            ),
            plan=lambda item: SessionPlan(session_info(item.id, Path()), SessionSettings(), [sink]),
        )
        source = ListSource([All("a", np.ones(8 * frames, np.float32))])
        running = asyncio.create_task(edge.run(source))
        await given.wait()
        engine.start()
        return (await running)[0]

    try:
        return asyncio.run(asyncio.wait_for(go(), 10)), sink
    finally:
        engine.stop()


def test_dropped_frames_leave_their_place_in_the_results() -> None:
    result, sink = overfill("drop_oldest", 10)

    assert [packet.frame for packet in sink.packets] == [7, 8, 9]
    assert (result.num_frames, result.num_dropped) == (3, 7)
    assert result.audio_s == pytest.approx(0.8)
    assert sink.closed == (10, True)


def test_skip_to_live_keeps_only_the_newest() -> None:
    result, sink = overfill("drop_all", 10)

    assert [packet.frame for packet in sink.packets] == [9]
    assert (result.num_frames, result.num_dropped) == (1, 9)


def test_fail_ends_the_session_with_the_reason() -> None:
    result, sink = overfill("close", 10)

    assert not result.complete
    assert str(result.failure) == (
        "session a was ended: the models fell behind\n"
        "  got:    3 frames waiting, the most that engine.max_lag_ms allows\n"
        "  do:     use a smaller model or a faster machine, or let it skip: engine.late=drop_oldest"
    )
    assert sink.closed is not None


@pytest.mark.heavy
def test_an_hour_through_the_edge_keeps_its_tasks_and_its_rings() -> None:
    clock = ManualClock()
    node = Accumulate()
    node.ticks = deque(maxlen=1)  # type: ignore[assignment]  # an hour of them is much
    options = TickOptions(num_slots=1, live=True)
    engine = Engine(lambda: {"node": node}, ECHO, input_format=AUDIO, options=options, clock=clock)
    sink = Counting()
    tasks: list[int] = []

    class Device(ArrayInput):
        """Gives a frame when the last one was answered, 80 ms of the clock later."""

        async def chunks(self) -> Any:
            for frame in range(45_000):
                clock.advance(FRAME_NS)
                self.delivered_ns = clock.now_ns()
                yield self.pcm_N[None]
                await sink.answered(frame)
                if frame in (1000, 44_999):
                    tasks.append(len(asyncio.all_tasks()))

    async def go() -> SessionResult:
        edge = Edge(
            engine,
            ExchangeOptions(
                "heard", AUDIO, {"audio": AUDIO}, inbox_frames=5, inbox_policy="drop_oldest"
            ),
            plan=lambda item: SessionPlan(session_info(item.id, Path()), SessionSettings(), [sink]),
            clock=clock,
        )
        engine.start()
        return (await edge.run(ListSource([Device("a", np.ones(8, np.float32))])))[0]

    try:
        result = asyncio.run(asyncio.wait_for(go(), 120))
    finally:
        engine.stop()

    assert (result.num_frames, result.num_dropped) == (45_000, 0)
    assert result.audio_s == pytest.approx(3600)
    assert tasks[0] == tasks[1]
    assert result.counters["inbox"]["longest"] == result.counters["outbox"]["longest"] == 1
    assert engine.lateness.lag.max_ns == 0


class Counting(MemorySink):
    """Keeps nothing but the number of the last frame."""

    def __init__(self) -> None:
        super().__init__()
        self._last = -1
        self._news = asyncio.Event()

    async def write(self, packet: Any) -> None:
        self._last = packet.frame
        self._news.set()

    async def answered(self, frame: int) -> None:
        """Wait for a frame to come through."""
        while self._last < frame:
            self._news.clear()
            await self._news.wait()
