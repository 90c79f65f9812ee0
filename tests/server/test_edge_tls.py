"""Conversations over TLS go as fast as without."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.edge import N, edge, noise, run
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from moshi_pipe.server.options import ServerOptions
from moshi_pipe.server.tls import prepare_tls

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("cryptography")

WITHIN_S = 4.0  # a websocket ping, which sets going what is stuck, comes after 8


def test_answers_over_tls_wait_for_nothing(tmp_path: Path) -> None:
    options, made = prepare_tls(ServerOptions(self_signed=True), tmp_path)
    assert made is not None
    context = ssl.create_default_context(cafile=str(made.cert))
    sent = noise(5)

    async def talk() -> None:
        async with edge(options) as one:
            url = f"wss://127.0.0.1:{one.port}/api/chat?audio=pcm_f32le"
            async with connect(url, ssl=context, compression=None) as client:
                assert await asyncio.wait_for(client.recv(), WITHIN_S) == b"\x00"
                await asyncio.wait_for(client.recv(), WITHIN_S)
                heard: list[bytes] = []
                for frame_N in sent:
                    await client.send(b"\x01" + frame_N.tobytes())
                    answer = await asyncio.wait_for(client.recv(decode=False), WITHIN_S)
                    await asyncio.wait_for(client.recv(), WITHIN_S)  # its text
                    heard.append(answer[1:])
                await client.send(b"\x03\x01")
                with suppress(ConnectionClosed):
                    await asyncio.wait_for(client.recv(), WITHIN_S)
                assert client.close_code == 1000
            assert np.array_equal(np.frombuffer(b"".join(heard), "<f4").reshape(-1, N), -sent)

    run(talk)
