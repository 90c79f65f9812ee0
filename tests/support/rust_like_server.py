"""A server that does on the wire what the reference's Rust server does, and echoes as its model.

Metadata first, then a handshake of nine bytes; Opus in pages of 40 ms with serial 42, its header
pages in front of the first audio message; a first byte above 6 ends the session; so does the last
step. It answers frame k of what it hears with frame k-1 of its own: what it heard, at half the
amplitude, and a piece of text.

Source: kyutai-labs/moshi@e6a55d2 rust/protocol.md and rust/moshi-backend/src/stream_both.rs.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import sphn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

FRAME = 1920
SERIAL = 42  # that of sphn too, which is the same Rust code
METADATA = {"text_temperature": 0.7, "build_info": {"git_hash": "none"}}
HANDSHAKE = b"\x00" + struct.pack("<II", 0, 0)
PIECES = (" Hello", ",", " wor", "ld", "<0xC3>", "<0xA9>")


@dataclass
class Heard:
    """One connection, as the server saw it."""

    path: str = ""
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    messages: list[bytes] = field(default_factory=list)
    frames: int = 0
    close_code: int | None = None


class RustLikeServer:
    """Runs on a thread and a loop of its own while the block lasts.

    Args:
        tls: Certificate and key, as files.
        max_steps: Frames after which a session ends.
        handshake: What it begins with, after the metadata.
        script: Replaces what it does after accepting, for tests of faults.
    """

    def __init__(
        self,
        *,
        tls: tuple[str, str] | None = None,
        max_steps: int = 4500,
        handshake: bytes = HANDSHAKE,
        script: Callable[[RustLikeServer, Any, Heard], Any] | None = None,
    ) -> None:
        self.heard: list[Heard] = []
        self.port = 0
        self._tls = tls
        self._max_steps = max_steps
        self._handshake = handshake
        self._script = script
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    @property
    def url(self) -> str:
        return f"{'wss' if self._tls else 'ws'}://127.0.0.1:{self.port}"

    def __enter__(self) -> RustLikeServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _main(self) -> None:
        from websockets.asyncio.server import serve

        context = None
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with serve(self._accept, "127.0.0.1", 0, ssl=context, compression=None) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    async def _accept(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        parts = urlsplit(socket.request.path)
        heard = Heard(parts.path, dict(parse_qsl(parts.query)), dict(socket.request.headers))
        self.heard.append(heard)
        try:
            if self._script is not None:
                await self._script(self, socket, heard)
            else:
                await self.talk(socket, heard)
        except ConnectionClosed:
            pass
        heard.close_code = socket.close_code

    async def talk(self, socket: Any, heard: Heard) -> None:
        """Hold a conversation until either side ends it."""
        await socket.send(b"\x04" + json.dumps(METADATA).encode())
        await socket.send(self._handshake)
        reader, writer = sphn.OpusStreamReader(24000), sphn.OpusStreamWriter(24000)
        rest = np.zeros(0, np.float32)
        async for message in socket:
            heard.messages.append(message)
            if not message:
                continue
            if message[0] > 6:
                return
            if message[0] != 1:
                continue
            rest = np.concatenate([rest, reader.append_bytes(message[1:])])
            while rest.size >= FRAME:
                frame, rest = rest[:FRAME], rest[FRAME:]
                heard.frames += 1
                if heard.frames > 1:
                    pages = bytes(writer.append_pcm(frame * np.float32(0.5)))
                    await socket.send(b"\x01" + pages)
                    piece = PIECES[(heard.frames - 2) % len(PIECES)]
                    await socket.send(b"\x02" + piece.encode())
                if heard.frames >= self._max_steps:
                    return


def pages_of(data: bytes) -> Iterator[bytes]:
    """Whole Ogg pages of a byte string that begins with one. Source: RFC 3533, section 6."""
    at = 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
        segments = data[at + 26]
        size = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        yield data[at : at + size]
        at += size
