"""Waking a loop from other threads."""

from __future__ import annotations

import asyncio
import threading

from moshi_pipe.engine.waker import Waker


def test_many_events_are_one_call_of_the_loop() -> None:
    async def run() -> list[object]:
        loop = asyncio.get_running_loop()
        calls: list[object] = []
        call = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *words: (calls.append(words), call(*words))[1]  # type: ignore[method-assign, assignment, misc]
        waker, events = Waker(loop), [asyncio.Event() for _ in range(32)]

        thread = threading.Thread(target=lambda: [waker.wake(event) for event in events])
        thread.start()
        thread.join()  # the loop does not run meanwhile
        await asyncio.gather(*(event.wait() for event in events))
        loop.call_soon_threadsafe = call  # type: ignore[method-assign]
        return calls

    assert len(asyncio.run(run())) == 1


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
