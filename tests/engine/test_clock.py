"""The manual clock."""

from __future__ import annotations

import asyncio

import pytest

from moshi_pipe.engine.clock import ManualClock, SystemClock
from moshi_pipe.units import NS_PER_SECOND


def test_sleepers_wake_in_the_order_of_their_deadlines_and_not_before() -> None:
    async def scene() -> list[str]:
        clock, woken = ManualClock(), []

        async def sleeper(name: str, deadline_ns: int) -> None:
            await clock.sleep_until(deadline_ns)
            woken.append(f"{name} at {clock.now_ns()}")

        tasks = [
            asyncio.create_task(sleeper(name, deadline))
            for name, deadline in (("late", 30), ("early", 10), ("also early", 10), ("past", 0))
        ]
        await asyncio.sleep(0)
        for step in (9, 1, 20):
            clock.advance(step)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return woken

    assert asyncio.run(scene()) == ["past at 0", "early at 10", "also early at 10", "late at 30"]


def test_a_sleeper_that_gave_up_is_forgotten() -> None:
    async def scene() -> int:
        clock = ManualClock(5)
        task = asyncio.create_task(clock.sleep_until(10))
        await asyncio.sleep(0)
        task.cancel()
        clock.advance(10)
        return clock.now_ns()

    assert asyncio.run(scene()) == 15


def test_one_long_step_wakes_all_whose_time_came() -> None:
    async def scene() -> int:
        clock = ManualClock()
        hour_ns = 3600 * NS_PER_SECOND
        tasks = [asyncio.create_task(clock.sleep_until(i)) for i in range(1, hour_ns, hour_ns // 9)]
        await asyncio.sleep(0)
        clock.advance(hour_ns)
        await asyncio.gather(*tasks)
        return clock.now_ns()

    assert asyncio.run(scene()) == 3600 * NS_PER_SECOND


def test_time_does_not_go_back() -> None:
    clock = ManualClock(3)

    with pytest.raises(ValueError, match=r"^time cannot go back: got -1 ns$"):
        clock.advance(-1)

    assert clock.now_ns() == 3


def test_the_system_clock_does_not_wait_for_what_is_past() -> None:
    clock = SystemClock()
    before = clock.now_ns()

    asyncio.run(clock.sleep_until(before - 1))

    assert clock.now_ns() >= before


def test_the_system_clock_never_wakes_early() -> None:
    clock = SystemClock()
    deadline = clock.now_ns() + NS_PER_SECOND // 200

    asyncio.run(clock.sleep_until(deadline))

    assert clock.now_ns() >= deadline
