"""The application of an edge process: routes, and who may use them.

``/healthz`` and ``/readyz`` are open to anyone, as is ``/api/info``, which tells what a page needs
to know before its user has entered a token and names no client. ``/metrics`` and ``/api/chat`` ask
for the token where there is one.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from moshi_pipe.server import messages
from moshi_pipe.server.conversation import Conversation, Setting
from moshi_pipe.server.messages import Close
from moshi_pipe.server.pages import HEADERS, SecureHeaders, read_pages
from moshi_pipe.server.request import BadRequest, parse_request
from moshi_pipe.server.switchboard import NoAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request as HttpRequest
    from starlette.types import ASGIApp

    from moshi_pipe.server.guard import Connections, Doorman
    from moshi_pipe.server.pages import Page
    from moshi_pipe.server.switchboard import Switchboard

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of Prometheus' text. Source: prometheus.io, exposition formats."""

_NO_STORE: Final = {"cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class Front:
    """What the routes need.

    Attributes:
        board: To the engine.
        doorman: Checks tokens and origins.
        connections: Counts those that want to converse.
        setting: What conversations share.
    """

    board: Switchboard
    doorman: Doorman
    connections: Connections
    setting: Setting


def make_app(front: Front, pages: Mapping[str, Page] | None = None) -> ASGIApp:
    """The application.

    Args:
        front: What its routes need.
        pages: Files of the web page; None reads those of the package.
    """
    files = read_pages() if pages is None else pages

    async def page(request: HttpRequest) -> Response:
        file = files[request.scope["path"]]  # of `url`, a strange Host makes another path
        headers = {"etag": file.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.body, headers=headers, media_type=file.media_type)

    async def healthz(_: HttpRequest) -> Response:
        return PlainTextResponse("ok", headers=_NO_STORE)

    async def readyz(_: HttpRequest) -> Response:
        why = front.board.why_not
        return PlainTextResponse(why or "ok", 503 if why else 200, _NO_STORE)

    async def metrics(request: HttpRequest) -> Response:
        if not front.doorman.knows(request.headers, request.query_params):
            return _unauthorized()
        return await _answer(front, "metrics")

    async def info(_: HttpRequest) -> Response:
        return await _answer(front, "info")

    async def no_upgrade(_: HttpRequest) -> Response:
        return PlainTextResponse(
            "this address is for websockets", 426, {**_NO_STORE, "upgrade": "websocket"}
        )

    async def chat(socket: WebSocket) -> None:
        await _chat(front, socket)

    routes = [
        *(Route(path, page) for path in files),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/api/info", info),
        Route("/api/chat", no_upgrade),
        WebSocketRoute("/api/chat", chat),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return SecureHeaders(app, HEADERS)


async def _answer(front: Front, what: str) -> Response:
    try:
        value = await front.board.ask(what)
    except NoAnswer as error:
        return PlainTextResponse(str(error), 503, _NO_STORE)
    if what == "metrics":
        return Response(str(value), headers=_NO_STORE, media_type=METRICS_TYPE)
    return JSONResponse(value, headers=_NO_STORE)


async def _chat(front: Front, socket: WebSocket) -> None:
    denied = _deny(front, socket)
    if denied is not None:
        await socket.send_denial_response(denied)
        return
    address = _address(socket)
    full = front.connections.enter(address)
    if full == "address":
        front.board.count("refused.address")
        await socket.send_denial_response(
            JSONResponse({"error": "too_many_connections"}, 429, {**_NO_STORE, "retry-after": "5"})
        )
        return
    if full is not None:
        front.board.count("refused.connections")
        with suppress(WebSocketDisconnect):
            await _refuse(
                socket, Close.TRY_LATER, "too_many_connections", "the server has no room; try later"
            )
        return
    try:
        await _converse(front, socket)
    except WebSocketDisconnect:
        front.board.count("gone_at_once")
    finally:
        front.connections.leave(address)


def _deny(front: Front, socket: WebSocket) -> Response | None:
    """The answer to a client that may not even come in; None if it may."""
    headers = socket.headers
    if not front.doorman.trusts(headers.get("origin"), headers.get("host")):
        front.board.count("refused.origin")
        return JSONResponse({"error": "origin"}, 403, _NO_STORE)
    if not front.doorman.knows(headers, socket.query_params):
        front.board.count("refused.token")
        return _unauthorized()
    if front.board.facts is None or front.board.why_not is not None:
        front.board.count("refused.not_ready")
        return JSONResponse(
            {"error": "not_ready", "why": front.board.why_not},
            503,
            {**_NO_STORE, "retry-after": "5"},
        )
    return None


async def _converse(front: Front, socket: WebSocket) -> None:
    facts: dict[str, Any] = dict(front.board.facts or {})
    try:
        request = parse_request(socket.scope["query_string"].decode("latin-1"), facts)
    except BadRequest as error:
        front.board.count("refused.bad_request")
        await _refuse(socket, Close.POLICY, "bad_request", str(error))
        return
    if request.num_ignored:
        front.board.count("requests.unknown_parameters")
    await socket.accept()
    conversation = Conversation(
        front.board.number(), _Socket(socket), request, facts, front.setting
    )
    front.board.enter(conversation)
    try:
        await conversation.run()
    finally:
        front.board.leave(conversation)


async def _refuse(socket: WebSocket, close: Close, code: str, what: str) -> None:
    """Let a client in to tell it why not: a page cannot read the answer to a failed upgrade."""
    await socket.accept()
    await socket.send_bytes(messages.error(code, what))
    await socket.close(close, code)


class _Socket:
    """A websocket as conversations know it."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def receive(self) -> Mapping[str, Any]:
        return await self._socket.receive()

    async def send_bytes(self, data: bytes) -> None:
        await self._socket.send_bytes(data)

    async def close(self, code: int, reason: str) -> None:
        await self._socket.close(code, reason)


def _unauthorized() -> Response:
    return JSONResponse({"error": "token"}, 401, {**_NO_STORE, "www-authenticate": "Bearer"})


def _address(socket: WebSocket) -> str:
    return socket.client.host if socket.client else ""
