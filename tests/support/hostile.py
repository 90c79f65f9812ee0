"""Clients that mean no good: garbage, a flood, and one that never reads."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np

from moshi_pipe.server.messages import Kind, build
from support.serving import FRAME

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def _chat(url: str) -> str:
    return url.replace("http", "ws", 1) + "/api/chat"


async def garbage(url: str, seconds: float) -> None:
    """Send random bytes as messages and as Opus, and come back whenever it is thrown out."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException

    rng = np.random.default_rng(1)
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        with suppress(WebSocketException, OSError):
            async with connect(_chat(url), compression=None) as socket:
                while True:
                    kind = int(rng.integers(0, 256))
                    await socket.send(bytes([kind]) + os.urandom(int(rng.integers(0, 2000))))
                    await socket.send(build(Kind.AUDIO, os.urandom(300)))
                    await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)


async def flood(url: str, seconds: float) -> None:
    """Send audio as fast as the socket takes it, and come back whenever it is thrown out."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException

    frame = build(Kind.AUDIO, np.zeros(FRAME, "<f4").tobytes())
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        with suppress(WebSocketException, OSError):
            async with connect(_chat(url) + "?audio=pcm_f32le", compression=None) as socket:
                while True:
                    await socket.send(frame)
                    await asyncio.sleep(0)
        await asyncio.sleep(0.5)


async def never_reads(url: str, seconds: float) -> None:
    """Send audio in real time and read not a byte of what comes back."""
    host, port = url.split("//", 1)[1].split(":")
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        with suppress(OSError, asyncio.IncompleteReadError):
            await _deaf(host, int(port), until)
        await asyncio.sleep(0.5)


async def _deaf(host: str, port: int, until: float) -> None:
    """One connection: the upgrade by hand, since a websocket library would read on its own."""
    reader, writer = await asyncio.open_connection(host, port, limit=1024)
    request = (
        f"GET /api/chat?audio=pcm_f32le HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    try:
        writer.write(request.encode())
        await reader.readuntil(b"\r\n\r\n")
        payload = build(Kind.AUDIO, np.zeros(FRAME, "<f4").tobytes())
        head = bytes([0x82, 0x80 | 126]) + len(payload).to_bytes(2, "big") + bytes(4)
        while asyncio.get_running_loop().time() < until:
            writer.write(head + payload)  # a mask of zeros leaves the payload as it is
            await writer.drain()
            await asyncio.sleep(0.08)
    finally:
        writer.transport.abort()


HOSTILE: Final[tuple[Callable[[str, float], Awaitable[None]], ...]] = (garbage, flood, never_reads)
