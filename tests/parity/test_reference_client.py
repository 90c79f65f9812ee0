"""Clients of the reference's servers talk to ours: its own code, and what the others send."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")

from support.serving import Server
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from moshi_pipe.server.ogg import PageReader, PageWriter, build_page
from moshi_pipe.server.opus import OpusDecoder, OpusEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from websockets.frames import Close

pytestmark = [pytest.mark.parity, pytest.mark.timeout(240)]

FRAME = 1920
SECONDS = 3.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    words = ["device=cpu", "engine.slots=1", f"server.max_s={SECONDS}", f"output_dir={folder}/out"]
    with Server(folder, *words) as running:
        yield running


class Sound:
    """What the client's code takes for a sound card: a hum goes in, what comes out is kept."""

    def __init__(self) -> None:
        self.heard: list[npt.NDArray[np.float32]] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def module(self) -> ModuleType:
        module: Any = ModuleType("sounddevice")
        module.InputStream = lambda **options: _Stream(self, self._speak, options)
        module.OutputStream = lambda **options: _Stream(self, self._listen, options)
        assert isinstance(module, ModuleType)
        return module

    def start(self, work: Any, callback: Any) -> None:
        thread = threading.Thread(target=work, args=(callback,))
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)

    def _speak(self, callback: Any) -> None:
        at = 0
        while not self._over.wait(FRAME / 24_000):
            callback(hum(at, FRAME)[:, None], FRAME, None, None)
            at += FRAME

    def _listen(self, callback: Any) -> None:
        while not self._over.wait(FRAME / 24_000):
            out = np.ones((FRAME, 1), np.float32)
            callback(out, FRAME, None, None)
            self.heard.append(out[:, 0])


class _Stream:
    def __init__(self, sound: Sound, work: Any, options: dict[str, Any]) -> None:
        assert (options["samplerate"], options["blocksize"]) == (24000, FRAME)
        self._sound, self._work, self._callback = sound, work, options["callback"]

    def __enter__(self) -> _Stream:
        self._sound.start(self._work, self._callback)
        return self

    def __exit__(self, *_: object) -> None:
        self._sound.stop()


class Printer:
    """Keeps what the client's code says."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, str]] = []
        self.text = ""
        self.lags = 0

    def log(self, level: str, message: str) -> None:
        self.logged.append((level, message))

    def print_token(self, token: str) -> None:
        self.text += token

    def print_lag(self) -> None:
        self.lags += 1

    def print_header(self) -> None:
        pass

    def print_pending(self) -> None:
        pass


def hum(at: int, samples: int) -> npt.NDArray[np.float32]:
    wave: npt.NDArray[np.float32] = (0.3 * np.sin(np.arange(at, at + samples) * 0.06)).astype(
        np.float32
    )
    return wave


def test_the_references_own_client_is_answered_until_the_time_is_over(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = Sound()
    printer: Any = Printer()
    monkeypatch.setitem(sys.modules, "sounddevice", sound.module())
    monkeypatch.delitem(sys.modules, "moshi.client", raising=False)
    import moshi.client

    url = server.url.replace("http", "ws", 1)
    arguments = argparse.Namespace(url=url, host=None, port=None, https=False)
    asyncio.run(asyncio.wait_for(moshi.client.run(printer, arguments), 60))

    spoken = [frame for frame in sound.heard if frame.any()]
    # All but the first of 37 frames are answered; some may come too late to be played.
    assert len(spoken) > 15
    assert printer.text
    assert ("info", "connected!") in printer.logged
    others = {message for level, message in printer.logged if level != "info"}
    assert others <= {"unknown message kind 0", "unknown message kind 4"}


async def exchange(url: str, messages: list[bytes], *, pause_s: float) -> list[bytes]:
    """Send messages without waiting for anything, and take all that comes until the close."""
    came: list[bytes] = []
    end: Close | None = None
    async with connect(url, compression=None) as socket:

        async def send() -> None:
            for message in messages:
                await socket.send(message)
                await asyncio.sleep(pause_s)

        sending = asyncio.ensure_future(send())
        try:
            while True:
                came.append(await asyncio.wait_for(socket.recv(decode=False), 30))
        except ConnectionClosed as closed:
            end = closed.rcvd
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    assert end is not None
    assert (end.code, end.reason) == (1000, "done")
    return came


def spoken(came: list[bytes]) -> int:
    """Samples of the answer, as a decoder finds them that knows nothing of us."""
    decoder = OpusDecoder()
    stream = b"".join(message[1:] for message in came if message[0] == 1)
    samples = decoder.push(stream).size
    assert decoder.num_faults == 0
    return samples


def sounds(frames: int) -> list[bytes]:
    """Packets of 40 ms."""
    pages = PageReader().push(OpusEncoder().push(hum(0, frames * FRAME)))
    return [page.parts[0] for page in pages]


def test_what_the_rust_client_sends_is_answered(server: Server) -> None:
    """Its headers and its first packet are one message; positions count samples at 24 kHz."""
    head, tags, *packets = sounds(12)
    writer = PageWriter(42)
    messages = [b"\x01" + writer.write(head, flags=2) + writer.write(tags)]
    for number, packet in enumerate(packets, start=1):
        page = writer.write(packet, number * 960)
        if number == 1:
            messages[0] += page
        else:
            messages.append(b"\x01" + page)
    messages.insert(9, b"\x03\x00")  # its Enter key
    messages.append(b"\x03\x01")  # its space bar
    url = server.url.replace("http", "ws", 1) + "/api/chat"

    came = asyncio.run(exchange(url, messages, pause_s=0.04))

    assert came[0] == b"\x00"
    assert 0 < spoken(came) <= 12 * FRAME
    assert {message[0] for message in came} <= {0, 1, 2, 4}


def test_what_the_references_page_sends_is_answered(server: Server) -> None:
    """Its recorder puts two packets in a page, and its address holds all its parameters."""
    head, tags, *packets = sounds(12)
    writer = PageWriter(7)
    messages = [b"\x01" + writer.write(head, flags=2), b"\x01" + writer.write(tags)]
    for number in range(0, len(packets), 2):
        pair = packets[number : number + 2]
        table = b"".join(b"\xff" * (len(one) // 255) + bytes([len(one) % 255]) for one in pair)
        page = build_page(b"".join(pair), table, (number + 2) * 1920, 7, 2 + number // 2)
        messages.append(b"\x01" + page)
    query = (
        "worker_auth_id=1&email=a%40example.org&text_temperature=0.7&text_topk=25"
        "&audio_temperature=0.8&audio_topk=100&pad_mult=0&text_seed=271828&audio_seed=314159"
        "&repetition_penalty_context=64&repetition_penalty=1"
    )
    url = server.url.replace("http", "ws", 1) + f"/api/chat?{query}"

    came = asyncio.run(exchange(url, [*messages, b"\x03\x01"], pause_s=0.08))

    session = json.loads(came[1][1:])
    assert session["seed"] == 314159
    assert session["sampling"]["audio_topk"] == 100
    assert 0 < spoken(came) <= 12 * FRAME
