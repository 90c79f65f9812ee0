"""The manual clock."""

from __future__ import annotations

import asyncio

import pytest

from moshi_pipe.engine.clock import ManualClock, SystemClock


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


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="cannot go back"):
        ManualClock().advance(-1)


def test_the_system_clock_does_not_wait_for_what_is_past() -> None:
    clock = SystemClock()
    before = clock.now_ns()

    asyncio.run(clock.sleep_until(before - 1))

    assert clock.now_ns() >= before
