"""How many sessions are let in, by what ticks cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.nodes import AUDIO, Accumulate

from moshi_pipe.engine.capacity import Capacity
from moshi_pipe.engine.clock import ManualClock
from moshi_pipe.engine.engine import Engine, TickOptions
from moshi_pipe.engine.slots import tick_sizes
from moshi_pipe.graph.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.graph.node import Tick, Value

MS = 1_000_000
ECHO = Schedule("heard", ("node",), {"node": {"audio": "heard"}}, {"audio": "node.audio"})


def made(cost_ms: Mapping[int, float], limit_ms: float = 48) -> Capacity:
    capacity = Capacity(list(cost_ms), round(limit_ms * MS))
    capacity.measure(lambda size: round(cost_ms[size] * MS))
    return capacity


def test_sizes_of_ticks_are_one_and_fours() -> None:
    assert tick_sizes(1) == [1]
    assert tick_sizes(4) == [1, 4]
    assert tick_sizes(12) == [1, 4, 8, 12]


@pytest.mark.parametrize(
    ("cost_ms", "expected"),
    [
        ({1: 10, 4: 20, 8: 40}, 8),
        ({1: 10, 4: 20, 8: 48}, 8),
        ({1: 10, 4: 20, 8: 49}, 4),
        ({1: 10, 4: 60, 8: 90}, 1),
        ({1: 200, 4: 500, 8: 900}, 1),
    ],
)
def test_as_many_are_let_in_as_keep_a_full_tick_below_the_limit(
    cost_ms: dict[int, float], expected: int
) -> None:
    assert made(cost_ms).sessions == expected


def test_sizes_that_are_far_too_slow_are_not_measured() -> None:
    asked: list[int] = []

    def tick(size: int) -> int:
        asked.append(size)
        return size * 40 * MS

    capacity = Capacity([1, 4, 8, 12], 48 * MS)
    capacity.measure(tick)
    assert set(asked) == {1, 4}
    assert capacity.sessions == 1


def test_one_slow_measurement_is_not_believed() -> None:
    took = iter([0, 10, 400, 10])
    capacity = Capacity([4], 48 * MS)
    capacity.measure(lambda size: next(took) * MS)
    assert capacity.sessions == 4


def test_a_slower_machine_lets_fewer_in_and_more_again_when_it_recovers() -> None:
    capacity = made({1: 5, 4: 20, 8: 40})
    for _ in range(200):
        capacity.add(4, 30 * MS)  # all ticks take half as long again
    assert capacity.sessions == 4
    for _ in range(200):
        capacity.add(1, 5 * MS)  # few are left, whose ticks tell of large ones too
    assert capacity.sessions == 8


def test_a_single_hiccup_changes_nothing() -> None:
    capacity = made({1: 5, 4: 20, 8: 40})
    capacity.add(8, 3000 * MS)
    assert capacity.sessions == 8


class Costly(Accumulate):
    """A tick costs 10 ms and 6 ms per row."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock
        self.left: list[int] = []

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> Any:
        self.clock.advance((10 + 6 * tick.n) * MS)
        return super().step(inputs, tick)

    def leave(self, slot: int) -> None:
        self.left.append(slot)


@pytest.mark.parametrize(
    ("all_rows", "admit_ns"), [(False, 48 * MS), (True, 48 * MS), (False, None)]
)
def test_an_engine_measures_full_ticks_where_it_matters(
    all_rows: bool, admit_ns: int | None
) -> None:
    clock = ManualClock()
    node = Costly(clock)
    options = TickOptions(num_slots=8, live=True, all_rows=all_rows, admit_ns=admit_ns)
    engine = Engine(lambda: {"node": node}, ECHO, input_format=AUDIO, options=options, clock=clock)
    engine.open()
    measures = not all_rows and admit_ns is not None
    assert engine.usable_slots == (4 if measures else 8)
    assert engine.statistics.ticks == 0, "those are nobody's"
    assert sorted(node.left) == (list(range(8)) if measures else [])
    assert not node.ticks or node.ticks[-1].active.all()
