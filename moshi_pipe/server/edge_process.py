"""An edge process: sockets, TLS, Opus and resampling, beside the engine's process.

It knows no model and imports no torch. What it is started with is told in
:mod:`moshi_pipe.server.link`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.engine.clock import SystemClock
from moshi_pipe.server.app import Front, make_app
from moshi_pipe.server.conversation import Setting
from moshi_pipe.server.guard import Connections, Doorman, LogLines, machine_names, read_token
from moshi_pipe.server.lane import LaneError, Lanes, map_memory
from moshi_pipe.server.link import LinkError, open_link
from moshi_pipe.server.listener import Listener
from moshi_pipe.server.messages import Close
from moshi_pipe.server.options import ServerOptions
from moshi_pipe.server.switchboard import Switchboard
from moshi_pipe.server.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.server.link import Link

STOP_S: Final = 1.5
"""Seconds that clients have to take what waits for them at the end."""

_FAILED: Final = 1


def main(options_json: str, listen_fds: str, link_fd: str, memory_fd: str) -> int:
    """Serve until the engine's process says ``stop``, or is gone.

    Args:
        options_json: What it is started with.
        listen_fds: Descriptors of listening sockets, comma separated.
        link_fd: Descriptor of its end of the link.
        memory_fd: Descriptor of the memory of its lanes.

    Returns:
        0; 1 if the engine's process and this one do not understand each other.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start = json.loads(options_json)
    listening = [_inherit(int(one)) for one in listen_fds.split(",") if one]
    end = _inherit(int(link_fd))
    memory = map_memory(int(memory_fd))
    os.close(int(memory_fd))
    lanes = Lanes(memory, start["lanes"], start["frame_samples"])
    return asyncio.run(_run(start, listening, end, lanes))


async def _run(
    start: dict[str, Any], listening: Sequence[socket.socket], end: socket.socket, lanes: Lanes
) -> int:
    link = await open_link(end)
    options = ServerOptions(**start["server"])
    lines = LogLines(
        lambda level, text: link.send({"op": "log", "level": level, "text": text}), time.monotonic
    )
    logging.getLogger().addHandler(lines)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # else addresses, tokens included
    try:
        return await serve(start["edge"], options, listening, link, lanes)
    finally:
        logging.getLogger().removeHandler(lines)


async def serve(
    edge: int,
    options: ServerOptions,
    listening: Sequence[socket.socket],
    link: Link,
    lanes: Lanes,
) -> int:
    """Serve clients of bound sockets; both they and the link are closed in the end.

    Args:
        edge: Its number.
        options: Of the server.
        listening: Bound sockets.
        link: To the engine's process.
        lanes: That it shares.

    Returns:
        0; 1 if the engine's process and this one do not understand each other.
    """
    sockets = Connections.of_sockets(options)
    board = Switchboard(
        link, lanes, lambda: {"connections": sockets.total, "conversations": len(board)}
    )
    front = Front(
        board,
        Doorman(options, read_token(options), machine_names()),
        Connections(options.max_connections, options.connections_per_address),
        Setting(link, options, SystemClock(), board.count, board.log),
    )
    listener = Listener(make_app(front), options, sockets, tls_context(options))
    await listener.start(listening)
    link.send({"op": "hello", "edge": edge, "pid": os.getpid()})
    code = 0
    try:
        await board.listen()
    except (LinkError, LaneError, KeyError, TypeError, ValueError) as error:
        board.log(f"the engine's process makes no sense: {error!r}")
        code = _FAILED
    listener.stop_accepting()
    if board.stopped:
        board.end_all(Close.GOING_AWAY, "shutdown", "shutdown: the server stops")
    else:
        board.end_all(Close.RESTART, "engine failed", "engine_failed: its process is gone")
    await listener.close(STOP_S)
    board.close()
    link.close()
    return code


def _inherit(descriptor: int) -> socket.socket:
    inherited = socket.socket(fileno=descriptor)
    inherited.set_inheritable(False)
    return inherited
