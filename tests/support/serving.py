"""A served model and its clients: the real command, and conversations over websockets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

import numpy as np

from moshi_pipe.server.messages import Control, Kind, build, parse
from support.model import RANDOM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

ROOT: Final = Path(__file__).resolve().parents[2]
FRAME: Final = 1920
FRAME_S: Final = 0.08
_COMMAND: Final = [sys.executable, "-m", "moshi_pipe"]
_START_S: Final = 120.0
_URL: Final = re.compile(r"https?://\S+?:\d+")


class Server:
    """The command ``source=websocket`` as a process; use as a context manager.

    Args:
        folder: Where it runs.
        words: Of its configuration besides source, sink and port.
        environment: Variables to add.

    Attributes:
        url: Such as ``http://127.0.0.1:40001``.
        process: The process.
        lines: The last lines that it wrote.
    """

    def __init__(
        self, folder: Path, *words: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.url = ""
        self.lines: deque[str] = deque(maxlen=500)
        self._ready = threading.Event()
        chosen = [] if any(w.startswith("sink=") for w in words) else ["sink=websocket"]
        self.process = subprocess.Popen(
            [*_COMMAND, RANDOM, "source=websocket", "server.port=0", *chosen, *words],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Server:
        if not self._ready.wait(_START_S) or not self.url:
            self.stop()
            raise RuntimeError("the server did not start:\n" + "".join(self.lines))
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.stop()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def stop(self) -> int:
        """Stop it as a service manager does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(5)
            if self.process.stderr is not None:
                self.process.stderr.close()

    def pids(self) -> list[int]:
        """The engine's process, then its edges."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return [self.process.pid, *map(int, listed.stdout.split())]

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as written:
            for line in written:
                self.lines.append(line)
                found = _URL.search(line)
                if found and not self.url:
                    self.url = found[0]
                    self._ready.set()
        self._ready.set()


@dataclass
class Heard:
    """What a client was sent.

    Attributes:
        audio: PCM frames, float32 ``[N]`` each.
        text: All text.
        metadata: JSON objects in order.
        errors: Error messages in order.
        close: Code and reason of the close.
        latency_ms: For each answer: from the moment its input frame was sent until it was here.
        sent: Frames that were sent.
        seated_s: Time from connecting to the handshake.
    """

    audio: list[npt.NDArray[np.float32]] = field(default_factory=list)
    text: str = ""
    metadata: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    close: tuple[int, str] | None = None
    latency_ms: list[float] = field(default_factory=list)
    sent: int = 0
    seated_s: float | None = None

    @property
    def pcm(self) -> npt.NDArray[np.float32]:
        """All audio, ``[N]``."""
        return np.concatenate(self.audio) if self.audio else np.zeros(0, np.float32)

    def session(self) -> dict[str, Any]:
        """The metadata of the session."""
        return next(m for m in self.metadata if m["type"] == "session")

    def stats(self) -> list[dict[str, Any]]:
        """The statistics that came along."""
        return [m for m in self.metadata if m["type"] == "stats"]


@dataclass(frozen=True)
class Pace:
    """How a client sends.

    Attributes:
        speed: Frames per frame duration; None sends as fast as the server takes them.
        jitter_s: Largest delay of a frame, drawn evenly.
        seed: Of the delays.
    """

    speed: float | None = 1.0
    jitter_s: float = 0.0
    seed: int = 0


async def talk(
    url: str,
    pcm: npt.NDArray[np.float32],
    *,
    pace: Pace | None = None,
    on_seat: Callable[[], None] | None = None,
    **parameters: Any,
) -> Heard:
    """Hold one conversation of raw floats: wait for a seat, send all, say that it is all, listen.

    Args:
        url: The server's, ``http://...``.
        pcm: float32 ``[N]`` at 24 kHz; cut to whole frames.
        pace: How it is sent; real time unless said.
        on_seat: Called once the handshake is here.
        parameters: Of the query.
    """
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    heard = Heard()
    query = urlencode({"audio": "pcm_f32le", **parameters})
    address = url.replace("http", "ws", 1) + f"/api/chat?{query}"
    frames = pcm[: len(pcm) // FRAME * FRAME].reshape(-1, FRAME)
    began = time.monotonic()
    sent_at: deque[float] = deque()
    async with connect(address, compression=None, max_size=None, ping_interval=None) as socket:
        sender: asyncio.Task[None] | None = None
        try:
            while True:
                message = parse(await socket.recv())
                if message.kind is Kind.HANDSHAKE:
                    heard.seated_s = time.monotonic() - began
                    if on_seat is not None:
                        on_seat()
                    sender = asyncio.create_task(
                        _send(socket, frames, pace or Pace(), sent_at, heard)
                    )
                _take(heard, message.kind, message.payload, sent_at)
        except ConnectionClosed as closed:
            if closed.rcvd is not None:
                heard.close = closed.rcvd.code, closed.rcvd.reason
        finally:
            if sender is not None:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
    return heard


def _take(heard: Heard, kind: Kind, payload: bytes, sent_at: deque[float]) -> None:
    if kind is Kind.AUDIO:
        heard.audio.append(np.frombuffer(payload, "<f4"))
        # The first frame gives nothing: answer k belongs to frame k + 1.
        if len(sent_at) > 1:
            sent_at.popleft()
            heard.latency_ms.append(1000 * (time.monotonic() - sent_at[0]))
    elif kind is Kind.TEXT:
        heard.text += payload.decode()
    elif kind is Kind.METADATA:
        heard.metadata.append(json.loads(payload))
    elif kind is Kind.ERROR:
        heard.errors.append(payload.decode())


async def _send(socket: Any, frames: Any, pace: Pace, sent_at: deque[float], heard: Heard) -> None:
    rng = np.random.default_rng(pace.seed)
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number, frame in enumerate(frames):
        if pace.speed is not None:
            due = start + (number + 1) * FRAME_S / pace.speed + rng.uniform(0, pace.jitter_s)
            await asyncio.sleep(max(0.0, due - loop.time()))
        sent_at.append(time.monotonic())
        await socket.send(build(Kind.AUDIO, frame.astype("<f4").tobytes()))
        heard.sent += 1
    await socket.send(build(Kind.CONTROL, bytes([Control.END_TURN])))
