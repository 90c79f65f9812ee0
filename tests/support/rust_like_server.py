"""Servers that do on the wire what the reference's Rust servers do, and echo as their model.

``backend`` is moshi-backend: metadata first, then a handshake of nine bytes; Opus in messages of
one page of 40 ms with serial 42, the header pages in front of the first. ``lm`` is the language
model of moshi-server: no metadata, the header pages in a message of their own right after the
handshake, a page of 80 ms per message, text in front of its audio. Both: a first byte above 6 ends
the session; so does the last step; a session ends without a word, its connection drops. The first
two frames have no answer; then each is answered by itself, at half the amplitude, and by a piece of
text.

Source: kyutai-labs/moshi@e6a55d2 rust/protocol.md, rust/moshi-backend/src/stream_both.rs and
rust/moshi-server/src/lm.rs.
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
        style: ``backend`` or ``lm``.
        tls: Certificate and key, as files.
        max_steps: Frames after which a session ends.
        handshake: What it begins with.
        offset: Frames without an answer.
        refuse: Status of the answer to everybody, in place of a websocket.
        script: Replaces what it does after accepting, for tests of faults.
    """

    def __init__(
        self,
        *,
        style: str = "backend",
        tls: tuple[str, str] | None = None,
        max_steps: int = 4500,
        handshake: bytes = HANDSHAKE,
        offset: int = 2,
        refuse: int | None = None,
        script: Callable[[RustLikeServer, Any, Heard], Any] | None = None,
    ) -> None:
        self.heard: list[Heard] = []
        self.port = 0
        self._style = style
        self._tls = tls
        self._offset = offset
        self._refuse = refuse
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

        def look(connection: Any, request: Any) -> Any:
            return connection.respond(self._refuse, "no") if self._refuse else None

        options: dict[str, Any] = {"ssl": context, "compression": None, "process_request": look}
        async with serve(self._accept, "127.0.0.1", 0, **options) as server:
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
        reader, writer = sphn.OpusStreamReader(24000), sphn.OpusStreamWriter(24000)
        lm = self._style == "lm"
        if not lm:
            await socket.send(b"\x04" + json.dumps(METADATA).encode())
        await socket.send(self._handshake)
        if lm:
            await socket.send(b"\x01" + header_pages())
        rest = np.zeros(0, np.float32)
        async for message in socket:
            heard.messages.append(message)
            if not message:
                continue
            if message[0] > 6:
                break
            if message[0] != 1:
                continue
            rest = np.concatenate([rest, reader.append_bytes(message[1:])])
            while rest.size >= FRAME:
                frame, rest = rest[:FRAME], rest[FRAME:]
                heard.frames += 1
                if heard.frames > self._offset:
                    piece = PIECES[(heard.frames - self._offset - 1) % len(PIECES)].encode()
                    pages = list(pages_of(bytes(writer.append_pcm(frame * np.float32(0.5)))))
                    if len(pages) == 4:  # the first time, with two of headers
                        pages = pages[2:] if lm else [b"".join(pages[:3]), pages[3]]
                    said = [b"\x01" + page for page in ([b"".join(pages)] if lm else pages)]
                    text = [b"\x02" + piece]
                    for answer in [*text, *said] if lm else [*said, *text]:
                        await socket.send(answer)
                if heard.frames >= self._max_steps:
                    # It drops the connection; what was written before that still arrives.
                    socket.transport.close()
                    return


def header_pages() -> bytes:
    """What an Ogg Opus stream begins with."""
    first = bytes(sphn.OpusStreamWriter(24000).append_pcm(np.zeros(FRAME, np.float32)))
    return b"".join(list(pages_of(first))[:2])


def pages_of(data: bytes) -> Iterator[bytes]:
    """Whole Ogg pages of a byte string that begins with one. Source: RFC 3533, section 6."""
    at = 0
    while at < len(data):
        assert data[at : at + 4] == b"OggS"
        segments = data[at + 26]
        size = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        yield data[at : at + size]
        at += size
