"""A server as a process, and clients that talk to it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from support.model import RANDOM
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
FRAME = np.zeros(1920, "<f4").tobytes()
AUDIO, TEXT, METADATA = 1, 2, 4
WAIT_S = 30


class Server:
    """A server of one slot on a free port. Lossless, clients may talk as fast as they like."""

    def __init__(self, folder: Path, *words: str, code: str | None = None) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                *(("-m", "moshi_pipe") if code is None else ("-c", code)),
                RANDOM,
                "source=websocket",
                "sink=websocket",
                "server.port=0",
                "device=cpu",
                f"output_dir={folder}/out",
                *words,
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        self.said: list[str] = []
        self.port = self._port()

    def _port(self) -> int:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "talk at http://127.0.0.1:" in line:
                return int(line.rpartition(":")[2])
        raise AssertionError("".join(self.said))

    def end(self) -> tuple[int, str]:
        """Ask it to stop, and return its exit code and what it said."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, "".join(self.said) + err + out

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def edges(self) -> list[int]:
        """Its edge processes."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(one) for thread in threads for one in thread.read_text().split()]


class Client:
    """Talks in PCM; keeps what it was told."""

    def __init__(self, server: Server, query: str = "") -> None:
        self.sound = b""
        self.text = ""
        self.said: list[dict[str, Any]] = []
        url = f"ws://127.0.0.1:{server.port}/api/chat?audio=pcm_f32le{query}"
        self._stack = ExitStack()
        self.socket = self._stack.enter_context(connect(url, compression=None))

    def begin(self) -> dict[str, Any]:
        """Wait for the handshake; returns what the server says of the session."""
        while (message := self._next()) != b"\x00":
            self._take(message)
        return self.told("session")

    @property
    def audio(self) -> int:
        """Bytes of what was heard."""
        return len(self.sound)

    def talk(self, frames: int) -> None:
        for _ in range(frames):
            self.socket.send(b"\x01" + FRAME)

    def hear(self, frames: int) -> None:
        """Read until so much was heard."""
        while self.audio < frames * len(FRAME):
            self._take(self._next())

    def told(self, kind: str) -> dict[str, Any]:
        """Read until the server says this."""
        while not (found := [one for one in self.said if one["type"] == kind]):
            self._take(self._next())
        self.said.remove(found[0])
        return found[0]

    def end(self) -> tuple[int, str]:
        """Read until the server closes."""
        with pytest.raises(ConnectionClosed) as closed:
            self._read()
        self.close()
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code, closed.value.rcvd.reason

    def close(self) -> None:
        self._stack.close()

    def vanish(self) -> None:
        """Be gone without a word."""
        self.socket.socket.shutdown(socket.SHUT_RDWR)
        self.close()

    def _read(self) -> None:
        while True:
            self._take(self._next())

    def _next(self) -> bytes:
        message = self.socket.recv(WAIT_S)
        assert isinstance(message, bytes)
        return message

    def _take(self, message: bytes) -> None:
        if message[0] == AUDIO:
            self.sound += message[1:]
        elif message[0] == TEXT:
            self.text += message[1:].decode()
        elif message[0] == METADATA:
            self.said.append(json.loads(message[1:]))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Path(folder), "engine.late=slow_down") as server,
    ):
        yield server
        code, said = server.end()
    assert code == 0, said


def test_a_client_talks_and_is_answered_by_sound_and_words(server: Server) -> None:
    client = Client(server, "&seed=1")
    session = client.begin()
    assert session["seed"] == 1
    client.talk(20)
    client.socket.send(b"\x03\x01")
    assert client.end() == (1000, "done")
    assert client.audio >= 18 * len(FRAME)
    assert client.text


def test_the_same_seed_is_answered_the_same(server: Server) -> None:
    answers = []
    for _ in range(2):
        client = Client(server, "&seed=7")
        client.begin()
        client.talk(12)
        client.socket.send(b"\x03\x01")
        client.end()
        answers.append((client.audio, client.text))
    assert answers[0] == answers[1]


def test_another_client_waits_for_the_slot_and_gets_it(server: Server) -> None:
    first = Client(server)
    first.begin()
    second = Client(server)
    assert second.told("queue") == {"type": "queue", "position": 1, "waiting": 1}
    first.close()
    second.begin()
    second.talk(3)
    second.hear(1)
    second.close()


def test_a_client_that_was_cut_off_goes_on_where_it_was(server: Server) -> None:
    client = Client(server)
    session = client.begin()
    client.talk(5)
    client.hear(2)
    client.vanish()
    again = Client(server, f"&resume={session['resume']['token']}")
    resumed = again.begin()
    assert resumed["resumed"] is True
    assert resumed["session"] == session["session"]
    assert resumed["limits"]["left_s"] < session["limits"]["left_s"]
    again.talk(5)
    again.hear(3)
    again.close()
    late = Client(server, f"&resume={session['resume']['token']}")
    assert late.end() == (1008, "resume_failed")


def test_a_slot_is_given_away_and_its_conversation_goes_on_to_the_last_bit(server: Server) -> None:
    whole = Client(server, "&seed=3")
    whole.begin()
    whole.talk(20)
    whole.hear(19)
    whole.close()

    client = Client(server, "&seed=3")
    token = client.begin()["resume"]["token"]
    client.talk(8)
    client.hear(7)
    client.vanish()
    other = Client(server, "&seed=4")  # there is one slot: the state of the first is parked
    other.begin()
    other.talk(5)
    other.hear(4)
    again = Client(server, f"&resume={token}")
    assert again.told("queue")["position"] == 1
    other.close()
    assert again.begin()["resumed"] is True
    again.talk(12)
    again.hear(12)
    assert client.sound + again.sound == whole.sound
    again.close()


FAILS = """
import sys
from moshi_pipe.cli import main
from moshi_pipe.engine.stages import LMStage

