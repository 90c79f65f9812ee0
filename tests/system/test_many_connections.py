"""A server that is left alone, and one that many come to and leave: what they cost."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from socket import SHUT_RDWR
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from support.serving import FRAME, Server
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
IDLE_S = 20
MB = 1_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    words = ["engine.slots=2", "engine.late=slow_down", "server.resume_s=0", "device=cpu"]
    with Server(tmp_path, *words) as server:
        yield server


def test_a_server_that_nobody_talks_to_takes_under_one_percent_of_a_core(server: Server) -> None:
    pids = server.pids()
    time.sleep(2)  # what starting left to do
    before, began = cpu_s(pids), time.monotonic()
    time.sleep(IDLE_S)

    share = (cpu_s(pids) - before) / (time.monotonic() - began)

    assert share < 0.01, f"{100 * share:.2f} % of a core"


def test_a_thousand_connections_leave_nothing_behind(server: Server) -> None:
    come_and_go(server, 100)
    rss, files, threads = (measure(server) for measure in (rss_bytes, open_files, num_threads))
    come_and_go(server, 900)

    assert open_files(server) <= files
    assert num_threads(server) <= threads
    assert rss_bytes(server) - rss < 10 * MB


def come_and_go(server: Server, times: int) -> None:
    """Connect, talk, hear, and leave: in turn with a word, without one, and by breaking off."""
    url = server.url.replace("http", "ws", 1) + "/api/chat?audio=pcm_f32le"
    for number in range(times):
        with connect(url, compression=None) as socket:
            while socket.recv(30) != b"\x00":
                pass
            for _ in range(2):
                socket.send(b"\x01" + bytes(4 * FRAME))
            while socket.recv(30)[0] != 1:
                pass
            if number % 3 == 0:
                socket.send(b"\x03\x01")
                read_to_end(socket)
            elif number % 3 == 1:
                socket.socket.shutdown(SHUT_RDWR)


def read_to_end(socket: Any) -> None:
    with suppress(ConnectionClosed):
        while True:
            socket.recv(30)


def cpu_s(pids: list[int]) -> float:
    """Seconds of processor time that processes took so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


def rss_bytes(server: Server) -> int:
    """Memory of all its processes."""
    pages = (int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in server.pids())
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def open_files(server: Server) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.pids())


def num_threads(server: Server) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in server.pids())
