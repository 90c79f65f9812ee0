"""A server of the protocol for tests of the web page: echoes what it hears, says set words.

Everything that a real server decides by itself (queues, limits, lost lines) is decided by the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from moshi_pipe.server.messages import HANDSHAKE, Close, Kind, error, metadata, text
from moshi_pipe.server.pages import HEADERS, read_pages

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future
    from typing import Self

PAGES = read_pages()
WORDS = (
    "Hey, how are you doing ? | I was just thinking about the sea. You can hear it from the old "
    "mill when the wind comes from the west. | Do you want to go there some day ? It is only an "
    "hour on foot, and the path is easy."
)


@dataclass
class Behaviour:
    """What the server does; may be changed while it runs.

    Attributes:
        token: Clients must bring it.
        model: Name of the model.
        random: Whether it has random weights.
        queue: Positions that a client sees, each for ``queue_s``, before it may talk.
        queue_s: Seconds.
        refuse: Error that everyone gets, with its close code.
        delay_s: Seconds from hearing to echo.
        word_s: Seconds from word to word.
        words: What is said, over and over; ``|`` is a pause of two seconds.
        left_s: Seconds that a conversation may take.
        ending_s: Announce the end with so many seconds left.
        resume_s: Seconds that a lost client may take to come back.
        accept_resume: Whether the token of a lost client is known.
        stats: Numbers of the statistics.
    """

    token: str | None = None
    model: str = "embedded"
    random: bool = True
    queue: tuple[int, ...] = ()
    queue_s: float = 0.3
    refuse: tuple[str, Close] | None = None
    delay_s: float = 0.2
    word_s: float = 0.12
    words: str = WORDS
    left_s: float = 600.0
    ending_s: float | None = None
    resume_s: float = 30.0
    accept_resume: bool = True
    stats: dict[str, float] = field(
        default_factory=lambda: {
            "latency_ms": 31.2,
            "dropped_frames": 0,
            "skipped_frames": 0,
            "late_frames": 0,
        }
    )


@dataclass
class Seen:
    """What a client sent.

    Attributes:
        query: Parameters of the address.
        audio: Payloads of audio messages.
        close: Code of the close; None while open.
    """

    query: dict[str, str]
    audio: list[bytes] = field(default_factory=list)
    close: int | None = None


class MockServer:
    """Runs in a thread of its own, from ``with`` to its end.

    Args:
        host: Address to listen on.

    Attributes:
        behaviour: What it does.
        seen: What clients sent, in the order of their coming.
        tokens: Tokens to resume with, in the order in which they were given.
        port: TCP port.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = 0
        self.behaviour = Behaviour()
        self.seen: list[Seen] = []
        self.tokens: list[str] = []
        self._connections: set[ServerConnection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mock-server")
        self._server: Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://{self.host}:{self.port}/"

    def cut(self) -> None:
        """Lose all lines, without a close."""
        self._do(self._cut())

    def end(self, code: Close, reason: str) -> None:
        """Close all conversations."""
        self._do(self._close_all(code, reason))

    def tell(self, **values: Any) -> None:
        """Send metadata to all."""
        self._do(self._send_all(metadata(values)))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.result(timeout=10)

    async def _start(self) -> None:
        self._server = await serve(
            self._converse, self.host, 0, process_request=self._page, compression=None
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def _stop(self) -> None:
        await self._cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _cut(self) -> None:
        for connection in self._connections:
            connection.transport.abort()

    async def _close_all(self, code: Close, reason: str) -> None:
        for connection in list(self._connections):
            await connection.close(code, reason)

    async def _send_all(self, message: bytes) -> None:
        for connection in self._connections:
            await connection.send(message)

    # Over HTTP.

    def _page(self, connection: ServerConnection, request: Request) -> Response | None:
        address = urlsplit(request.path)
        token = self.behaviour.token
        if address.path == "/api/chat":
            given = dict(parse_qsl(address.query)).get("token")
            if token is None or given == token:
                return None
            return answer(HTTPStatus.UNAUTHORIZED, b"", "text/plain")
        if address.path == "/metrics":
            knows = token is None or request.headers.get("authorization") == f"Bearer {token}"
            return answer(HTTPStatus.OK if knows else HTTPStatus.UNAUTHORIZED, b"", "text/plain")
        if address.path == "/readyz":
            return answer(HTTPStatus.OK, b"ok", "text/plain")
        if address.path == "/api/info":
            return answer(HTTPStatus.OK, json.dumps(self._info()).encode(), "application/json")
        page = PAGES.get(address.path)
        if page is None:
            return answer(HTTPStatus.NOT_FOUND, b"", "text/plain")
        return answer(HTTPStatus.OK, page.body, page.media_type)

    def _info(self) -> dict[str, Any]:
        temperature = {"min": 0, "max": 2, "default": 0.8}
        return {
            "server": "moshi-pipe 0.1.0",
            "protocol": 1,
            "model": {
                "name": self.behaviour.model,
                "random": self.behaviour.random,
                "type": "moshi",
            },
            "slots": {"total": 4, "usable": 4, "used": 1, "parked": 0, "waiting": 0},
            "frame_ms": 80.0,
            "sample_rate": 24000,
            "formats": ["ogg_opus", "pcm_s16le", "pcm_f32le"],
            "settings": {
                "audio_temperature": temperature,
                "text_temperature": {**temperature, "default": 0.7},
                "audio_topk": {"min": 1, "max": 250, "default": 250},
                "text_topk": {"min": 1, "max": 250, "default": 25},
                "repetition_penalty": {"min": 1, "max": 2, "default": 1},
                "max_s": {"min": 1, "max": 600, "default": 600},
                "recording": {"offered": True},
            },
            "auth": self.behaviour.token is not None,
        }

    # Over a websocket.

    async def _converse(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        seen = Seen(dict(parse_qsl(urlsplit(connection.request.path).query)))
        self.seen.append(seen)
        self._connections.add(connection)
        speaker: asyncio.Task[None] | None = None
        try:
            if not await self._admit(connection, seen):
                return
            speaker = asyncio.create_task(self._speak(connection))
            await self._listen(connection, seen)
        except ConnectionClosed:
            pass
        finally:
            self._connections.discard(connection)
            if speaker is not None:
                speaker.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                    await speaker
            seen.close = connection.close_code

    async def _admit(self, connection: ServerConnection, seen: Seen) -> bool:
        behaviour = self.behaviour
        if behaviour.refuse is not None:
            return await refuse(connection, *behaviour.refuse)
        if "resume" in seen.query and not behaviour.accept_resume:
            return await refuse(connection, "resume_failed: the token is not known", Close.POLICY)
        queue = behaviour.queue if "resume" not in seen.query else ()
        for position in queue:
            values = {"type": "queue", "position": position, "waiting": max(queue)}
            await connection.send(metadata(values))
            await asyncio.sleep(behaviour.queue_s)
        await connection.send(HANDSHAKE)
        await connection.send(metadata(self._session(seen)))
        return True

    def _session(self, seen: Seen) -> dict[str, Any]:
        self.tokens.append(secrets.token_urlsafe(8))
        return {
            "type": "session",
            "protocol": 1,
            "server": "moshi-pipe 0.1.0",
            "model": self.behaviour.model,
            "session": "ws-1",
            "resume": {"token": self.tokens[-1], "s": self.behaviour.resume_s},
            "resumed": "resume" in seen.query,
            "seed": int(seen.query.get("seed", 1)),
            "audio": {"format": seen.query.get("audio", "ogg_opus"), "sample_rate": 24000},
            "limits": {"max_s": 600.0, "left_s": self.behaviour.left_s, "idle_s": 60.0},
            "sampling": {},
            "recording": seen.query.get("record") == "1",
        }

    async def _listen(self, connection: ServerConnection, seen: Seen) -> None:
        waiting: deque[tuple[float, bytes]] = deque()
        echo = asyncio.create_task(self._echo(connection, waiting))
        try:
            async for message in connection:
                assert isinstance(message, bytes)
                if message[0] == Kind.AUDIO:
                    seen.audio.append(message[1:])
                    waiting.append((self._loop.time() + self.behaviour.delay_s, message))
                elif message[0] == Kind.PING:
                    await connection.send(message)
        finally:
            echo.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                await echo

    async def _echo(
        self, connection: ServerConnection, waiting: deque[tuple[float, bytes]]
    ) -> None:
        """Give the audio back, a frame at a time."""
        while True:
            await asyncio.sleep(0.08)
            while waiting and waiting[0][0] <= self._loop.time():
                await connection.send(waiting.popleft()[1])

    async def _speak(self, connection: ServerConnection) -> None:
        frame = 0
        if self.behaviour.ending_s is not None:
            values = {"type": "ending", "reason": "time_limit", "in_s": self.behaviour.ending_s}
            await connection.send(metadata(values))
        while True:
            for word in self.behaviour.words.split():
                frame += 1
                if frame % 4 == 1:
                    values = {"type": "stats", **self.behaviour.stats, "frame": frame}
                    await connection.send(metadata(values))
                if word == "|":
                    await asyncio.sleep(2.0)
                    continue
                piece = word if word == "?" else f" {word}"
                await connection.send(text(piece))
                await asyncio.sleep(self.behaviour.word_s)
            await asyncio.sleep(2.0)


async def refuse(connection: ServerConnection, what: str, code: Close) -> bool:
    """Say why, and close."""
    word, _, sentence = what.partition(": ")
    await connection.send(error(word, sentence))
    await connection.close(code, word)
    return False


def answer(status: HTTPStatus, body: bytes, media_type: str) -> Response:
    """An answer over HTTP, with the headers of the real server."""
    headers = Headers(
        {
            "Content-Type": media_type,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Connection": "close",
            **HEADERS,
        }
    )
    return Response(status.value, status.phrase, headers, body)
