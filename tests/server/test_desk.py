"""The desk, guests and the sink, with a fake edge on the link and a fake engine behind."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from server.fake_edge import FakeEdge, FakeHost, N, fake_edge

from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo
from moshi_pipe.graph.packet import FrameTimes, Packet
from moshi_pipe.server.desk import Desk
from moshi_pipe.server.lane import CAPACITY, Down
from moshi_pipe.server.options import ServerOptions
from moshi_pipe.server.sink import WebsocketSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from moshi_pipe.server.guest import Guest


class World:
    """A desk with one fake edge, by a manual clock."""

    def __init__(self, desk: Desk, edge: FakeEdge, host: FakeHost) -> None:
        self.desk, self.edge, self.host = desk, edge, host
        self.now_s = 0.0
        self.guests: asyncio.Queue[Guest] = asyncio.Queue()
        self.lost = asyncio.Event()  # the edge

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.desk.tick()


@asynccontextmanager
async def world(
    *, slots: int = 2, late: str = "drop_oldest", **options: Any
) -> AsyncIterator[World]:
    process, edge = await fake_edge()
    host = FakeHost(slots, late)
    desk = Desk(
        ServerOptions(**options),
        lambda: it.now_s,
        lambda guest: it.guests.put_nowait(guest),
        lambda what: {"asked": what},
    )
    it = World(desk, edge, host)
    desk.set_host(host)
    tasks = [asyncio.create_task(edge.run()), asyncio.create_task(desk.listen(process))]
    tasks[1].add_done_callback(lambda _: it.lost.set())
    try:
        yield it
    finally:
        edge.link.close()
        process.link.close()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def frames(guest: Guest) -> list[tuple[float, int | None]]:
    return [(float(chunk_CN[0, 0]), guest.delivered_ns) async for chunk_CN in guest.chunks()]


def test_a_client_gets_a_seat_and_is_heard_to_the_end_of_its_turn() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.open(7, record=True, seed=5, settings={"temperature": 0.5})
            session = (await it.edge.told_of("seat", 7))["session"]
            guest = await it.guests.get()
            assert session["session"] == guest.id
            assert re.fullmatch(r"ws-\d{8}-\d{6}-[0-9a-f]{16}", guest.id)
            assert session["sampling"]["audio_temperature"] == 0.5
            assert session["sampling"]["text_temperature"] == 0.7
            assert session["resumed"] is False
            assert (guest.seed, guest.record) == (5, True)
            it.edge.talk(7, 0.25, 100)
            rows = it.edge.talk(7, 0.5, 200)
            it.edge.link.send({"op": "end_turn", "conn": 7, "rows": rows})
            assert await frames(guest) == [(0.25, 100), (0.5, 200)]
            guest.finish(complete=True)
            end = await it.edge.told_of("end", 7)
            assert (end["close"], end["reason"], end["rows"]) == (1000, "done", 0)
            assert it.desk.counts.sessions == {"done": 1}
            assert it.desk.counts.frames == 2

    run(talk)


def test_time_brings_something_only_while_somebody_is_there() -> None:
    async def come_and_go() -> None:
        async with world(resume_s=30) as it:
            visited = asyncio.create_task(it.desk.visited())
            await asyncio.sleep(0)
            assert not visited.done()
            it.edge.open(7)
            await visited
            guest = await it.guests.get()
            it.edge.gone(7, lost=True)
            it.edge.link.send({"op": "ask", "id": 1, "what": "info"})
            await it.edge.told_of("answer")  # told after it
            assert guest.connection is None
            await it.desk.visited()  # who is away may come back in time, or not
            it.wait(30)
            guest.finish(complete=False)
            assert not it.desk.guests
            visited = asyncio.create_task(it.desk.visited())
            await asyncio.sleep(0)
            assert not visited.done()
            visited.cancel()

    run(come_and_go)


def test_a_conversation_goes_on_in_another_connection() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.open(1)
            session = (await it.edge.told_of("seat", 1))["session"]
            guest = await it.guests.get()
            stream = guest.chunks()
            it.edge.talk(1, 1.0)
            assert (await anext(stream))[0, 0] == 1.0
            it.edge.gone(1, lost=True)
            it.edge.open(2, resume=session["resume"]["token"])
            again = (await it.edge.told_of("seat", 2))["session"]
            assert again["session"] == session["session"]
            assert again["resumed"] is True
            it.edge.talk(2, 2.0)
            assert (await anext(stream))[0, 0] == 2.0
            assert it.guests.empty()
            it.edge.gone(2)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            assert guest.ended == "left"

    run(talk)


def test_an_old_connection_is_closed_when_its_client_is_on_another() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.open(1)
            token = (await it.edge.told_of("seat", 1))["session"]["resume"]["token"]
            it.edge.open(2, resume=token)
            end = await it.edge.told_of("end", 1)
            assert (end["close"], end["reason"]) == (1008, "taken_over")
            await it.edge.told_of("seat", 2)
            it.edge.gone(1, lost=True)
            guest = await it.guests.get()
            it.edge.talk(2, 0.5)
            assert (await anext(guest.chunks()))[0, 0] == 0.5

    run(talk)


def test_a_client_that_is_away_is_parked_for_another_and_comes_back() -> None:
    async def talk() -> None:
        async with world(slots=1) as it:
            it.edge.open(1)
            token = (await it.edge.told_of("seat", 1))["session"]["resume"]["token"]
            first = await it.guests.get()
            it.edge.gone(1, lost=True)
            it.edge.open(2)
            assert (await it.edge.told_of("queue", 2))["position"] == 1
            await it.edge.told_of("seat", 2)
            second = await it.guests.get()
            assert it.host.parked == [first.id]
            it.edge.open(3, resume=token)
            await it.edge.told_of("queue", 3)
            it.edge.gone(2)
            assert await frames(second) == []
            second.finish(complete=True)
            assert (await it.edge.told_of("seat", 3))["session"]["session"] == first.id
            assert it.host.parked == []

    run(talk)


def test_a_parked_client_that_stays_away_is_cancelled() -> None:
    async def talk() -> None:
        async with world(slots=1) as it:
            it.edge.open(1)
            first = await it.guests.get()
            it.edge.gone(1, lost=True)
            it.edge.open(2)
            await it.edge.told_of("seat", 2)
            it.wait(31)
            assert it.host.cancelled == [first.id]
            assert first.ended == "lost"

    run(talk)


def test_the_time_limit_is_announced_and_ends_the_conversation() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.open(1, max_s=10.4)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            stream = guest.chunks()
            for _ in range(130):
                it.edge.talk(1, 0.0)
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            said = (await it.edge.told_of("say", 1))["metadata"]
            assert said == {"type": "ending", "reason": "time_limit", "in_s": 10.0}
            guest.finish(complete=True)
            assert (await it.edge.told_of("end", 1))["reason"] == "time_limit"

    run(talk)


def test_a_silent_client_is_warned_and_then_ended() -> None:
    async def talk() -> None:
        async with world(idle_s=60.0) as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            it.wait(50)
            said = (await it.edge.told_of("say", 1))["metadata"]
            assert said == {"type": "ending", "reason": "idle", "in_s": 10.0}
            it.wait(10)
            assert await frames(guest) == []
            assert guest.ended == "idle"

    run(talk)


def test_a_lost_engine_closes_conversations_and_keeps_who_waits() -> None:
    async def talk() -> None:
        async with world(slots=1) as it:
            it.edge.open(1)
            it.edge.open(2)
            await it.edge.told_of("queue", 2)
            it.desk.set_host(None, "CUDA error")
            end = await it.edge.told_of("end", 1)
            assert (end["close"], end["reason"]) == (1012, "engine failed: CUDA error")
            it.desk.set_host(FakeHost(1))
            await it.edge.told_of("seat", 2)

    run(talk)


def test_answers_find_room_or_are_dropped() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            for number in range(CAPACITY + 3):
                await guest.send(Down(number, 0))
            assert guest.num_skipped == 3
            assert [(await it.edge.next_answer(1)).frame for _ in range(CAPACITY)] == list(
                range(CAPACITY)
            )

    run(talk)


def test_lossless_answers_wait_for_room() -> None:
    async def talk() -> None:
        async with world(late="slow_down") as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()

            async def send() -> None:
                for number in range(3 * CAPACITY):
                    await guest.send(Down(number, 0))

            task = asyncio.create_task(send())
            got = [(await it.edge.next_answer(1)).frame for _ in range(3 * CAPACITY)]
            await task
            assert got == list(range(3 * CAPACITY))
            assert guest.num_skipped == 0

    run(talk)


def test_an_edge_that_dies_loses_its_clients() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            it.edge.link.close()
            task = asyncio.create_task(frames(guest))
            await asyncio.wait_for(it.lost.wait(), 10)
            it.wait(31)
            assert await task == []
            assert guest.ended == "lost"

    run(talk)


def test_a_question_is_answered() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.link.send({"op": "ask", "id": 3, "what": "info"})
            assert await it.edge.told_of("answer") == {
                "op": "answer",
                "id": 3,
                "value": {"asked": "info"},
            }

    run(talk)


class Words:
    """A tokenizer of a few pieces."""

    padding_id = 3
    word_start_id = 0
    eos_id = 2
    pieces = ("<unk>", "<s>", "</s>", "<pad>", "▁Hi", "<0xC3>", "<0xA9>", "!")

    def piece(self, token: int) -> str:
        return self.pieces[token]

    def is_byte(self, token: int) -> bool:
        return self.pieces[token].startswith("<0x")

    def is_control(self, token: int) -> bool:
        return token < 4


def info(guest: Guest, formats: dict[str, Any]) -> SessionInfo:
    return SessionInfo(
        guest.id, guest.meta, Path(), formats, 0.08, 0, tokenizer=Words(), reply=guest
    )


def test_the_sink_sends_text_with_the_audio_of_its_frame() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            sink = WebsocketSink()
            await sink.open(info(guest, {"text": None, "audio": Audio(24_000, N, 1)}))
            audio_CN = np.ones((1, N), np.float32)
            for frame, token in enumerate([3, 4, 5, 6, 0, 7]):
                times = FrameTimes(delivered_ns=1, end_ns=2)
                await sink.write(Packet("text", frame, 0, token, times))
                await sink.write(Packet("audio", frame, 0, audio_CN, times))
            answers = [await it.edge.next_answer(1) for _ in range(6)]
            assert [answer.text for answer in answers] == ["", " Hi", "", "é", "", "!"]
            assert [answer.frame for answer in answers] == list(range(6))
            assert all(answer.audio_N is not None for answer in answers)
            said = await sink.close(SessionEnd(6, True))
            assert said["frames"] == 6
            assert (await it.edge.told_of("end", 1))["rows"] == 6

    run(talk)


def test_the_sink_of_a_graph_without_audio_sends_text_alone() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            sink = WebsocketSink()
            await sink.open(info(guest, {"text": None}))
            for frame, token in enumerate([3, 4, 3, 5]):
                await sink.write(Packet("text", frame, 0, token))
            await sink.close(SessionEnd(4, False))
            first, second = await it.edge.next_answer(1), await it.edge.next_answer(1)
            assert (first.frame, first.text, first.audio_N) == (1, " Hi", None)
            assert second.text == "�"
            end = await it.edge.told_of("end", 1)
            assert (end["close"], end["rows"]) == (1011, 2)
            assert end["error"].startswith("internal: ")

    run(talk)


def test_lossless_answers_to_a_client_that_has_left_wait_for_nobody() -> None:
    async def talk() -> None:
        async with world(late="slow_down") as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            for number in range(CAPACITY):
                await guest.send(Down(number, 0))
            waiting = asyncio.create_task(guest.send(Down(CAPACITY, 0)))
            it.edge.gone(1)
            await waiting
            assert guest.num_skipped == 1
            assert guest.ended == "left"

    run(talk)


def test_sound_in_drops_holds_no_slot_for_ever() -> None:
    async def talk() -> None:
        async with world(idle_s=60.0, max_s=100.0) as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            for seconds in (50, 50, 50, 49, 1):
                assert guest.ended is None
                guest._heard_s += seconds  # as if a frame had come
                it.wait(seconds)
            assert guest.ended is None
            guest._heard_s += 1
            it.wait(1)
            assert guest.ended == "time_limit"

    run(talk)


def test_coming_back_is_no_sound() -> None:
    async def talk() -> None:
        async with world(idle_s=60.0) as it:
            it.edge.open(1)
            token = (await it.edge.told_of("seat", 1))["session"]["resume"]["token"]
            guest = await it.guests.get()
            it.wait(40)
            it.edge.gone(1, lost=True)
            it.edge.open(9)  # told after it
            await it.edge.told_of("seat", 9)
            it.wait(25)
            it.edge.open(2, resume=token)
            await it.edge.told_of("seat", 2)
            it.wait(19)
            assert guest.ended is None
            it.wait(1)
            assert guest.ended == "idle"

    run(talk)


def test_an_edge_process_ends_alone_whatever_it_says() -> None:
    async def talk() -> None:
        async with world() as it:
            it.edge.link.send({"op": "open", "conn": 1, "request": None})
            await asyncio.wait_for(it.lost.wait(), 5)

    run(talk)


def test_lossless_answers_wait_for_a_client_that_may_come_back() -> None:
    async def talk() -> None:
        async with world(late="slow_down") as it:
            it.edge.open(1)
            token = (await it.edge.told_of("seat", 1))["session"]["resume"]["token"]
            guest = await it.guests.get()
            it.edge.gone(1, lost=True)
            it.edge.open(2)  # told after it
            await it.edge.told_of("seat", 2)
            waiting = asyncio.create_task(guest.send(Down(9, 0)))
            it.edge.open(3, resume=token)
            await it.edge.told_of("seat", 3)
            await waiting
            assert (await it.edge.next_answer(3)).frame == 9

    run(talk)


def test_a_server_that_stops_waits_for_no_client() -> None:
    async def talk() -> None:
        async with world(late="slow_down") as it:
            it.edge.open(1)
            await it.edge.told_of("seat", 1)
            guest = await it.guests.get()
            for number in range(CAPACITY):
                await guest.send(Down(number, 0))
            waiting = asyncio.create_task(guest.send(Down(CAPACITY, 0)))
            it.desk.drain(5.0)
            said = (await it.edge.told_of("say", 1))["metadata"]
            assert said == {"type": "ending", "reason": "shutdown", "in_s": 5.0}
            it.edge.open(2)
            assert (await it.edge.told_of("refuse", 2))["close"] == 1001
            it.desk.end_all("shutdown")
            await waiting
            guest.finish(complete=True)
            said = await it.edge.told_of("end", 1)
            assert (said["close"], said["error"]) == (1001, "shutdown: the server stops")
            await it.desk.empty()

    run(talk)
