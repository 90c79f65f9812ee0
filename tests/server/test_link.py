import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_pipe.server import link
from moshi_pipe.server.link import Decoder, Link, LinkError, Put, Took, open_link


@asynccontextmanager
async def two_ends() -> AsyncIterator[tuple[Link, Link]]:
    one, other = socket.socketpair()
    ends = await open_link(one), await open_link(other)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 10)

    asyncio.run(bounded())


def test_messages_arrive_in_the_order_in_which_they_were_sent() -> None:
    async def talk() -> None:
        async with two_ends() as (one, other):
            one.put(3, 1)
            one.send({"op": "end_turn", "conn": 1, "rows": 1})
            one.took(65535, 2**32 - 1)
            one.close()
            assert [message async for message in other.messages()] == [
                Put(3, 1),
                {"op": "end_turn", "conn": 1, "rows": 1},
                Took(65535, 2**32 - 1),
            ]
            assert other.closed

    run(talk)


def test_a_closed_link_ends_the_messages_and_takes_no_more() -> None:
    async def talk() -> None:
        async with two_ends() as (one, other):
            other.close()
            assert [message async for message in one.messages()] == []
            one.send({"op": "late"})
            one.put(0, 1)

    run(talk)


def test_a_side_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        async with two_ends() as (one, _):
            monkeypatch.setattr(link, "MAX_UNSENT", 1 << 20)
            for _ in range(200):
                one.send({"op": "say", "text": "x" * 60_000})
                await asyncio.sleep(0)
            assert one.closed
            assert [message async for message in one.messages()] == []

    run(talk)


def test_what_is_too_large_is_not_sent() -> None:
    async def talk() -> None:
        async with two_ends() as (one, _):
            with pytest.raises(
                ValueError, match=r"^a message of 1048588 bytes, 1048576 are the most$"
            ):
                one.send({"text": "x" * ((1 << 20) + 1)})

    run(talk)


@given(st.data())
def test_messages_are_cut_from_a_stream_however_it_arrives(data: st.DataObject) -> None:
    stream = link._HEADER.pack(9, 0) + b'{"op":""}'
    stream += link._HEADER.pack(6, 1) + link._COUNT.pack(1, 2)
    stream += link._HEADER.pack(6, 2) + link._COUNT.pack(3, 4)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder()
    got: list[object] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == [{"op": ""}, Put(1, 2), Took(3, 4)]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (link._HEADER.pack(1 << 21, 0), "a message of 2097152 bytes, 1048576 are the most"),
        (link._HEADER.pack(1, 1) + b"x", "a message of kind 1 that cannot be read"),
        (link._HEADER.pack(1, 0) + b"{", "a message of kind 0 that cannot be read"),
        (link._HEADER.pack(2, 0) + b"[]", "a message of kind 0 that is no object"),
        (link._HEADER.pack(2, 9) + b"{}", "a message of kind 9 that is no object"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(LinkError, match=f"^{what}$"):
        Decoder().feed(data)


@given(st.binary(max_size=200))
def test_the_decoder_raises_nothing_but_its_own_error(data: bytes) -> None:
    with suppress(LinkError):
        Decoder().feed(data)
