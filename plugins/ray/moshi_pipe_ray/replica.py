"""One replica of a served model: an engine with its server, and the door that Ray Serve opens.

The server is the one of ``source=websocket``, at an address of the node's own that asks for a
secret of the cluster. What comes through Ray Serve is passed on to it byte by byte; a conversation
that another replica holds, or has a free slot for, is passed on to that one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from ray.exceptions import RayError
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from moshi_pipe.build import run_here
from moshi_pipe.config import OWN_ENGINE, EngineOptions
from moshi_pipe.errors import BackendError
from moshi_pipe.plugins import load_plugins
from moshi_pipe.progress import SilentUI
from moshi_pipe.server.guard import Doorman, machine_names, read_token
from moshi_pipe.server.messages import Close, error
from moshi_pipe.server.source import WebsocketSource

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.websockets import WebSocket

    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.host import Host
    from moshi_pipe.server.options import ServerOptions, WebsocketOptions

_SECRET: Final = "MOSHI_PIPE_CLUSTER_TOKEN"
_LOST: Final = 3001
"""Close code for a server whose client was lost: any but 1000 and 1001 keeps the conversation."""

_GONE_CODES: Final = (1000, 1001)
_REPORT_S: Final = 1.0
_HOP: Final = ("connection", "transfer-encoding", "content-length", "content-encoding", "date")
_LOG: Final = logging.getLogger("ray.serve")


def make_door() -> Starlette:
    """What Ray Serve passes requests to: all goes to the replica that runs in the process."""

    async def page(request: Request) -> Response:
        return await _replica().answer(request)

    async def chat(socket: WebSocket) -> None:
        await _replica().converse(socket)

    return Starlette(
        routes=[WebSocketRoute("/api/chat", chat), Route("/{path:path}", page, methods=["GET"])]
    )


def _replica() -> Replica:
    from ray import serve

    found: Replica = serve.get_replica_context().servable_object  # type: ignore[assignment]
    return found


class Replica:
    """An engine, its server and its door; a deployment of Ray Serve.

    Args:
        config: The run, with ``source=websocket``.
        secret: That the servers of all replicas ask for.
        directory: Handle of the actor that is a :class:`~moshi_pipe_ray.directory.Directory`.

    Raises:
        BackendError: The server did not come up; its error is the reason.
    """

    def __init__(self, config: RunConfig, secret: str, directory: Any) -> None:
        import ray

        os.environ[_SECRET] = self._secret = secret
        asked: WebsocketOptions = config.source.options
        self._doorman = Doorman(asked.server, read_token(asked.server), machine_names())
        self._directory = directory
        host = ray.util.get_node_ip_address()
        options = replace(asked, server=_inner(asked.server, host))
        self._config = _of_one(config, ray.get_runtime_context().get_actor_id())
        self._source = _Served(options)
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._ui = _Lines()
        self._thread = threading.Thread(target=self._run, name="moshi-pipe", daemon=True)
        self._thread.start()
        self._client: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._choosing = asyncio.Lock()
        self._coming = 0  # clients that our server does not count yet
        self._wait_for_server(host)
        self._address = f"http://{host}:{self._source.port}"

    async def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises.

        Raises:
            BackendError: The server has ended.
        """
        if not self._thread.is_alive():
            raise BackendError("the server of this replica has ended", got=str(self._failure))
        if not self._tasks:
            self._begin(self._tell_free())

    async def answer(self, request: Request) -> Response:
        """Answer a request for a page, or of a probe, as the server does."""
        path = request.url.path
        if path == "/metrics" and not self._doorman.knows(request.headers, request.query_params):
            return Response('{"error": "token"}', 401, media_type="application/json")
        headers = {"authorization": f"Bearer {self._secret}"}
        etag = request.headers.get("if-none-match")
        if etag is not None:
            headers["if-none-match"] = etag
        client = self._http()
        async with client.get(self._address + path, headers=headers) as found:
            body = await found.read()
            if path == "/api/info" and found.status == 200:
                own = {"auth": self._doorman.asks, "replica": {"host": os.uname().nodename}}
                own["replica"]["pid"] = os.getpid()
                body = json.dumps({**json.loads(body), **own}).encode()
            kept = {k: v for k, v in found.headers.items() if k.lower() not in _HOP}
            return Response(body, found.status, kept)

    async def converse(self, socket: WebSocket) -> None:
        """Let a client converse with the server that has its conversation, or room for one."""
        headers, query = socket.headers, socket.query_params
        known = self._doorman.knows(headers, query)
        if not known or not self._doorman.trusts(headers.get("origin"), headers.get("host")):
            await socket.close(Close.POLICY)  # before it is accepted: an answer with 403
            return
        words = [word for word in str(query).split("&") if not word.startswith("token=")]
        place = await self._place(query.get("resume"))
        try:
            await self._pass_on(socket, words, place)
        finally:
            self._arrived(place)

    async def _pass_on(self, socket: WebSocket, words: list[str], place: _Place) -> None:
        """Connect a client to the server that it belongs to."""
        address = place.address
        path = f"/api/chat?{'&'.join(words)}"
        try:
            try:
                inner = await self._connect(address + path)
            except aiohttp.ClientError:
                if address == self._address:
                    raise
                self._directory.forget.remote(address)  # ours says what becomes of its client
                address = place.address = self._address
                inner = await self._connect(address + path)
        except aiohttp.ClientError as failure:
            await socket.accept()
            await _refuse(socket, Close.TRY_LATER, "at_capacity", f"no server answers: {failure}")
            return
        await socket.accept()
        async with inner:
            await self._carry(socket, inner, place)

    async def _connect(self, url: str) -> Any:
        return await self._http().ws_connect(
            url,
            headers={"authorization": f"Bearer {self._secret}"},
            max_msg_size=0,
            autoclose=False,
        )

    async def _place(self, token: str | None) -> _Place:
        """The server that a client belongs to: that which has its conversation, or a free slot."""
        if token is not None:
            return _Place(await self._directory.holder.remote(token) or self._address)
        async with self._choosing:  # those who come together must not all count on the last slot
            if await self._free() - self._coming > 0:
                self._coming += 1
                return _Place(self._address, coming=True)
        return _Place(await self._directory.roomiest.remote(self._address) or self._address)

    def _arrived(self, place: _Place) -> None:
        """The server itself counts a client from now on."""
        if place.coming:
            place.coming = False
            self._coming -= 1

    async def _free(self) -> int:
        async with self._http().get(f"{self._address}/api/info") as found:
            if found.status != 200:
                return 0
            slots = (await found.json())["slots"]
        return int(slots["usable"] - slots["used"] - slots["waiting"])

    async def _carry(self, socket: WebSocket, inner: Any, place: _Place) -> None:
        """Carry messages both ways until one side has enough."""
        up = asyncio.create_task(_upwards(socket, inner))
        down = asyncio.create_task(self._downwards(socket, inner, place))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            for ended in await asyncio.gather(up, down, return_exceptions=True):
                if isinstance(ended, Exception):
                    _LOG.warning("a conversation was cut: %r", ended)

    async def _downwards(self, socket: WebSocket, inner: Any, place: _Place) -> None:
        while True:
            message = await inner.receive()
            self._arrived(place)
            if message.type == aiohttp.WSMsgType.BINARY:
                if message.data[:1] == b"\x04":
                    self._learn(message.data, place.address)
                await socket.send_bytes(message.data)
            elif message.type == aiohttp.WSMsgType.CLOSE:
                await socket.close(int(message.data or 1000), str(message.extra or ""))
                await inner.close()
                return
            elif message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR):
                self._directory.forget.remote(place.address)
                await _refuse(
                    socket, Close.RESTART, "engine_failed", "the replica that held it is gone"
                )
                return

    def _learn(self, data: bytes, address: str) -> None:
        """Remember where a conversation is, from what its client is told."""
        with suppress(ValueError, TypeError, AttributeError):
            told = json.loads(data[1:])
            if told.get("type") == "session":
                self._directory.holds.remote(told["resume"]["token"], address)

    async def _tell_free(self) -> None:
        """Tell the directory now and then how much room there is."""
        while True:
            with suppress(aiohttp.ClientError, RayError):
                free = await self._free()
                if await self._directory.report.remote(self._address, free):
                    self._source.stop_soon()
                    return
            await asyncio.sleep(_REPORT_S)

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _http(self) -> aiohttp.ClientSession:
        """The client, of the event loop that Ray Serve runs requests on."""
        if self._client is None:
            self._client = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
                connector=aiohttp.TCPConnector(limit=0),
            )
        return self._client

    def _run(self) -> None:
        """The server; on a thread of its own."""
        try:
            run_here(self._config, self._ui, load_plugins(), self._source)
        except BaseException as failure:
            self._failure = failure

    def _wait_for_server(self, host: str) -> None:
        """Wait until conversations can begin, however long the model takes to load."""
        from urllib.error import URLError
        from urllib.request import ProxyHandler, build_opener

        opener = build_opener(ProxyHandler({}))
        while self._thread.is_alive():
            if self._source.port:
                ready = f"http://{host}:{self._source.port}/readyz"
                with suppress(URLError, OSError), opener.open(ready, timeout=2):
                    return
            time.sleep(0.1)
        raise BackendError(
            "the server of a replica did not come up", got=str(self._failure)
        ) from self._failure


