"""The remote engine with live sessions, and what a remote model says."""

from __future__ import annotations

import asyncio
import threading
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("sphn")

from support.rust_like_server import FRAME, Heard, RustLikeServer

from moshi_pipe.engine.session import TIMES, Session, SessionState, make_session
from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Audio, Format, Text
from moshi_pipe.graph.node import SessionSettings
from moshi_pipe.models.remote import RemoteOptions, whole_url
from moshi_pipe.nodes.words import WordBuilder
from moshi_pipe.remote.engine import RemoteEngine
from moshi_pipe.remote.pieces import Pieces
from moshi_pipe.remote.talk import TalkOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

AUDIO = Audio(24000, FRAME)


def live_session(frames: int = 25) -> Session:
    outputs: dict[str, Format] = {
        "audio": AUDIO,
        "user_audio": AUDIO,
        "text": Text(0, Fraction(25, 2)),
    }
    return make_session(
        "s",
        SessionSettings(seed=1),
        {"user_audio": AUDIO},
        outputs,
        inbox_frames=frames,
        outbox_frames=100,
        inbox_policy="drop_oldest",
    )


class Rows:
    """What comes out of a session, with bounded waiting."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._news = threading.Event()

    def listen(self) -> None:
        self._session.outbox.listen(on_put=self._news.set)

    def next(self) -> tuple[int, dict[str, Any]] | None:
        while (row := self._session.outbox.take()) is None:
            if self._session.outbox.finished:
                return None
            assert self._news.wait(10)
            self._news.clear()
        return row

    def rest(self) -> Iterator[tuple[int, dict[str, Any]]]:
        while (row := self.next()) is not None:
            yield row


def engine_for(server: RustLikeServer, **options: Any) -> RemoteEngine:
    window = options.pop("window", 25)
    talk = TalkOptions(
        RemoteOptions(url=server.url, **options), {}, "user_audio", ("user_audio",), True, window
    )
    return RemoteEngine(talk, Pieces())


def put(session: Session, first: int, count: int) -> None:
    frame = np.full((1, FRAME), 0.25, np.float32)
    for number in range(first, first + count):
        assert session.inbox.put(number, {"user_audio": frame, TIMES: number})


def test_a_live_session_begins_with_the_handshake_and_forgets_what_came_before() -> None:
    accepted, begin = threading.Event(), threading.Event()

    async def slow(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        accepted.set()
        await asyncio.to_thread(begin.wait, 10)
        await server.talk(socket, heard)

    with RustLikeServer(script=slow, handshake=b"\x00", offset=1) as server:
        engine, session = engine_for(server), live_session(5)
        rows = Rows(session)
        engine.start()
        put(session, 0, 8)  # three more than there is room for
        engine.submit(session)
        rows.listen()
        assert accepted.wait(10)
        assert session.admitted_ns is None
        begin.set()
        deadline = threading.Event()
        while session.state is SessionState.WAITING:
            assert not deadline.wait(0.01)
        put(session, 8, 3)
        session.inbox.end()
        seen = [(frame, "audio" in row) for frame, row in rows.rest() if "user_audio" in row]
        engine.stop()

    assert seen == [(8, False), (9, True), (10, True)]
    assert session.inbox.counters.dropped == 0
    assert session.failure is None
    assert session.next_frame == 11


def test_a_live_session_does_not_wait_for_answers() -> None:
    async def mute(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x00")
        async for message in socket:
            heard.messages.append(message)

    with RustLikeServer(script=mute) as server:
        engine, session = engine_for(server, window=3, reconnect=0), live_session()
        rows = Rows(session)
        engine.start()
        engine.submit(session)
        rows.listen()
        while session.state is SessionState.WAITING:
            threading.Event().wait(0.01)
        put(session, 0, 10)
        numbers: list[int] = []
        while len(numbers) < 7:
            row = rows.next()
            assert row is not None
            numbers.append(row[0])
        session.cancel()
        list(rows.rest())
        engine.stop()

    assert numbers == list(range(7))
    assert session.report["unanswered_frames"] == 6
    assert session.failure is None


def test_stopping_ends_every_session() -> None:
    async def busy(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.wait_closed()

    with RustLikeServer(script=busy) as server:
        engine = engine_for(server)
        sessions = [live_session() for _ in range(3)]
        engine.start()
        for session in sessions:
            engine.submit(session)
        engine.stop()
        late = live_session()
        engine.submit(late)

    assert all(session.state is SessionState.CLOSED for session in [*sessions, late])
    assert all(session.outbox.finished for session in [*sessions, late])


def test_pieces_are_put_together_like_tokens() -> None:
    pieces = Pieces()
    words = WordBuilder(pieces)
    said = []
    for frame, text in enumerate([" caf", "<0xC3>", "<0xA9>", " au", "</s>", " lait"]):
        said += words.push(pieces.number(text), frame)
    said += words.finish()

    assert [word.text for word in said] == ["café", "au", "lait"]


def test_pieces_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moshi_pipe.remote.pieces._MOST_PIECES", 3)
    pieces = Pieces()

    numbers = [pieces.number(text) for text in ("a", "b", "c", "d", "x" * 1000)]

    assert [pieces.piece(number) for number in numbers[:2]] == ["", ""]
    assert pieces.piece(numbers[3]) == "d"
    assert pieces.piece(numbers[4]) == "x" * 256
    assert all(number < 0 for number in numbers)


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("ws://host:8998", "ws://host:8998/api/chat"),
        ("host:8998", "ws://host:8998/api/chat"),
        ("https://host/", "wss://host/api/chat"),
        ("wss://host/api/lm?a=1", "wss://host/api/lm?a=1"),
        ("ws://[::1]:8998", "ws://[::1]:8998/api/chat"),
    ],
)
def test_an_address_may_be_short(given: str, whole: str) -> None:
    assert whole_url(given) == whole
    assert whole_url(given, {"seed": "1"}) == whole + ("&" if "?" in whole else "?") + "seed=1"


@pytest.mark.parametrize("given", ["", "ftp://host", "ws://", "ws://host:99999", "ws://h#x"])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read the address"):
        whole_url(given)
