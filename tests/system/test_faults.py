"""What networks and machines do to conversations: delay, cuts, silence, killed clients."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from support.audio import babble
from support.proxy import Faults, Proxy
from support.serving import FRAME, ROOT, Heard, Pace, Server, talk
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

FAST = Pace(speed=None)
PCM = babble(24 * 0.08, seed=3)
WAIT_S = 30
TALKER = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], compression=None) as socket:
    while socket.recv() != b"\\x00":
        pass
    print(flush=True)
    while True:
        socket.send(b"\\x01" + bytes(4 * 1920))
        socket.recv()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    words = ["engine.slots=2", "engine.late=slow_down", "server.resume_s=10", "device=cpu"]
    words.append("numerics=reference")  # bit for bit, whoever else talks
    with Server(tmp_path_factory.mktemp("server"), *words) as server:
        yield server
        assert server.stop() == 0, "".join(server.lines)


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> Heard:
    """What a client hears on a good line."""
    heard = asyncio.run(talk(server.url, PCM, pace=FAST, seed=5))
    assert heard.close == (1000, "done")
    return heard


@pytest.mark.parametrize(
    "faults", [Faults(delay_s=0.02), Faults(piece=7), Faults(delay_s=0.001, piece=501)], ids=str
)
def test_a_slow_or_choppy_line_changes_nothing(
    server: Server, undisturbed: Heard, faults: Faults
) -> None:
    with Proxy(server.url, faults) as proxy:
        heard = asyncio.run(talk(proxy.url, PCM, pace=FAST, seed=5))

    assert heard.close == (1000, "done")
    assert heard.text == undisturbed.text
    assert np.array_equal(heard.pcm, undisturbed.pcm)


@pytest.mark.parametrize("half", [False, True], ids=["cut", "half_open"])
def test_a_line_that_breaks_is_taken_up_again(server: Server, half: bool) -> None:
    with Proxy(server.url) as proxy:
        with connect(chat(proxy.url), compression=None) as socket:
            session = begin(socket)
            send(socket, 5)
            listen(socket, 3)
            proxy.forget_client() if half else proxy.cut()
        with connect(
            chat(server.url, resume=session["resume"]["token"]), compression=None
        ) as again:
            resumed = begin(again)
            assert (resumed["resumed"], resumed["session"]) == (True, session["session"])
            send(again, 4)
            listen(again, 2)
            end(again)


def test_a_pulled_line_costs_the_others_nothing(server: Server, undisturbed: Heard) -> None:
    with Proxy(server.url) as proxy, connect(chat(proxy.url), compression=None) as socket:
        begin(socket)
        send(socket, 3)
        proxy.faults.deaf = True
        heard = asyncio.run(talk(server.url, PCM, pace=FAST, seed=5))

    assert heard.text == undisturbed.text
    assert np.array_equal(heard.pcm, undisturbed.pcm)


def test_a_killed_client_costs_the_others_nothing(server: Server, undisturbed: Heard) -> None:
    command = [sys.executable, "-c", TALKER, chat(server.url)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.readline()

        heard = asyncio.run(
            talk(
                server.url,
                PCM,
                pace=FAST,
                seed=5,
                on_seat=lambda: os.kill(client.pid, signal.SIGKILL),
            )
        )

    assert heard.close == (1000, "done")
    assert heard.text == undisturbed.text
    assert np.array_equal(heard.pcm, undisturbed.pcm)


def test_an_expired_certificate_is_refused_with_its_date(tmp_path: Path) -> None:
    expired(tmp_path)
    words = ["source=websocket", "sink=websocket", "server.port=0"]
    words += ["server.tls_cert=old.crt", "server.tls_key=old.key"]

    done = subprocess.run(
        [sys.executable, "-m", "moshi_pipe", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 2, done.stderr
    assert "expired" in done.stderr
    assert "Jan  2 00:00:00 2020" in done.stderr


def test_a_certificate_made_on_demand_is_announced_and_holds(tmp_path: Path) -> None:
    words = ["server.self_signed=true", "device=cpu"]
    with Server(tmp_path, *words, environment={"XDG_CACHE_HOME": str(tmp_path)}) as server:
        assert server.url.startswith("https://127.0.0.1:")
        (made,) = tmp_path.glob("**/moshi-pipe.crt")
        trusting = ssl.create_default_context(cafile=str(made))
        with urllib.request.urlopen(f"{server.url}/healthz", context=trusting, timeout=30) as got:
            assert got.status == 200
        with connect(chat(server.url), ssl=trusting, compression=None) as socket:
            begin(socket)
            send(socket, 3)
            listen(socket, 1)
        assert server.stop() == 0
    assert any("SHA-256" in line for line in server.lines)


def chat(url: str, **parameters: str) -> str:
    more = "".join(f"&{name}={value}" for name, value in parameters.items())
    return url.replace("http", "ws", 1) + f"/api/chat?audio=pcm_f32le{more}"


def begin(socket: Any) -> dict[str, Any]:
    """Wait for the handshake; returns what the server says of the session."""
    while socket.recv(WAIT_S) != b"\x00":
        pass
    message = socket.recv(WAIT_S)
    assert message[0] == 4
    told: dict[str, Any] = json.loads(message[1:])
    return told


def send(socket: Any, frames: int) -> None:
    for _ in range(frames):
        socket.send(b"\x01" + bytes(4 * FRAME))


def listen(socket: Any, frames: int) -> None:
    """Read until so many frames of sound were heard."""
    while frames:
        frames -= socket.recv(WAIT_S)[0] == 1


def end(socket: Any) -> None:
    """Say that it is all, so that the slot is free for the next test."""
    socket.send(b"\x03\x01")
    with suppress(ConnectionClosed):
        while True:
            socket.recv(WAIT_S)


def expired(folder: Path) -> None:
    """Write a certificate of January 2020 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc))
        .not_valid_after(datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc))
        .sign(key, hashes.SHA256())
    )
    (folder / "old.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "old.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