@dataclass(slots=True)
class _Place:
    """Where a client belongs, and whether that server does not count it yet."""

    address: str
    coming: bool = False


class _Served(WebsocketSource):
    """A server that may be stopped from another thread."""

    _loop: asyncio.AbstractEventLoop | None = None

    def attach(self, host: Host) -> None:
        """Remember the loop."""
        self._loop = asyncio.get_running_loop()
        super().attach(host)

    def stop_soon(self) -> None:
        """Let conversations end, then end."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop)


class _Lines(SilentUI):
    """Passes what the run says on to the log of the replica."""

    def note(self, text: str) -> None:
        """Log it."""
        _LOG.info("%s", text)

    def warn(self, text: str) -> None:
        """Log it."""
        _LOG.warning("%s", text)


async def _upwards(socket: WebSocket, inner: Any) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code", 1006)
            await inner.close(code=code if code in _GONE_CODES else _LOST)
            return
        data = message.get("bytes")
        if data is None:
            await inner.send_str(message.get("text") or "")
        else:
            await inner.send_bytes(data)


async def _refuse(socket: WebSocket, close: Close, code: str, what: str) -> None:
    await socket.send_bytes(error(code, what))
    await socket.close(close, code)


def _inner(server: ServerOptions, host: str) -> ServerOptions:
    """The server behind the door: found by replicas alone, which count as one address."""
    return replace(
        server,
        host=host,
        port=0,
        token_env=_SECRET,
        open=False,
        origins=["*"],
        tls_cert=None,
        tls_key=None,
        self_signed=False,
        tunnel=None,
        connections_per_address=server.max_connections,
    )


def _of_one(config: RunConfig, name: str) -> RunConfig:
    """The run of one replica: its own engine, and a folder of its own."""
    keys = [one.name for one in fields(EngineOptions)]
    values = {key: getattr(config.engine, key) for key in keys} | {"node": OWN_ENGINE}
    folder, url = f"replica-{name[:12]}", config.output_url
    return replace(
        config,
        engine=EngineOptions(**values),
        output_dir=config.output_dir / folder,
        output_url=None if url is None else f"{url}/{folder}",
    )
