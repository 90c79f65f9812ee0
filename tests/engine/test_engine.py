"""The engine and the edge together, on stub nodes."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nodes import (
    AUDIO,
    FRAME,
    RATE,
    Accumulate,
    ArrayInput,
    ListSource,
    MemorySink,
    Script,
    Speaker,
    session_info,
)

from moshi_pipe.engine.clock import ManualClock
from moshi_pipe.engine.edge import Edge
from moshi_pipe.engine.engine import Engine, TickOptions
from moshi_pipe.engine.exchange import ExchangeOptions, SessionPlan, SessionResult
from moshi_pipe.engine.session import Session, SessionState, make_session
from moshi_pipe.errors import BackendError, InputError, OutputError, SessionError
from moshi_pipe.graph.node import BatchedNode, SessionInput, SessionSettings, Sink
from moshi_pipe.graph.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ECHO = Schedule("heard", ("node",), {"node": {"audio": "heard"}}, {"audio": "node.audio"})
TALK = Schedule("heard", ("node",), {"node": {"audio": "heard"}}, {"text": "node.text"})


def make_engine(node: BatchedNode, *, num_slots: int = 4, schedule: Schedule = ECHO) -> Engine:
    return Engine(
        lambda: {"node": node},
        schedule,
        input_format=AUDIO,
        options=TickOptions(num_slots=num_slots),
    )


def run(
    engine: Engine,
    items: Sequence[SessionInput],
    *,
    make_sink: Callable[[str], Sink] | None = None,
    options: SessionSettings | None = None,
    formats: Mapping[str, Any] | None = None,
) -> tuple[list[SessionResult], dict[str, Any]]:
    sinks: dict[str, Any] = {}

    def plan(item: SessionInput) -> SessionPlan:
        sinks[item.id] = make_sink(item.id) if make_sink else MemorySink()
        chosen = options or SessionSettings(seed=len(sinks))
        return SessionPlan(session_info(item.id, Path()), chosen, [sinks[item.id]])

    async def go() -> list[SessionResult]:
        edge = Edge(
            engine,
            ExchangeOptions("heard", AUDIO, formats or {"audio": AUDIO}),
            plan=plan,
        )
        engine.start()
        return await edge.run(ListSource(items))

    try:
        return asyncio.run(asyncio.wait_for(go(), 30)), sinks
    finally:
        engine.stop()


def recording(index: int, num_frames: int) -> np.ndarray:
    return np.random.default_rng(index).standard_normal(num_frames * FRAME).astype(np.float32) / 9


def alone(pcm: np.ndarray) -> np.ndarray:
    return np.cumsum(pcm.reshape(-1, FRAME), axis=0, dtype=np.float32).ravel()


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    num_slots=st.sampled_from([1, 4, 8]),
    chunk=st.integers(1, 3 * FRAME),
)
def test_every_session_is_what_it_is_alone(lengths: list[int], num_slots: int, chunk: int) -> None:
    pcm = [recording(i, n) for i, n in enumerate(lengths)]
    items = [ArrayInput(f"s{i}", x, chunk=chunk) for i, x in enumerate(pcm)]

    results, sinks = run(make_engine(Accumulate(), num_slots=num_slots), items)

    assert [r.id for r in results] == [f"s{i}" for i in range(len(pcm))]
    for i, x in enumerate(pcm):
        assert np.array_equal(sinks[f"s{i}"].audio(), alone(x))
        assert sinks[f"s{i}"].closed == (lengths[i], True)
        assert results[i].complete


def test_slots_and_ticks_repeat_exactly() -> None:
    """Offline, joins follow from the order of sessions alone, not from timing."""
    lengths = [5, 2, 9, 1, 4, 4, 7, 3, 2, 6]
    histories = []
    for _ in range(3):
        node = Accumulate()
        run(
            make_engine(node),
            [ArrayInput(f"s{i}", recording(i, n)) for i, n in enumerate(lengths)],
        )
        histories.append((node.joined, [tick.active.tolist() for tick in node.ticks]))

    assert histories[0] == histories[1] == histories[2]
    assert all(len(active) == 4 for active in histories[0][1])


def test_a_session_that_is_not_finite_ends_alone() -> None:
    poisoned = recording(1, 6)
    poisoned[3 * FRAME] = 77.0
    recordings = [recording(0, 6), poisoned, recording(2, 6)]
    items = [ArrayInput(n, x) for n, x in zip("abc", recordings, strict=True)]

    results, sinks = run(make_engine(Accumulate(break_on=77.0)), items)

    assert isinstance(results[1].failure, SessionError)
    assert "NaN or infinity in frame 3" in str(results[1].failure)
    assert sinks["b"].closed == (3, False)
    assert np.array_equal(sinks["b"].audio(), alone(poisoned)[: 3 * FRAME])
    assert np.array_equal(sinks["a"].audio(), alone(items[0].pcm_N))
    assert np.array_equal(sinks["c"].audio(), alone(items[2].pcm_N))


def test_a_source_that_breaks_ends_its_own_session_and_keeps_what_came() -> None:
    items = [
        ArrayInput("good", recording(0, 9)),
        ArrayInput("bad", recording(1, 9), fail_after=4),
        ArrayInput("late", recording(2, 9)),
    ]

    results, sinks = run(make_engine(Accumulate(), num_slots=1), items)

    assert isinstance(results[1].failure, InputError)
    assert sinks["bad"].closed is not None
    assert not sinks["bad"].closed[1]
    assert results[0].complete
    assert results[2].complete


def test_a_sink_that_breaks_ends_its_own_session() -> None:
    items = [ArrayInput(n, recording(i, 60)) for i, n in enumerate(["good", "bad", "late"])]

    results, sinks = run(
        make_engine(Accumulate()),
        items,
        make_sink=lambda name: MemorySink(fail_at=2 if name == "bad" else None),
    )

    assert isinstance(results[1].failure, OutputError)
    assert not results[1].complete
    assert [r.complete for r in results] == [True, False, True]
    assert np.array_equal(sinks["late"].audio(), alone(items[2].pcm_N))


class Exploding(Accumulate):
    """Breaks in its third tick."""

    def step(self, inputs: Any, tick: Any) -> Any:
        """Raise."""
        if len(self.ticks) == 2:
            raise RuntimeError("the device fell off the bus")
        return super().step(inputs, tick)


def test_an_exception_in_a_tick_ends_every_session_with_the_reason() -> None:
    engine = make_engine(Exploding())
    sinks: list[MemorySink] = []

    def make_sink(_: str) -> Sink:
        sinks.append(MemorySink())
        return sinks[-1]

    with pytest.raises(BackendError, match="the device fell off the bus"):
        run(engine, [ArrayInput(n, recording(0, 9)) for n in "ab"], make_sink=make_sink)

    assert [sink.closed for sink in sinks] == [(2, False), (2, False)]


def test_after_the_input_the_model_speaks_until_its_last_word() -> None:
    options = SessionSettings(end_on_text=2, max_tail_frames=50)

    results, sinks = run(
        make_engine(Speaker(end_after=3), schedule=TALK),
        [ArrayInput("s", recording(0, 4))],
        make_sink=lambda _: MemorySink(("text",)),
        options=options,
        formats=Speaker(0).outputs,
    )

    assert [p.payload for p in sinks["s"].packets] == [1, 1, 1, 1, 0, 0, 0, 2]
    assert results[0].num_frames == 8
    assert results[0].complete


def test_a_model_that_never_ends_is_cut_at_the_cap() -> None:
    options = SessionSettings(end_on_text=2, max_tail_frames=5)

    results, _ = run(
        make_engine(Speaker(end_after=1000), schedule=TALK),
        [ArrayInput("s", recording(0, 4))],
        make_sink=lambda _: MemorySink(("text",)),
        options=options,
        formats=Speaker(0).outputs,
    )

    assert results[0].num_frames == 9


SAYS = Schedule(
    "heard",
    ("node",),
    {"node": {"audio": "heard"}},
    {"audio": "node.audio", "text": "node.text"},
)


def say(
    tokens: list[int], frames: int, options: SessionSettings
) -> tuple[SessionResult, MemorySink, Script]:
    """A model that writes these tokens, and hears so many frames."""
    node = Script(tokens)
    results, sinks = run(
        make_engine(node, schedule=SAYS),
        [ArrayInput("s", recording(0, frames))],
        make_sink=lambda _: MemorySink(("audio", "text")),
        options=options,
        formats=node.outputs,
    )
    return results[0], sinks["s"], node


def test_after_the_input_a_session_goes_on_until_the_model_is_silent() -> None:
    options = SessionSettings(end_on_padding=3, max_tail_frames=50)
    tokens = [3, 3, 3, 3, 3, 5, 3, 3, 6, 3, 3, 3, 3, 7]

    result, sink, node = say(tokens, 4, options)

    assert [p.payload for p in sink.packets if p.output == "text"] == tokens[:12]
    assert (result.num_frames, result.complete) == (12, True)
    assert node.end_codes == 0  # it hears silence, not that the input ended
    tail = [p.payload for p in sink.packets if p.output == "audio"][4:]
    assert len(tail) == 8
    assert all(not np.any(np.asarray(payload)) for payload in tail)


def test_a_model_that_is_silent_before_the_input_ends_is_still_waited_for() -> None:
    options = SessionSettings(end_on_padding=3, max_tail_frames=50)

    assert say([3], 4, options)[0].num_frames == 7


def test_a_model_that_is_never_silent_is_cut_at_the_cap() -> None:
    options = SessionSettings(end_on_padding=3, max_tail_frames=6)

    assert say([5], 4, options)[0].num_frames == 10


def test_a_last_word_and_silence_may_both_end_a_session() -> None:
    both = SessionSettings(end_on_text=2, end_on_padding=3, max_tail_frames=50)

    assert say([5, 5, 5, 5, 5, 2, 5], 4, both)[0].num_frames == 6
    assert say([5, 5, 5, 5, 5, 3, 3, 3, 5], 4, both)[0].num_frames == 8


def test_an_engine_that_was_told_to_stop_does_not_begin_to_wait() -> None:
    """Its thread may have looked whether to stop just before, and at what is new just after."""
    engine = make_engine(Accumulate())
    engine.stop()

    waiting = threading.Thread(target=engine._wait, args=(engine._version, None), daemon=True)
    waiting.start()
    waiting.join(20)

    assert not waiting.is_alive()


def test_stop_closes_running_sessions_as_incomplete() -> None:
    engine = make_engine(Accumulate(), num_slots=1)
    sinks = [MemorySink(), MemorySink()]

    async def go() -> list[SessionResult]:
        plans = iter(sinks)
        edge = Edge(
            engine,
            ExchangeOptions("heard", AUDIO, {"audio": AUDIO}),
            plan=lambda item: SessionPlan(
                session_info(item.id, Path()), SessionSettings(), [next(plans)]
            ),
        )

        class Stopping(ArrayInput):
            async def chunks(self) -> Any:
                async for chunk in super().chunks():
                    yield chunk
                edge.stop()
                await asyncio.Event().wait()

        engine.start()
        return await edge.run(ListSource([Stopping("a", recording(0, 5))]))

    results = asyncio.run(asyncio.wait_for(go(), 20))
    engine.stop()

    assert [r.complete for r in results] == [False]
    assert results[0].failure is None
    assert sinks[0].closed is not None


def live_session(name: str) -> Session:
    inputs = {"heard": AUDIO}
    outputs = {"audio": AUDIO}
    return make_session(name, SessionSettings(), inputs, outputs, inbox_frames=4, outbox_frames=4)


@pytest.mark.heavy
def test_an_hour_of_live_audio_does_not_grow() -> None:
    """45,000 frames on a manual clock: nothing is kept per frame."""
    clock = ManualClock()
    engine = Engine(
        lambda: {"node": Quiet()},
        ECHO,
        input_format=AUDIO,
        options=TickOptions(num_slots=1, live=True),
        clock=clock,
    )
    engine.open()
    session = live_session("s")
    engine.submit(session)
    frame = np.ones((1, FRAME), dtype=np.float32)

    def minutes(count: int) -> None:
        for _ in range(count * 60 * RATE // FRAME):
            session.inbox.put(0, {"heard": frame})
            clock.advance(80_000_000)
            assert engine.tick()
            session.outbox.take()

    minutes(2)
    gc.collect()
    tracemalloc.start()
    minutes(2)
    before = tracemalloc.get_traced_memory()[0]
    minutes(56)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    engine.close()

    assert session.num_frames == 60 * 60 * RATE // FRAME
    assert after - before < 20_000


class Quiet(Accumulate):
    """Accumulates without remembering ticks."""

    def step(self, inputs: Any, tick: Any) -> Any:
        """Forget the tick at once."""
        out = super().step(inputs, tick)
        self.ticks.clear()
        return out


def test_live_ticks_take_who_is_ready_and_wait_for_nobody() -> None:
    node = Accumulate()
    clock = ManualClock()
    engine = Engine(
        lambda: {"node": node},
        ECHO,
        input_format=AUDIO,
        options=TickOptions(num_slots=8, live=True, all_rows=False, min_interval_ns=20_000_000),
        clock=clock,
    )
    engine.open()
    sessions = [live_session(str(i)) for i in range(6)]
    for session in sessions:
        engine.submit(session)
    frame = np.ones((1, FRAME), dtype=np.float32)
    for index in (0, 2):
        sessions[index].inbox.put(0, {"heard": frame})

    assert engine.tick()
    sessions[5].inbox.put(0, {"heard": frame})
    assert not engine.tick(), "the least interval between two starts has not passed"
    clock.advance(20_000_000)
    assert engine.tick()

    assert [tick.n for tick in node.ticks] == [4, 8]
    assert np.flatnonzero(node.ticks[0].active).tolist() == [0, 2]
    assert np.flatnonzero(node.ticks[1].active).tolist() == [5]
    assert [s.state for s in sessions] == [SessionState.RUNNING] * 6


@pytest.mark.parametrize("fill", [True, False])
def test_free_slots_are_waited_for_where_sessions_come_to_fill_them(fill: bool) -> None:
    engine = Engine(
        lambda: {"node": Quiet()},
        ECHO,
        input_format=AUDIO,
        options=TickOptions(num_slots=4, fill=fill),
    )
    engine.open()
    session = live_session("s")
    engine.submit(session)
    assert session.inbox.put(0, {"heard": np.ones((1, FRAME), dtype=np.float32)})

    for _ in range(3):
        engine.tick()
    fired = engine.statistics.ticks
    engine.no_more()
    for _ in range(3):
        engine.tick()

    assert [fired, engine.statistics.ticks] == [0 if fill else 1, 1]
    engine.close()
