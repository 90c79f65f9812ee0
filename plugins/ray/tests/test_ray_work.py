"""Handing out recordings, without Ray."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from moshi_pipe_ray.work import Work

from moshi_pipe.errors import InputError
from moshi_pipe.graph.node import SessionInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Input(SessionInput):
    def __init__(self, number: int) -> None:
        self.id = str(number)
        self.meta = {"stem": self.id}
        self.sample_rate = 24_000

    def chunks(self) -> AsyncIterator[Any]:
        raise NotImplementedError


class Items:
    """So many inputs, counted as they are read; then an error, if there is one."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.read = 0
        self._count = count
        self._error = error

    async def __aiter__(self) -> AsyncIterator[SessionInput]:
        for number in range(self._count):
            self.read += 1
            yield Input(number)
        if self._error is not None:
            raise self._error


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


async def work_off(work: Work) -> list[str]:
    done = []
    while (job := await work.take()) is not None:
        done.append(job.item.id)
        await asyncio.sleep(0)
        work.done(job)
    return done


def test_no_more_is_read_than_is_asked_for() -> None:
    async def test() -> None:
        items = Items(1_000_000)
        work = Work(aiter(items))
        for _ in range(3):
            await work.take()
        assert items.read == 3

    run(test)


def test_each_is_given_to_one_and_all_stop_when_all_is_done() -> None:
    async def test() -> None:
        work = Work(aiter(Items(100)))
        parts = await asyncio.gather(*(work_off(work) for _ in range(7)))
        given = [int(one) for part in parts for one in part]
        assert sorted(given) == list(range(100))
        assert work.over.is_set()

    run(test)


def test_what_comes_back_is_given_first_also_to_those_who_found_nothing_left() -> None:
    async def test() -> None:
        work = Work(aiter(Items(1)))
        job = await work.take()
        assert job is not None
        waiting = asyncio.create_task(work_off(work))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        work.give_back(job)
        assert await waiting == ["0"]
        assert await work.take() is None

    run(test)


def test_a_source_that_fails_is_told_of_when_what_it_gave_is_done() -> None:
    async def test() -> None:
        work = Work(aiter(Items(1, InputError("no more"))))
        job = await work.take()
        assert job is not None
        waiting = asyncio.create_task(work.take())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        work.done(job)
        with pytest.raises(InputError, match="no more"):
            await waiting

    run(test)
