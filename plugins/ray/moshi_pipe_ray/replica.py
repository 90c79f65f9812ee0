"""One replica of a served model: an engine with its server.

The server is the one of ``source=websocket``, at an address of the node's own that asks for a
secret of the cluster; only doors come to it, see :mod:`moshi_pipe_ray.door`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from ray.exceptions import RayError

from moshi_pipe.build import run_here
from moshi_pipe.config import OWN_ENGINE, EngineOptions
from moshi_pipe.errors import BackendError
from moshi_pipe.plugins import load_plugins
from moshi_pipe.progress import SilentUI
from moshi_pipe.server.source import WebsocketSource
from moshi_pipe_ray.directory import Whereabouts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.host import Host
    from moshi_pipe.server.options import ServerOptions, WebsocketOptions

SECRET: Final = "MOSHI_PIPE_CLUSTER_TOKEN"
"""Environment variable, of replicas, with the secret of the cluster."""

_REPORT_S: Final = 1.0
_LOG: Final = logging.getLogger("ray.serve")


class Replica:
    """An engine and its server; a deployment of Ray Serve.

    Args:
        config: The run, with ``source=websocket``.
        secret: That its server asks for.
        directory: Handle of the actor that is a :class:`~moshi_pipe_ray.directory.Directory`.

    Raises:
        BackendError: The server did not come up; its error is the reason.
    """

    def __init__(self, config: RunConfig, secret: str, directory: Any) -> None:
        import ray

        os.environ[SECRET] = secret
        asked: WebsocketOptions = config.source.options
        self._directory = directory
        host = ray.util.get_node_ip_address()
        self._source = _Served(replace(asked, server=_inner(asked.server, host)))
        self._config = _of_one(config, ray.get_runtime_context().get_actor_id())
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="moshi-pipe", daemon=True)
        self._thread.start()
        self._wait_for_server(host)
        address = f"http://{host}:{self._source.port}"
        self._me = Whereabouts(address, os.uname().nodename, os.getpid())
        ray.get(directory.register.remote(self._me))
        self._reporting: asyncio.Task[None] | None = None

    async def hold(self) -> AsyncIterator[str]:
        """Keep a place for one conversation, until the caller cancels; gives the address.

        Ray Serve sends no more of these than there are slots, and lets a replica that it takes down
        finish them.
        """
        yield self._me.address
        await asyncio.Event().wait()

    async def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises.

        Raises:
            BackendError: The server has ended.
        """
        if not self._thread.is_alive():
            raise BackendError("the server of this replica has ended", got=str(self._failure))
        if self._reporting is None:
            self._reporting = asyncio.get_running_loop().create_task(self._report())

    async def _report(self) -> None:
        """Say now and then that this one is there, and end when all shall."""
        while True:
            with suppress(RayError):
                if await self._directory.register.remote(self._me):
                    self._source.stop_soon()
                    return
            await asyncio.sleep(_REPORT_S)

    def _run(self) -> None:
        """The server; on a thread of its own."""
        try:
            run_here(self._config, _Lines(), load_plugins(), self._source)
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


def _inner(server: ServerOptions, host: str) -> ServerOptions:
    """The server behind the doors, which count as one address."""
    return replace(
        server,
        host=host,
        port=0,
        token_env=SECRET,
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
