"""A TCP proxy that spoils what passes through it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Self

_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


@dataclass
class Faults:
    """What the proxy does; may be changed while connections are open.

    Attributes:
        delay_s: Wait so long before each piece is passed on.
        piece: Largest piece that is passed on, in bytes; partial writes.
        deaf: Take what comes from either side and pass on nothing, as a line that was pulled does.
    """

    delay_s: float = 0.0
    piece: int = 65_536
    deaf: bool = False


class Proxy:
    """Passes connections on to a server on the loopback; use as a context manager.

    Args:
        url: The server's, ``http://127.0.0.1:PORT``.
        faults: What it does to them.

    Attributes:
        url: The proxy's own.
        faults: As given.
    """

    def __init__(self, url: str, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.url = ""
        self._port = int(url.rpartition(":")[2])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        opened = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, "127.0.0.1", 0), self._loop
        )
        self._server = opened.result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        self._loop.call_soon_threadsafe(self._cut)

    def forget_client(self) -> None:
        """Reset the clients' sides; the server's stay open and silent, half a connection each."""
        self._loop.call_soon_threadsafe(self._forget_client)

    def _cut(self) -> None:
        for pair in self._pairs:
            for writer in pair:
                _reset(writer)

    def _forget_client(self) -> None:
        self.faults.deaf = True
        for client, _ in self._pairs:
            _reset(client)

    async def _close(self) -> None:
        self._server.close()
        self._cut()
        ours = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not ours]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._pairs.append((writer, back))
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(self.faults.piece):
            if self.faults.delay_s:
                await asyncio.sleep(self.faults.delay_s)
            if not self.faults.deaf:
                writer.write(data)
                await writer.drain()
        if not self.faults.deaf:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    plain = writer.get_extra_info("socket")
    if plain is not None and plain.fileno() >= 0:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
