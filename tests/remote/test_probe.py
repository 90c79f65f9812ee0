"""What ``doctor`` says about the server of a remote model."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("websockets")
pytest.importorskip("sphn")

from support.rust_like_server import Heard, RustLikeServer

from moshi_pipe.compose import load_run
from moshi_pipe.doctor_checks import FAIL, OK, WARN, Context, Finding, check_memory, check_speed
from moshi_pipe.overrides import prepare
from moshi_pipe.plugins import load_plugins


def context(url: str) -> Context:
    words = prepare(["model=remote", f"model.url={url}"])
    return Context(lambda: load_run(words, load_plugins().nodes, need_source=False))


def ask(url: str) -> Finding:
    finding = check_speed(context(url))
    assert finding.title == "server"
    return finding


def test_nothing_of_a_remote_model_is_loaded() -> None:
    finding = check_memory(context("ws://me:secret@far:8998?token=hidden"))

    assert finding.status == OK
    assert finding.found == "remote runs at ws://far:8998/api/chat: nothing of it is loaded here"


@pytest.mark.parametrize(
    ("handshake", "told"), [(b"\x00" * 9, "as the Rust servers"), (b"\x00", "as the Python server")]
)
def test_a_server_of_the_reference_is_ok(handshake: bytes, told: str) -> None:
    with RustLikeServer(handshake=handshake) as server:
        finding = ask(server.url)

    assert finding.status == OK
    assert finding.found.startswith(f"{server.url}/api/chat began after ")
    assert finding.found.endswith(told)
    assert server.heard[0].messages == []


def test_a_moshi_pipe_server_says_what_it_is() -> None:
    async def ours(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x00")
        session = {"type": "session", "server": "moshi-pipe 0.1.0", "model": "embedded"}
        await socket.send(b"\x04" + json.dumps(session).encode())
        await socket.wait_closed()

    with RustLikeServer(script=ours) as server:
        finding = ask(server.url)

    assert finding.status == OK
    assert finding.found.endswith(": moshi-pipe 0.1.0, model embedded")


def test_a_full_server_is_warned_of() -> None:
    async def full(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x05at_capacity: all 4 slots are in use; try again later")
        await socket.close(1013)

    with RustLikeServer(script=full) as server:
        finding = ask(server.url)

    assert finding.status == WARN
    assert "all 4 slots are in use" in finding.found


def test_a_server_that_is_not_there_fails() -> None:
    finding = ask("ws://127.0.0.1:9")

    assert finding.status == FAIL
    assert finding.found.startswith("no server answers at ws://127.0.0.1:9/api/chat")
    assert finding.fix.startswith("start it")
