"""Posts to a real server on this machine that answers as each test wants."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from moshi_pipe_webhook.options import WebhookOptions
from moshi_pipe_webhook.sender import Sender, sign
from moshi_pipe_webhook.sink import WebhookSink

from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Format, Text
from moshi_pipe.graph.node import SessionEnd, SessionInfo
from moshi_pipe.graph.packet import Packet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

WAIT_S = 30.0


@dataclass
class Hook:
    """A server that remembers what it got.

    Attributes:
        answers: Status and headers per request, in order; after the last, 200.
        requests: Headers and body of each.
        ports: Of the clients.
        times: When each came, in seconds.
        hold: Requests wait for it before they are answered.
        came: Set with each request.
    """

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    came: threading.Event = field(default_factory=threading.Event)

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


@contextmanager
def serving(*answers: int | tuple[int, dict[str, str]], hold: bool = False) -> Iterator[Hook]:
    hook = Hook(answers=[(a, {}) if isinstance(a, int) else a for a in answers])
    if not hold:
        hook.hold.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = hook.answers.pop(0) if hook.answers else (200, {})
            hook.times.append(time.monotonic())
            hook.ports.add(self.client_address[1])
            hook.requests.append((dict(self.headers), body))
            hook.came.set()
            hook.hold.wait(WAIT_S)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *args: object) -> None:
            """Say nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                """The client gave up waiting."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hook.url = f"http://127.0.0.1:{server.server_address[1]}/words?room=1"
    try:
        yield hook
    finally:
        hook.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


PIECES = ["<unk>", "<s>", "</s>", "<pad>", "▁Hello", "▁wor", "ld", ".", "▁New", "▁day", "▁é"]
PAD = 3


class Tokenizer:
    padding_id, word_start_id, eos_id = PAD, 0, 2

    def piece(self, token: int) -> str:
        return PIECES[token]

    def is_byte(self, token: int) -> bool:
        return False

    def is_control(self, token: int) -> bool:
        return token < 4


def session(folder: Path, *, text: bool = True, name: str = "s") -> SessionInfo:
    from fractions import Fraction

    formats: dict[str, Format] = {"text": Text(len(PIECES), Fraction(25, 2))} if text else {}
    tokenizer = Tokenizer() if text else None
    meta = {"stem": "talk" if name == "s" else name}
    return SessionInfo(name, meta, folder, formats, 0.08, 0, tokenizer=tokenizer)


def options(url: str, **changes: Any) -> WebhookOptions:
    return WebhookOptions(**{"url": url, "backoff_s": 0.01, "max_backoff_s": 0.05, **changes})


async def talk(
    sink: WebhookSink, tokens: Sequence[int], folder: Path, name: str = "s"
) -> Mapping[str, Any]:
    """One session that says these tokens, a frame each."""
    await sink.open(session(folder, name=name))
    for frame, token in enumerate(tokens):
        await sink.write(Packet("text", frame, frame * 80_000_000, token))
    return await sink.close(SessionEnd(len(tokens)))


SPOKEN = [0, 4, 0, 5, 6, 7, 0, 8, 0, 9]  # Hello world. New day


def run(url: str, folder: Path, tokens: Sequence[int] = SPOKEN, **changes: Any) -> Any:
    return asyncio.run(talk(WebhookSink(options(url, **changes)), tokens, folder))


def test_words_come_in_order_with_their_times_between_start_and_end(tmp_path: Path) -> None:
    with serving() as hook:
        report = run(hook.url, tmp_path)

    start, first, second, end = hook.messages()
    assert start == {"version": 1, "type": "start", "session": "s", "seq": 0, "stem": "talk"}
    assert first == {
        "version": 1,
        "type": "words",
        "session": "s",
        "seq": 1,
        "text": "Hello world.",
        "words": [
            {"text": "Hello", "start_s": 0.08, "end_s": 0.16},
            {"text": "world.", "start_s": 0.24, "end_s": 0.48},
        ],
    }
    assert second["text"] == "New day"
    assert (end["type"], end["seq"], end["complete"]) == ("end", 3, True)
    assert (end["words"], end["lost_messages"]) == (4, 0)
    assert report["delivered"] == report["messages"] == 4
    assert report["words"] == 4
    assert report["last_error"] is None
    headers, _ = hook.requests[0]
    assert headers["Content-Type"] == "application/json"
    assert [h["Idempotency-Key"] for h, _ in hook.requests] == ["s/0", "s/1", "s/2", "s/3"]


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({}, ["Hello world.", "New day"]),
        ({"sentences": False}, ["Hello world. New day"]),
        ({"sentences": False, "batch_ms": 0}, ["Hello", "world.", "New", "day"]),
        ({"sentences": False, "batch_ms": 400}, ["Hello world.", "New day"]),
    ],
    ids=str,
)
def test_words_are_gathered_as_the_options_say(
    tmp_path: Path, changes: dict[str, Any], texts: list[str]
) -> None:
    with serving() as hook:
        run(hook.url, tmp_path, **changes)

    assert [m["text"] for m in hook.messages() if m["type"] == "words"] == texts


def test_a_word_does_not_wait_for_the_next_one(tmp_path: Path) -> None:
    with serving() as hook:

        async def go() -> list[str]:
            sink = WebhookSink(options(hook.url, batch_ms=200))
            await sink.open(session(tmp_path))
            for frame, token in enumerate([0, 4, 0, *[PAD] * 3]):
                await sink.write(Packet("text", frame, 0, token))
            while len(hook.requests) < 2:
                hook.came.clear()
                await asyncio.to_thread(hook.came.wait, 0.1)
            before = [m["type"] for m in hook.messages()]
            await sink.close(SessionEnd(6))
            return before

        assert asyncio.run(go()) == ["start", "words"]


def test_bodies_are_signed_with_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", "sesame")
    with serving() as hook:
        run(hook.url, tmp_path, [0, 10], secret_env="HOOK_SECRET")

    assert len(hook.requests) == 3
    for headers, body in hook.requests:
        wanted = "sha256=" + hmac.new(b"sesame", body, hashlib.sha256).hexdigest()
        assert headers["X-Moshi-Pipe-Signature"] == wanted
    # RFC 4231, test case 2.
    assert sign(b"what do ya want for nothing?", b"Jefe") == (
        "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_without_a_secret_nothing_is_signed(tmp_path: Path) -> None:
    with serving() as hook:
        run(hook.url, tmp_path, [0, 10])

    assert all("X-Moshi-Pipe-Signature" not in headers for headers, _ in hook.requests)
    assert hook.messages()[1]["text"] == "é"


def test_a_session_may_have_any_name(tmp_path: Path) -> None:
    with serving() as hook:
        sink = WebhookSink(options(hook.url))
        report = asyncio.run(talk(sink, SPOKEN, tmp_path, "\u65e5\u672c a\udcff/\r\n"))

    assert report["delivered"] == 4
    assert hook.messages()[0]["session"] == "\u65e5\u672c a?/\r\n"
    assert hook.requests[3][0]["Idempotency-Key"] == "%E6%97%A5%E6%9C%AC%20a%3F%2F%0D%0A/3"


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_may_pass_is_tried_again_and_the_order_stays(tmp_path: Path, status: int) -> None:
    with serving(status, status, 200, status) as hook:
        report = run(hook.url, tmp_path)

    assert [m["seq"] for m in hook.messages()] == [0, 0, 0, 1, 1, 2, 3]
    assert (report["delivered"], report["retries"], report["failed"]) == (4, 3, 0)
    assert report["last_error"] == f"status {status}"


@pytest.mark.parametrize("status", [400, 401, 404, 410, 301])
def test_what_is_refused_is_not_tried_again(tmp_path: Path, status: int) -> None:
    with serving((status, {"Location": "/elsewhere"})) as hook:
        report = run(hook.url, tmp_path)

    assert [m["seq"] for m in hook.messages()] == [0, 1, 2, 3]
    assert (report["delivered"], report["retries"], report["failed"]) == (3, 0, 1)


def test_it_is_given_up_after_the_last_try_and_the_rest_still_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(500, 500, 500) as hook, caplog.at_level(logging.WARNING, "moshi_pipe"):
        report = run(hook.url, tmp_path, retries=2)

    assert [m["seq"] for m in hook.messages()] == [0, 0, 0, 1, 2, 3]
    assert (report["delivered"], report["retries"], report["failed"]) == (3, 2, 1)
    (said,) = caplog.messages
    assert said.startswith("1 of 4 messages did not reach http://127.0.0.1:")
    assert said.endswith(": status 500")
    assert "room" not in said


def test_a_pause_that_is_asked_for_is_kept_up_to_the_longest(tmp_path: Path) -> None:
    with serving((429, {"Retry-After": "3600"})) as hook:
        report = run(hook.url, tmp_path, max_backoff_s=0.2)

    assert report["delivered"] == 4
    assert 0.2 <= hook.times[1] - hook.times[0] < WAIT_S


def test_nobody_listens_and_the_session_is_as_before(tmp_path: Path) -> None:
    with serving() as hook:
        url = hook.url  # its port is free once it has ended

    report = run(url, tmp_path, retries=1)

    assert (report["messages"], report["delivered"], report["failed"]) == (4, 0, 4)
    assert "refused" in report["last_error"]


def test_a_slow_server_makes_nobody_wait_and_the_end_is_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(hold=True) as hook, caplog.at_level(logging.WARNING, "moshi_pipe"):
        begun = time.monotonic()
        report = run(hook.url, tmp_path, flush_s=0.05, timeout_s=WAIT_S)
        took_s = time.monotonic() - begun

    assert took_s < 5
    assert (report["messages"], report["delivered"], report["unsent"]) == (4, 0, 4)
    assert caplog.messages[0].startswith("4 of 4 messages did not reach")


def test_a_try_that_takes_too_long_is_cut_and_made_again(tmp_path: Path) -> None:
    with serving(hold=True) as hook:

        async def go() -> Mapping[str, Any]:
            sink = WebhookSink(options(hook.url, timeout_s=0.1, retries=50))
            await sink.open(session(tmp_path))
            while len(hook.requests) < 2:
                hook.came.clear()
                await asyncio.to_thread(hook.came.wait, 0.1)
            hook.hold.set()
            return await sink.close(SessionEnd(0))

        report = asyncio.run(go())

    assert report["delivered"] == 2
    assert report["retries"] >= 1
    assert "imed out" in report["last_error"]


def test_what_does_not_fit_the_queue_is_dropped_oldest_first_and_counted() -> None:
    with serving(hold=True) as hook:
        sender = Sender(options(hook.url, queue_size=3))
        sender.start()
        sender.put(b"0", "0")
        assert hook.came.wait(WAIT_S)  # it is on its way: the queue is empty
        for number in range(1, 11):
            sender.put(str(number).encode(), str(number))
        hook.hold.set()
        counts = sender.close(WAIT_S)

    assert [body for _, body in hook.requests] == [b"0", b"8", b"9", b"10"]
    assert (counts.messages, counts.delivered, counts.dropped, counts.lost) == (11, 4, 7, 7)


def test_the_connection_is_used_again() -> None:
    with serving(500) as hook:
        sender = Sender(options(hook.url))
        sender.start()
        for number in range(5):
            sender.put(b"{}", str(number))
        sender.close(WAIT_S)

    assert len(hook.requests) == 6
    assert len(hook.ports) == 1


def test_a_host_that_is_no_name_is_an_error_like_others() -> None:
    sender = Sender(options("http://a..b/", retries=0))
    sender.start()
    sender.put(b"{}", "0")
    counts = sender.close(WAIT_S)

    assert (counts.failed, counts.unsent) == (1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "ftp://example.org"}, r"^sink\.webhook\.url cannot be 'ftp://example\.org'"),
        ({"url": "example.org/words"}, r"^sink\.webhook\.url cannot be"),
        ({"url": "http://"}, r"^sink\.webhook\.url cannot be"),
        ({"url": "http://[::1"}, r"^sink\.webhook\.url cannot be"),
        ({"url": "http://a:99999/"}, r"^sink\.webhook\.url cannot be"),
        ({"url": "http://a/\r\nX: y"}, r"^sink\.webhook\.url cannot be"),
        ({"queue_size": 0}, r"^sink\.webhook\.queue_size cannot be 0"),
        ({"retries": -1}, r"^sink\.webhook\.retries cannot be -1"),
        ({"timeout_s": 0.0}, r"^sink\.webhook\.timeout_s cannot be 0"),
        ({"secret_env": "NOT_SET_ANYWHERE"}, "^the environment variable NOT_SET_ANYWHERE holds no"),
    ],
)
def test_options_that_nothing_can_be_posted_with_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        WebhookSink(options(**{"url": "http://127.0.0.1/", **changes}))


def test_what_lists_the_sink_imports_nothing_heavy() -> None:
    code = (
        "import sys, moshi_pipe_webhook.sink, moshi_pipe_webhook.options\n"
        "print([m for m in ('numpy', 'torch', 'urllib3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_graph_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^sink=webhook needs the output 'text'"):
        asyncio.run(WebhookSink(options("http://127.0.0.1/")).open(session(tmp_path, text=False)))


def test_a_whole_run_posts_the_words_of_the_transcript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moshi_pipe.cli import main

    monkeypatch.chdir(tmp_path)
    t = np.arange(3 * 24_000) / 24_000
    soundfile.write(tmp_path / "talk.wav", 0.3 * np.sin(2 * np.pi * 200 * t), 24_000)
    with serving() as hook:
        words = ["model=embedded", "source.path=talk.wav", "sink=[transcript,webhook]", "seed=1"]
        assert main([*words, f"sink.webhook.url='{hook.url}'"]) == 0

    lines = Path("moshi-out/talk.jsonl").read_text(encoding="utf-8").splitlines()
    written = [{k: v for k, v in json.loads(line).items() if k != "tokens"} for line in lines]
    posted = [word for m in hook.messages() if m["type"] == "words" for word in m["words"]]
    assert written
    assert [{k: word[k] for k in ("start_s", "end_s", "text")} for word in posted] == written
    report = json.loads(Path("moshi-out/talk.session.json").read_text(encoding="utf-8"))
    assert report["sinks"]["webhook"]["delivered"] == len(hook.requests)
