"""Source ``websocket``: a session per client, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.server.desk import Desk
from moshi_pipe.server.info import edge_facts, server_info
from moshi_pipe.server.listening import check_options, listen, url
from moshi_pipe.server.messages import Close
from moshi_pipe.server.metrics import ServerMetrics
from moshi_pipe.server.process import EdgeProcess, start_edge
from moshi_pipe.server.tls import prepare_tls
from moshi_pipe.server.tunnel import check_tunnel, open_tunnel

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Coroutine

    from moshi_pipe.errors import MoshiPipeError
    from moshi_pipe.graph.host import Host
    from moshi_pipe.server.guest import Guest
    from moshi_pipe.server.options import WebsocketOptions
    from moshi_pipe.server.tls import SelfSigned
    from moshi_pipe.server.tunnel import Tunnel

EXTRA: Final = ("starlette", "uvicorn", "websockets", "prometheus_client")
"""Modules of the extra ``server`` without which nothing can be served."""

_TICK_S: Final = 0.5
_STOP_S: Final = 3.0
_RESTART_S: Final = 1.0
_MOST_RESTART_S: Final = 30.0
_log = logging.getLogger("moshi_pipe.server")


class WebsocketSource(Source):
    """Serves clients by edge processes of its own; :mod:`~moshi_pipe.server` says how.

    Args:
        options: Where it listens, who may come in, and what they may do.
        now_s: A clock.

    Attributes:
        port: Where it listens; 0 before.

    Raises:
        ConfigError: An option is out of bounds, or lets strangers in unasked.
        BackendError: The extra ``server`` is not installed.
    """

    live = True
    endless = True
    can_wait = True

    def __init__(
        self, options: WebsocketOptions, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        check_options(options.server, options.edge)
        check_tunnel(options.server)
        missing = [name for name in EXTRA if find_spec(name) is None]
        if missing:
            raise BackendError(
                "source=websocket needs packages that are not installed",
                got=f"no {' and no '.join(missing)}",
                fix="pip install 'moshi-pipe[server]'",
            )
        self.port = 0
        self._options = options.server
        self._made: SelfSigned | None = None
        self._tunnel: Tunnel | None = None
        self._num_edges = options.edge.processes
        self._now_s = now_s
        self._arrived: asyncio.Queue[Guest | None] = asyncio.Queue()
        self._desk = Desk(
            options.server, now_s, self._arrived.put_nowait, self._answer, self._greet
        )
        self._metrics = ServerMetrics(self._desk.counts, self._desk.lobby)
        self._host: Host | None = None
        self._why = "the model is being loaded"
        self._frame_samples = 0
        self._edges: set[EdgeProcess] = set()
        self._greeted: set[int] = set()
        self._listening: list[socket.socket] = []
        self._keeping: list[asyncio.Task[None]] = []  # edge processes
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def num_sessions(self) -> int | None:
        """Take port and certificate: a run that has none ends before its model is loaded.

        Raises:
            InputError: The address cannot be listened on.
            ConfigError: The certificate cannot be used.
        """
        if not self._listening:
            self._options, self._made = prepare_tls(self._options)
            self._listening = listen(self._options.host, self._options.port)
            self.port = self._listening[0].getsockname()[1]
        return None

    def attach(self, host: Host) -> None:
        """The engine is ready, for the first time or again."""
        self._host = self._metrics.host = host
        self._frame_samples = host.facts.frame_samples
        self._desk.set_host(host)
        for edge in self._edges:
            self._say_ready(edge)

    def engine_lost(self, error: MoshiPipeError) -> None:
        """The engine is gone: conversations are closed, the others wait for another."""
        why = error.what if error.got is None else f"{error.what} ({error.got})"
        self._host = self._metrics.host = None
        self._why = f"engine failed: {why}"
        for edge in self._edges:
            self._say_ready(edge)
        self._desk.set_host(None, why)

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Serve, and give a session per client that has a slot.

        Raises:
            InputError: The address cannot be listened on.
            BackendError: The tunnel does not open.
        """
        self.num_sessions()
        assert self._host is not None, "a run attaches its engine before it asks for sessions"
        try:
            await self._open_tunnel()
            self._keeping = [
                asyncio.create_task(self._keep_edge(number)) for number in range(self._num_edges)
            ]
            self._begin(self._keep_time())
            while (guest := await self._arrived.get()) is not None:
                yield guest
        finally:
            await self._close()

    def stop(self) -> None:
        """Let nobody in any more, give who is there ``drain_s``, then end all."""
        if self._stopping:
            self._desk.end_all("shutdown")
            return
        self._stopping = True
        in_s = self._options.drain_s
        for edge in self._edges:
            edge.link.send({"op": "drain"})
        self._desk.drain(in_s)
        self._begin(self._drain(in_s))

    async def _drain(self, in_s: float) -> None:
        """Wait for conversations to end, then end them, then let the source end."""
        for within_s in (in_s, _STOP_S):
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._desk.empty(), within_s)
            self._desk.end_all("shutdown")
        self._desk.close_all(Close.GOING_AWAY, "shutdown")  # of what does not end by itself
        self._arrived.put_nowait(None)

    async def _open_tunnel(self) -> None:
        """Get the public address, whose page may connect then."""
        self._tunnel = await open_tunnel(self._options, self.port)
        if self._tunnel is not None:
            origins = [*self._options.origins, self._tunnel.url]
            self._options = replace(self._options, origins=origins)

    async def _keep_time(self) -> None:
        while True:
            await self._desk.visited()
            self._desk.tick()
            await asyncio.sleep(_TICK_S)

    async def _keep_edge(self, number: int) -> None:
        """Run an edge process, and another when it ends."""
        wait_s = _RESTART_S
        while not self._stopping:
            started_s = self._now_s()
            await self._run_edge(number)
            if self._stopping:
                return
            self._desk.counts.edge_ends += 1
            if self._now_s() - started_s > _MOST_RESTART_S:
                wait_s = _RESTART_S
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MOST_RESTART_S)

    async def _run_edge(self, number: int) -> None:
        """Run an edge process to its end."""
        try:
            edge = await start_edge(
                number,
                self._options,
                self._listening,
                num_lanes=self._options.max_connections,
                frame_samples=self._frame_samples,
            )
        except OSError as error:
            _log.error("an edge process could not be started: %s", error)
            return
        self._edges.add(edge)
        last_words = ""
        try:
            self._say_ready(edge)
            await self._desk.listen(edge)
        finally:
            self._edges.discard(edge)
            last_words = await edge.end(_STOP_S)
        if not self._stopping:
            _log.error("an edge process ended, and is started anew\n%s", last_words)

    def _say_ready(self, edge: EdgeProcess) -> None:
        if self._host is None:
            edge.link.send({"op": "not_ready", "why": self._why})
        else:
            facts = edge_facts(self._host.facts, self._options)
            edge.link.send({"op": "ready", "facts": facts})

    def _greet(self, number: int) -> None:
        """An edge process accepts clients: once all do, say where."""
        if number not in self._greeted:
            self._greeted.add(number)
            if len(self._greeted) == self._num_edges:
                self._say_where()

    def _say_where(self) -> None:
        _log.info("talk at %s", url(self._options, self.port))
        if self._made is not None:
            _log.warning(
                "the certificate is of our own making: browsers warn of it once; its SHA-256 is %s",
                self._made.fingerprint,
            )
        if self._tunnel is not None:
            _log.info(
                "talk at %s from anywhere; %s carries it", self._tunnel.url, self._options.tunnel
            )

    def _answer(self, what: str) -> Any:
        """Answer what an edge process is asked by a client."""
        if what == "metrics":
            return self._metrics.text()
        if what == "info" and self._host is not None:
            return server_info(self._host, self._options, self._desk.lobby)
        return None

    async def _close(self) -> None:
        """End the edge processes, in bounded time."""
        self._stopping = True
        self._desk.end_all("shutdown")
        for edge in self._edges:
            edge.link.send({"op": "stop"})
        if self._keeping:
            await asyncio.wait(self._keeping, timeout=_STOP_S)
        tasks = [*self._tasks, *self._keeping]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._tunnel is not None:
            with suppress(Exception):  # its errors are the service's own, and it ends with us
                await asyncio.wait_for(self._tunnel.close(), _STOP_S)
        for one in self._listening:
            one.close()
        self._listening = []

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