step = LMStage.step

def failing(self, inputs, tick):
    if self._running().num_steps.max() == 5:
        raise RuntimeError("a stone in the machine")
    return step(self, inputs, tick)

LMStage.step = failing
sys.exit(main(sys.argv[1:]))
"""


def test_a_failed_engine_is_said_and_another_serves(tmp_path: Path) -> None:
    with Server(tmp_path, "engine.restarts=1", "engine.late=slow_down", code=FAILS) as server:
        client = Client(server)
        client.begin()
        waiting = Client(server)
        waiting.told("queue")
        client.talk(8)
        close, reason = client.end()
        assert close == 1012
        assert reason.startswith("engine failed: the engine stopped: a tick failed")
        assert "a stone in the machine" in reason
        waiting.begin()  # by the new engine
        waiting.talk(3)
        waiting.hear(2)
        waiting.talk(5)
        assert waiting.end()[0] == 1012
        _, err = server.process.communicate(timeout=60)
        assert server.process.returncode == 6, err
        assert "none lasts (engine.restarts)" in err


def test_a_server_that_is_stopped_says_so_and_ends(tmp_path: Path) -> None:
    with Server(tmp_path, "server.drain_s=1") as server:
        client = Client(server)
        client.begin()
        (edge,) = server.edges()
        server.process.send_signal(signal.SIGTERM)
        assert client.told("ending") == {"type": "ending", "reason": "shutdown", "in_s": 1.0}
        assert client.end() == (1001, "shutdown")
        _, err = server.process.communicate(timeout=30)
        assert server.process.returncode == 0, err
        assert not Path(f"/proc/{edge}").exists()


def test_a_port_that_is_taken_ends_the_run(tmp_path: Path, server: Server) -> None:
    words = ["source=websocket", "sink=websocket", f"server.port={server.port}"]
    done = subprocess.run(
        [sys.executable, "-m", "moshi_pipe", *words, f"output_dir={tmp_path}/out"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    assert f"cannot listen on 127.0.0.1, port {server.port}" in done.stderr
    assert "server.port=" in done.stderr


def test_no_process_is_left_when_that_of_the_engine_is_killed(tmp_path: Path) -> None:
    with Server(tmp_path, "edge.processes=2") as server:
        edges = server.edges()
        assert len(edges) == 2
        client = Client(server)
        client.begin()
        watched = [os.pidfd_open(edge) for edge in edges]
        server.process.kill()
        server.process.communicate(timeout=30)
        for one in watched:
            ended, _, _ = select.select([one], [], [], WAIT_S)
            os.close(one)
            assert ended


def test_an_edge_that_is_killed_is_started_anew(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        client = Client(server)
        token = client.begin()["resume"]["token"]
        (edge,) = server.edges()
        os.kill(edge, signal.SIGKILL)
        with pytest.raises(ConnectionClosed):
            client.told("never")
        again = Client(server, f"&resume={token}")  # waits in the socket that outlives the process
        assert again.begin()["resumed"] is True
        again.close()
        code, said = server.end()
        assert code == 0, said
        assert "an edge process ended" in said
