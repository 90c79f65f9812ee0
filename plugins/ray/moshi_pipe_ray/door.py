"""What clients connect to: a door, which passes each conversation on to the replica that has it.

A door has no model. It checks who may come in, asks Ray Serve for a replica with a free slot, and
then carries messages byte by byte, so that page, clients and protocol are those of one server. It
outlives replicas: when one is lost, its clients are told so.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute

from moshi_pipe.server.guard import Doorman, machine_names, read_token
from moshi_pipe.server.messages import Close, error, metadata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.websockets import WebSocket

    from moshi_pipe.server.options import ServerOptions
    from moshi_pipe_ray.directory import Whereabouts

_LOST: Final = 3001
"""Close code for a server whose client was lost: any but 1000 and 1001 keeps the conversation."""

_GONE_CODES: Final = (1000, 1001)
_HOW_S: Final = 0.5
_FIRST_WORD_S: Final = 1.0  # the protocol promises a word within two
_WORD_S: Final = 5.0
_HOP: Final = ("connection", "transfer-encoding", "content-length", "content-encoding", "date")
_LOG: Final = logging.getLogger("ray.serve")


def make_routes() -> Starlette:
    """What Ray Serve passes requests to: all goes to the door that runs in the process."""

    async def page(request: Request) -> Response:
        return await _door().answer(request)

    async def chat(socket: WebSocket) -> None:
        await _door().converse(socket)

    return Starlette(
        routes=[WebSocketRoute("/api/chat", chat), Route("/{path:path}", page, methods=["GET"])]
    )


def _door() -> Door:
    from ray import serve

    found: Door = serve.get_replica_context().servable_object
    return found


class Door:
    """Lets clients in; a deployment of Ray Serve.

    Args:
        options: Of the server: who may come in, how many may wait.
        secret: That the servers of replicas ask for.
        directory: Handle of the actor that is a :class:`~moshi_pipe_ray.directory.Directory`.
        replicas: Handle of the deployment of replicas.
    """

    def __init__(self, options: ServerOptions, secret: str, directory: Any, replicas: Any) -> None:
        self._options = options
        self._doorman = Doorman(options, read_token(options), machine_names())
        self._headers = {"authorization": f"Bearer {secret}"}
        self._directory = directory
        self._replicas = replicas
        self._line: list[_Visit] = []  # who waits for a slot
        self._client: aiohttp.ClientSession | None = None

    async def answer(self, request: Request) -> Response:
        """Answer a request for a page, or of a probe, as the server of a replica does."""
        path = request.url.path
        if path == "/healthz":
            return PlainTextResponse("ok")
        if path == "/metrics" and not self._doorman.knows(request.headers, request.query_params):
            return Response('{"error": "token"}', 401, media_type="application/json")
        headers = dict(self._headers)
        if (etag := request.headers.get("if-none-match")) is not None:
            headers["if-none-match"] = etag
        replicas = await self._directory.replicas.remote()
        for replica in replicas:
            with suppress(aiohttp.ClientError):
                async with self._http().get(replica.address + path, headers=headers) as found:
                    body = await found.read()
                    if path == "/api/info" and found.status == 200:
                        body = await self._info(json.loads(body), replicas)
                    kept = {k: v for k, v in found.headers.items() if k.lower() not in _HOP}
                    return Response(body, found.status, kept)
            self._directory.forget.remote(replica.address)
        return PlainTextResponse("no replica is ready", 503)

    async def converse(self, socket: WebSocket) -> None:
        """Let a client converse with the replica that has its conversation, or room for one."""
        headers, query = socket.headers, socket.query_params
        known = self._doorman.knows(headers, query)
        if not known or not self._doorman.trusts(headers.get("origin"), headers.get("host")):
            await socket.close(Close.POLICY)  # before it is accepted: an answer with 403
            return
        words = [word for word in str(query).split("&") if not word.startswith("token=")]
        await socket.accept()
        visit = _Visit(socket)
        visit.listen()
        try:
            address = await self._address(visit, query.get("resume"))
            if address is not None:
                await self._carry(visit, address, "&".join(words))
        finally:
            await visit.end()

    async def _address(self, visit: _Visit, token: str | None) -> str | None:
        """Where a client belongs; None if there is no place, which it was told."""
        if token is not None:
            address: str | None = await self._directory.holder.remote(token)
            if address is not None:
                return address
        return await self._wait_for_slot(visit)

    async def _wait_for_slot(self, visit: _Visit) -> str | None:
        """Ask Ray Serve for a replica with a free slot, and say how long the line is meanwhile."""
        visit.held = self._replicas.options(stream=True).hold.remote()
        asked = asyncio.create_task(_next(visit.held))
        self._line.append(visit)
        wait_s = _FIRST_WORD_S
        try:
            while not asked.done() and not visit.over.done():
                await asyncio.wait(
                    {asked, visit.over}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
                )
                wait_s = _WORD_S
                if asked.done() or visit.over.done():
                    break
                place = self._line.index(visit) + 1
                if place > self._options.max_waiting:
                    await visit.refuse(Close.TRY_LATER, "at_capacity", "all slots are in use")
                    return None
                told = {"type": "queue", "position": place, "waiting": len(self._line)}
                await visit.socket.send_bytes(metadata(told))
            return asked.result() if asked.done() else None
        except Exception as failure:  # of Ray Serve, which has many
            _LOG.warning("no replica takes a client: %r", failure)
            await visit.refuse(Close.TRY_LATER, "at_capacity", "no replica is ready")
            return None
        finally:
            self._line.remove(visit)
            asked.cancel()

    async def _carry(self, visit: _Visit, address: str, query: str) -> None:
        """Carry messages both ways until one side has enough."""
        url = f"{address}/api/chat?{query}"
        try:
            inner = await self._http().ws_connect(
                url, headers=self._headers, max_msg_size=0, autoclose=False
            )
        except aiohttp.ClientError as failure:
            self._directory.forget.remote(address)
            _LOG.warning("a replica is gone: %r", failure)
            if "resume=" in query:
                await visit.refuse(
                    Close.POLICY, "resume_failed", "the replica that held it is gone"
                )
            else:
                await visit.refuse(Close.TRY_LATER, "at_capacity", "a replica is gone; try again")
            return
        visit.inner = inner
        down = asyncio.create_task(self._downwards(visit, address))
        try:
            await asyncio.wait({visit.over, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:  # Ray Serve cancels this when the client is gone, perhaps before it says how
            if not down.done():
                await asyncio.wait({visit.over}, timeout=_HOW_S)
            visit.left = True
            await inner.close(code=_LOST)  # nothing where it is closed
            down.cancel()
            ended = (await asyncio.gather(down, return_exceptions=True))[0]
            if isinstance(ended, Exception):
                _LOG.warning("a conversation was cut: %r", ended)

    async def _downwards(self, visit: _Visit, address: str) -> None:
        while True:
            message = await visit.inner.receive()
            if message.type == aiohttp.WSMsgType.BINARY:
                if message.data[:1] == b"\x04":
                    self._learn(message.data, address)
                await visit.socket.send_bytes(message.data)
            elif message.type == aiohttp.WSMsgType.CLOSE:
                code = int(message.data or 1000)
                await visit.socket.close(code, str(message.extra or ""))
                await visit.inner.close()
                return
            elif visit.left:
                return
            elif message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                self._directory.forget.remote(address)
                await visit.refuse(Close.RESTART, "engine_failed", "its replica is gone")
                return

    def _learn(self, data: bytes, address: str) -> None:
        """Remember where a conversation is, from what its client is told."""
        with suppress(ValueError, TypeError, AttributeError):
            told = json.loads(data[1:])
            if told.get("type") == "session":
                self._directory.holds.remote(told["resume"]["token"], address)

    async def _info(self, info: dict[str, Any], replicas: Sequence[Whereabouts]) -> bytes:
        """The facts of one replica, with the slots of all."""
        listed = []
        for replica in replicas:
            with suppress(aiohttp.ClientError):
                url = f"{replica.address}/api/info"
                async with self._http().get(url, headers=self._headers) as found:
                    if found.status == 200:
                        slots = (await found.json())["slots"]
                        listed.append({"host": replica.host, "pid": replica.pid, "slots": slots})
        sums = {key: sum(one["slots"][key] for one in listed) for key in info["slots"]}
        sums["waiting"] = sums.get("waiting", 0) + len(self._line)
        own = {"slots": sums, "auth": self._doorman.asks, "replicas": listed}
        return json.dumps({**info, **own}).encode()

    def _http(self) -> aiohttp.ClientSession:
        """The client, of the event loop that Ray Serve runs requests on."""
        if self._client is None:
            self._client = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                connector=aiohttp.TCPConnector(limit=0),
            )
        return self._client


class _Visit:
    """One client that is in.

    Attributes:
        socket: To the client.
        inner: To the server of its replica; None before there is one.
        held: The place that is kept for it; None where none is.
        left: Whether the end of its conversation is our own doing.
        over: Done once the client is gone.
    """

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.inner: Any = None
        self.held: Any = None
        self.left = False
        self.over: asyncio.Task[None]

    def listen(self) -> None:
        """Pass on what the client says; what it says before it has a replica is dropped."""
        self.over = asyncio.create_task(self._upwards())

    async def refuse(self, close: Close, code: str, what: str) -> None:
        """Tell the client why it is closed."""
        await self.socket.send_bytes(error(code, what))
        await self.socket.close(close, code)

    async def end(self) -> None:
        """Let go of everything."""
        self.over.cancel()
        ended = (await asyncio.gather(self.over, return_exceptions=True))[0]
        if isinstance(ended, Exception):
            _LOG.warning("a client was lost: %r", ended)
        if self.held is not None:
            self.held.cancel()

    async def _upwards(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                code = message.get("code") or 1006
                self.left = True
                if self.inner is not None:
                    await self.inner.close(code=code if code in _GONE_CODES else _LOST)
                return
            data = message.get("bytes")
            if self.inner is None:
                continue
            if data is None:
                await self.inner.send_str(message.get("text") or "")
            else:
                await self.inner.send_bytes(data)


async def _next(held: Any) -> str:
    return str(await anext(aiter(held)))
