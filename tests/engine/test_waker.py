"""Waking a loop from other threads."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from moshi_pipe.engine.waker import Waker

if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """A loop that counts how often it is called."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls = 0

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.calls += 1
        self.loop.call_soon_threadsafe(callback)


def test_many_events_are_one_call_of_the_loop() -> None:
    async def run() -> int:
        loop: Any = Loop()
        waker, events = Waker(loop), [asyncio.Event() for _ in range(32)]

        def wake_all() -> None:
            for event in events:
                waker.wake(event)

        thread = threading.Thread(target=wake_all)
        thread.start()
        thread.join()  # the loop does not run meanwhile
        await asyncio.gather(*(event.wait() for event in events))
        return int(loop.calls)

    assert asyncio.run(run()) == 1


def test_no_wake_is_lost_while_the_loop_looks() -> None:
    async def run() -> int:
        waker, event = Waker(asyncio.get_running_loop()), asyncio.Event()
        put = taken = 0

        def produce() -> None:
            nonlocal put
            for _ in range(20_000):
                put += 1
                waker.wake(event)

        thread = threading.Thread(target=produce)
        thread.start()
        while taken < 20_000:
            event.clear()
            if taken == put:
                await asyncio.wait_for(event.wait(), 30)
            taken = put
        thread.join()
        return taken

    assert asyncio.run(run()) == 20_000


def test_a_loop_that_has_closed_needs_no_waking() -> None:
    loop = asyncio.new_event_loop()
    loop.close()

    Waker(loop).wake(asyncio.Event())
