"""Servers that refuse, break, or speak otherwise than they should: what a user is told."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("websockets")
pytest.importorskip("sphn")

from support.remote_runs import FRAMES, certificate, record, run
from support.rust_like_server import Heard, RustLikeServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def plain_server(answer: bytes) -> Iterator[str]:
    """Answers the first bytes of one connection with some of its own, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join(10)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, "it holds no conversations there: check the path of model.url"),
        (401, "model.api_key_env=NAME"),
        (403, "model.token_env=NAME"),
        (404, "/api/chat is usual"),
        (429, "this address has too many connections there: lower engine.slots"),
        (500, "check that model.url is a server of Moshi's protocol"),
        (503, "the server is not ready: try again later"),
    ],
)
def test_a_refusal_over_http_says_what_to_do(
    status: int, told: str, talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RustLikeServer(refuse=status) as server:
        assert run(server, talk) == 6

    said = capsys.readouterr().err
    assert f"the server at {server.url}/api/chat refused the connection" in said
    assert f"HTTP {status} " in said
    assert told in said


def test_what_is_no_websocket_server_is_told_apart(
    talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with plain_server(b"220 mail.example ready\r\n") as address:
        assert run(f"ws://{address}", talk) == 6

    assert f"what answers at ws://{address}/api/chat is no websocket server" in (
        capsys.readouterr().err
    )


def test_a_page_in_place_of_a_websocket_is_told_apart(
    talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    with plain_server(page) as address:
        assert run(f"ws://{address}", talk) == 6

    assert "HTTP 200 OK" in capsys.readouterr().err


def test_tls_to_a_server_without_it_is_told_apart(
    talk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moshi_pipe.remote.connection._OPEN_S", 0.5)
    with RustLikeServer() as server:
        assert run(server.url.replace("ws:", "wss:"), talk) == 6

    assert "a server without TLS has an address with ws://" in capsys.readouterr().err


def test_no_tls_to_a_server_with_it_is_told_apart(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RustLikeServer(tls=certificate(tmp_path)) as server:
        assert run(server.url.replace("wss:", "ws:"), talk) == 6

    assert "a server with TLS has an address with wss://" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["end_on_silence_s", "drop_until_pad_s", "first_frame"])
def test_what_only_a_model_here_obeys_is_refused_before_anything_is_asked(
    key: str, talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = "reset" if key == "first_frame" else "1"
    with RustLikeServer() as server:
        assert run(server, talk, f"{key}={value}") != 0

    assert key in capsys.readouterr().err
    assert server.heard == []


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (1013, b"", "has no room for a further conversation"),
        (1008, b"bad_request: seed must be a number", "bad_request: seed must be a number"),
        (1008, b"unauthorized: the token is wrong", "model.token_env=NAME"),
    ],
)
def test_a_close_before_the_start_is_told_in_the_servers_words(
    code: int, said: bytes, told: str, talk: Path
) -> None:
    async def refuse(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        if said:
            await socket.send(b"\x05" + said)
        await socket.close(code)

    with RustLikeServer(script=refuse) as server:
        assert run(server, talk) == 7

    assert told in record(talk)["error"]
    assert len(server.heard) == 1


def introduce(token: str) -> bytes:
    session = {"type": "session", "resume": {"token": token, "s": 30}, "resumed": False}
    return b"\x04" + json.dumps(session).encode()


def test_a_conversation_that_is_no_longer_held_begins_anew_once(talk: Path) -> None:
    async def forgetful(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        if "resume" in heard.query:
            await socket.send(b"\x05resume_failed: it is not held any more")
            await socket.close(1008)
            return
        await socket.send(b"\x00")
        await socket.send(introduce("T1"))
        first = len(server.heard) == 1
        async for message in socket:
            if message[:1] == b"\x01":
                heard.frames += 1
                if heard.frames > 1:
                    await socket.send(b"\x01" + message[1:])
                if first and heard.frames == 6:
                    socket.transport.abort()
            elif message == b"\x03\x01":
                await socket.close(1000, "done")

    with RustLikeServer(script=forgetful) as server:
        words = ["model.audio=pcm_f32le", "engine.inbox_frames=4"]
        assert run(server, talk, *words) == 0

    assert [heard.query.get("resume") for heard in server.heard] == [None, "T1", None]
    warnings = record(talk)["warnings"]
    assert any("did not hold the conversation any more" in warning for warning in warnings)


def test_a_server_that_refuses_to_resume_what_was_not_asked_for_ends_the_session(
    talk: Path,
) -> None:
    async def confused(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x05resume_failed: no")
        await socket.close(1008)

    with RustLikeServer(script=confused) as server:
        assert run(server, talk) == 7

    assert "resume_failed: no" in record(talk)["error"]
    assert len(server.heard) == 1


def test_after_a_time_limit_the_token_is_not_used_again(talk: Path) -> None:
    async def limited(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x00")
        await socket.send(introduce("T1"))
        async for message in socket:
            if message[:1] == b"\x01":
                heard.frames += 1
                if heard.frames > 1:
                    await socket.send(b"\x01" + message[1:])
                if heard.frames == 8:
                    await socket.close(1000, "time_limit")
            elif message == b"\x03\x01":
                await socket.close(1000, "done")

    with RustLikeServer(script=limited) as server:
        words = ["model.audio=pcm_f32le", "engine.inbox_frames=4"]
        assert run(server, talk, *words) == 0

    assert len(server.heard) == 2
    assert ["resume" in heard.query for heard in server.heard] == [False, False]
    assert record(talk)["frames"] == FRAMES


def test_a_server_that_speaks_on_for_ever_is_cut_off(
    talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moshi_pipe.remote.talk._LONGEST_TAIL", 30)

    async def endless(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x00")
        async for message in socket:
            heard.frames += 1
            if heard.frames == FRAMES:
                while True:
                    await socket.send(b"\x01" + message[1:])

    with RustLikeServer(script=endless) as server:
        assert run(server, talk, "model.audio=pcm_f32le") == 0

    # Those after the first frame, then thirty and the one that was too many.
    assert record(talk)["frames"] <= FRAMES + 31
    assert record(talk)["remote"]["surplus_frames"] == 31


def test_answers_that_never_came_are_counted_and_their_frames_kept(
    talk: Path,
) -> None:
    with RustLikeServer(offset=4) as server:
        assert run(server, talk, "sink.file.output=user_audio") == 0

    told = record(talk)
    assert told["remote"]["unanswered_frames"] == 2
    assert told["frames"] == FRAMES


def test_audio_in_another_format_is_told_apart(talk: Path) -> None:
    async def other(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x00")
        async for _ in socket:
            await socket.send(b"\x01" + b"RIFF" * 4000)

    with RustLikeServer(script=other) as server:
        assert run(server, talk) == 7

    assert "cannot be decoded" in record(talk)["error"]
