"""Listening sockets, and what guards a connection below HTTP and websockets.

uvicorn's protocols, with what they leave open closed: a connection that never asks for anything or
takes no answer ends after :data:`HTTP_S`; one that is not heard of for two times :data:`PING_S` is
lost; pings that nobody reads the answers of and messages in thousands of pieces cost nothing; what
waits in a transport is one message; and a close that is not answered ends in an abort.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from moshi_pipe.server.guard import Bucket

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from starlette.types import ASGIApp

    from moshi_pipe.server.guard import Connections
    from moshi_pipe.server.options import ServerOptions

HTTP_S: Final = 15.0
"""Seconds that a request, or its answer, may take; not those of a websocket."""

PING_S: Final = 8.0
"""Seconds between two pings of a websocket, and those that the answer may take."""

CLOSE_S: Final = 3.0
"""Seconds that a client has to answer a close."""

_LAST_S: Final = 0.2  # for closes on their way, when the process ends
_READ_BYTES: Final = 16_384  # at once: some ten milliseconds of work if all of it are tiny messages
_UNSENT_BYTES: Final = 8_192  # in the kernel; more would be seconds of Opus that cannot be skipped
_PIECES_PER_S: Final = 200  # pings, pongs and continued pieces of messages


class HttpProtocol(H11Protocol):
    """A connection that is not yet, or never, a websocket.

    Args:
        config: Of uvicorn.
        state: Shared by all connections.
        sockets: Counts them, by address.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, sockets: Connections) -> None:
        super().__init__(config, state, {})
        self._sockets = sockets
        self._place: str | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._last_cycle: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in where there is room; count it until its socket is closed."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        if self._sockets.enter(address) is not None:
            transport.abort()
            return
        self._place = address
        _read_little(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._end_limit()
        if self._place is not None:
            self._sockets.leave(self._place)
            self._place = None

    def data_received(self, data: bytes) -> None:
        """Give a new request its time."""
        super().data_received(data)
        if self.cycle is not self._last_cycle:
            self._last_cycle = self.cycle
            self._begin()

    def on_response_complete(self) -> None:
        """Give the next request its time."""
        super().on_response_complete()
        self._begin()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Hand the connection over, with its place among the others."""
        self._end_limit()
        super().handle_websocket_upgrade(event)
        protocol = self.transport.get_protocol()
        if isinstance(protocol, WebsocketProtocol) and self._place is not None:
            protocol.place = (self._sockets, self._place)
            self._place = None

    def _begin(self) -> None:
        self._end_limit()
        if not self.transport.is_closing():
            self._limit = self.loop.call_later(HTTP_S, self.transport.abort)

    def _end_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


class WebsocketProtocol(WebSocketsSansIOProtocol):
    """A connection that asked for a websocket.

    Attributes:
        place: What counts it and under which address, to be told of its end.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.place: tuple[Connections, str] | None = None
        self.close_timeout = CLOSE_S
        self._pieces = Bucket(_PIECES_PER_S, 2 * _PIECES_PER_S)
        self._heard_at = 0.0
        self._aborts: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Let nothing pile up on the way to the client."""
        super().connection_made(transport)
        # Not 0: of TLS, an empty buffer is above that, and writing pauses until something comes.
        transport.set_write_buffer_limits(high=1, low=0)
        _read_little(transport)
        raw = transport.get_extra_info("socket")
        with suppress(OSError, AttributeError):  # not of every system
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell an end without a close apart from one with."""
        if self.conn.close_rcvd is None:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        super().connection_lost(exc)
        if self._aborts is not None:
            self._aborts.cancel()
        if self.place is not None:
            connections, address = self.place
            connections.leave(address)
            self.place = None

    def data_received(self, data: bytes) -> None:
        """Note that the client is there."""
        self._heard_at = self.loop.time()
        super().data_received(data)

    def handle_ping(self) -> None:
        """Answer, unless the client does not read: then only its last ping matters, if any."""
        answer = b"".join(self.conn.data_to_send())
        if self._may_go_on() and self.writable.is_set():
            self.transport.write(answer)

    def handle_pong(self, event: Any) -> None:
        """Count it."""
        if self._may_go_on():
            super().handle_pong(event)

    def handle_cont(self, event: Any) -> None:
        """Count the piece, which may be empty and so escape the limit of size."""
        if self._may_go_on():
            super().handle_cont(event)

    def keepalive_timeout(self) -> None:
        """Drop a client that was not heard of; a pong may wait behind what is not read yet."""
        if self.read_paused or self._heard_at > self.ping_sent_at:
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        self.transport.abort()

    async def run_asgi(self) -> None:
        """Serve; a close that is not answered, or cannot be sent, ends in an abort."""
        await super().run_asgi()
        if not self.disconnected:
            self._aborts = self.loop.call_later(CLOSE_S + 1, self.transport.abort)

    def _may_go_on(self) -> bool:
        if self._pieces.take(self.loop.time()):
            return True
        if not self.close_sent:
            self.conn.fail(1008, "too_fast")
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1008})
            self.transport.close()
            self._aborts = self.loop.call_later(CLOSE_S, self.transport.abort)
        return False


class Listener:
    """Accepts connections for an application until it is closed.

    Args:
        app: The application.
        options: Of the server.
        sockets: Counts the connections of every kind, by address.
        tls: How to speak TLS; None speaks none.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        sockets: Connections,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws=WebsocketProtocol,
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            ws_max_size=options.message_bytes,
            ws_ping_interval=PING_S,
            ws_ping_timeout=PING_S,
            ws_per_message_deflate=False,
            timeout_keep_alive=5,
        )
        self._config.load()
        self._state = ServerState()
        self._sockets = sockets
        self._tls = tls
        self._servers: list[asyncio.Server] = []

    @property
    def num_connections(self) -> int:
        """Connections of every kind now."""
        return len(self._state.connections)

    @property
    def num_tasks(self) -> int:
        """Requests and conversations now."""
        return len(self._state.tasks)

    async def start(self, listening: Sequence[socket.socket]) -> None:
        """Accept from bound sockets, which it owns from now on."""
        loop = asyncio.get_running_loop()
        for one in listening:
            server = await loop.create_server(
                lambda: HttpProtocol(self._config, self._state, self._sockets),
                sock=one,
                ssl=self._tls,
                backlog=128,
                ssl_handshake_timeout=None if self._tls is None else HTTP_S,
            )
            self._servers.append(server)

    def stop_accepting(self) -> None:
        """Accept nobody any more; those who are in stay."""
        for server in self._servers:
            server.close()

    async def close(self, within_s: float) -> None:
        """Wait for what is open to end, and abort what does not."""
        self.stop_accepting()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=within_s)
        await asyncio.sleep(_LAST_S if self._state.connections else 0)
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _read_little(transport: asyncio.BaseTransport) -> None:
    """Make a transport of the event loop read less at once; TLS has pieces of this size anyway."""
    if hasattr(transport, "max_size"):
        transport.max_size = _READ_BYTES
