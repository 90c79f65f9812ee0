"""Conversations with two replicas, one of which is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

pytest.importorskip("ray")
pytest.importorskip("ray.serve")

from moshi_pipe_ray.cluster import connected
from moshi_pipe_ray.serving import start, stop
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from moshi_pipe.compose import load_run
from moshi_pipe.overrides import prepare
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Ray opens sockets and files that it leaves to the garbage collector.
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),
]

CLIENTS = 8
FRAME = b"\x01" + bytes(2 * 1920)
END_OF_TURN = b"\x03\x01"
QUERY = "audio=pcm_s16le&rate=24000"
PATIENCE_S = 60


@contextmanager
def serving(out: Path, *words: str) -> Iterator[str]:
    """Replicas of four slots; the address of all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["source=websocket", "sink=websocket", "engine=ray", "model=embedded"]
    common += ["engine.slots=4", "engine.late=slow_down", f"output_dir={out}"]
    common += [f"server.port={port}", "server.max_s=60", "engine.admit_ms=null"]
    config = load_run(prepare([*common, *words]), load_plugins().nodes)
    with connected(config.engine):  # type: ignore[arg-type]
        start(config, config.engine)  # type: ignore[arg-type]
        yield f"127.0.0.1:{port}"
        stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two replicas."""
    with serving(tmp_path_factory.mktemp("served"), "engine.actors=2") as address:
        yield address


class Client:
    """One that talks on and on, a frame per answer."""

    def __init__(self, address: str, query: str = QUERY) -> None:
        self.url = f"ws://{address}/api/chat?{query}"
        self.session: dict[str, Any] = {}
        self.heard = 0
        self.errors: list[str] = []
        self.close: tuple[int, str] | None = None
        self._begun = asyncio.Event()
        self._ws: Any = None
        self._over = False

    async def talk(self) -> None:
        """Until the server closes, or this is cancelled."""
        try:
            async with connect(self.url, compression=None, max_size=None) as ws:
                self._ws = ws
                async for message in ws:
                    await self._take(ws, message)
        except ConnectionClosed:
            pass
        self.close = ws.close_code, ws.close_reason
        self._begun.set()

    async def _take(self, ws: Any, message: bytes) -> None:
        if message[0] == 4:
            told = json.loads(message[1:])
            if told["type"] == "session":
                self.session = told
                for _ in range(2):  # the first has no answer
                    await ws.send(FRAME)
        elif message[0] == 1:
            self.heard += 1
            self._begun.set()
            await asyncio.sleep(0.05)
            with suppress(ConnectionClosed):  # what was said before the close is still to be read
                await ws.send(END_OF_TURN if self._over else FRAME)
        elif message[0] == 5:
            self.errors.append(message[1:].decode())

    def vanish(self) -> None:
        """Lose the connection without a word."""
        self._ws.transport.abort()

    def hang_up(self) -> None:
        """Say that no more comes, and wait for what is left."""
        self._over = True

    async def begun(self) -> None:
        await asyncio.wait_for(self._begun.wait(), PATIENCE_S)

    async def hears_more(self, frames: int = 5) -> None:
        wanted, until = self.heard + frames, time.monotonic() + PATIENCE_S
        while self.heard < wanted:
            assert self.close is None, self.close
            assert time.monotonic() < until, "nothing more was said"
            await asyncio.sleep(0.02)


def info(address: str) -> dict[str, Any]:
    with urlopen(f"http://{address}/api/info", timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def when_used(address: str, wanted: list[int]) -> dict[str, Any]:
    """The facts, once the replicas tell that so many slots are used: they tell it now and then."""
    until = time.monotonic() + PATIENCE_S
    while True:
        told = await asyncio.to_thread(info, address)
        used = sorted(one["slots"]["used"] for one in told["replicas"])
        if used == wanted:
            return told
        assert time.monotonic() < until, told
        await asyncio.sleep(0.2)


def test_a_replica_that_is_let_go_ends_its_conversations_first(tmp_path: Path) -> None:
    # Before the others: a process has one Ray Serve at a time, and theirs lasts to the end.
    words = ["engine.actors=1", "engine.most_actors=2", "engine.scale_down_s=2"]

    async def run(address: str) -> None:
        clients = [Client(address) for _ in range(5)]  # one more than a replica has slots
        talks = [asyncio.create_task(client.talk()) for client in clients]
        for client in clients:
            await client.begun()
        await when_used(address, [1, 4])
        for client, talk in list(zip(clients, talks, strict=True))[:3]:
            client.hang_up()
            await asyncio.wait_for(talk, PATIENCE_S)
        stay = clients[3:]
        until = time.monotonic() + 20  # in which one of the two replicas is let go
        while time.monotonic() < until:
            for client in stay:
                await client.hears_more(1)
        for client in stay:
            client.hang_up()
        await asyncio.wait_for(asyncio.gather(*talks[3:]), PATIENCE_S)
        for client in stay:
            assert client.close is not None
            assert client.close[0] == 1000, client.close
        until = time.monotonic() + PATIENCE_S
        while len((await asyncio.to_thread(info, address))["replicas"]) > 1:
            assert time.monotonic() < until, "both replicas are still there"

    with serving(tmp_path, *words) as address:
        asyncio.run(run(address))


def test_the_page_and_the_facts_are_those_of_a_server(served: str) -> None:
    with urlopen(f"http://{served}/", timeout=30) as page:
        assert b"<title>" in page.read()
        assert "content-security-policy" in page.headers
    told = info(served)
    assert told["slots"]["total"] == 8
    assert len(told["replicas"]) == 2
    assert told["auth"] is False


def test_a_lost_replica_closes_its_clients_and_no_others(served: str) -> None:
    async def run() -> None:
        clients = [Client(served) for _ in range(CLIENTS)]
        talks = [asyncio.create_task(client.talk()) for client in clients]
        for client in clients:
            await client.begun()
        assert [client.close for client in clients] == [None] * CLIENTS
        told = await when_used(served, [4, 4])

        os.kill(told["replicas"][0]["pid"], signal.SIGKILL)

        await asyncio.wait(talks, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(talks, timeout=2)
        closed = [client for client in clients if client.close is not None]
        alive = [client for client in clients if client.close is None]
        assert len(closed) == 4
        for client in closed:
            assert client.close is not None
            assert client.close[0] == 1012, client.close
            assert [one.partition(":")[0] for one in client.errors] == ["engine_failed"]
        for client in alive:
            await client.hears_more()
        lost = Client(served, f"{QUERY}&resume={closed[0].session['resume']['token']}")
        await asyncio.wait_for(lost.talk(), PATIENCE_S)
        assert lost.close == (1008, "resume_failed")
        again = Client(served)
        talks.append(asyncio.create_task(again.talk()))
        await again.begun()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    asyncio.run(run())


def test_a_lost_connection_goes_on_wherever_the_client_comes_back(served: str) -> None:
    async def run() -> None:
        client = Client(served)
        talk = asyncio.create_task(client.talk())
        await client.hears_more()
        first = client.session
        for _ in range(3):
            client.vanish()
            await asyncio.wait_for(talk, PATIENCE_S)
            client = Client(served, f"{QUERY}&resume={client.session['resume']['token']}")
            talk = asyncio.create_task(client.talk())
            await client.hears_more(2)
            assert client.session["resumed"]
            assert client.session["session"] == first["session"]
        talk.cancel()
        await asyncio.gather(talk, return_exceptions=True)

    asyncio.run(run())
