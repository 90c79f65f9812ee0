"""Calls over a real websocket on this machine: whole runs, and everything that may go wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from moshi_pipe_telephone import mulaw
from moshi_pipe_telephone.call import MARK_EVERY, MAX_WAITING, PACKET, Outbox
from moshi_pipe_telephone.options import TelephoneOptions
from moshi_pipe_telephone.server import TelephoneSource
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from moshi_pipe.build import run_config
from moshi_pipe.compose import load_run
from moshi_pipe.engine.clock import ManualClock
from moshi_pipe.engine.live_resampler import LiveResampler
from moshi_pipe.errors import ConfigError, InputError
from moshi_pipe.hooks import hookimpl
from moshi_pipe.plugins import load_plugins
from moshi_pipe.progress import SilentUI

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from moshi_pipe.graph.packet import Packet

RATE = mulaw.SAMPLE_RATE
FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": RATE, "channels": 1}
SID = "MZ18ad3ab5a668481ce02b83e7395059f0"
WAIT_S = 30.0  # for what must come; nothing here takes a second


class Phone:
    """The other end of a call, as Twilio is."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def send(self, event: str, **rest: Any) -> None:
        self.connection.send(json.dumps({"event": event, "streamSid": SID, **rest}))

    def start(self, **changes: Any) -> Phone:
        self.send("connected", protocol="Call", version="1.0.0")
        start = {"streamSid": SID, "callSid": "CA1", "tracks": ["inbound"], "mediaFormat": FORMAT}
        self.send("start", sequenceNumber="1", start={**start, **changes})
        return self

    def say(self, data: bytes) -> None:
        for at in range(0, len(data), PACKET):
            payload = base64.b64encode(data[at : at + PACKET]).decode()
            self.send("media", media={"track": "inbound", "chunk": "1", "payload": payload})

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.connection.recv(WAIT_S))
        return message

    def rest(self) -> tuple[list[dict[str, Any]], int, str]:
        """Everything until the connection is closed, and how it was."""
        messages = []
        while True:
            try:
                messages.append(self.message())
            except ConnectionClosed as closed:
                how = closed.rcvd or closed.sent
                return messages, how.code if how else 0, how.reason if how else "no close frame"


def sound(messages: Sequence[dict[str, Any]]) -> bytes:
    """What the caller hears."""
    parts = [m["media"]["payload"] for m in messages if m["event"] == "media"]
    return b"".join(base64.b64decode(part) for part in parts)


def tone(seconds: float, hz: float = 400.0) -> bytes:
    t = np.arange(round(seconds * RATE)) / RATE
    return mulaw.encode((0.4 * np.sin(2 * np.pi * hz * t)).astype(np.float32))


@dataclass
class Run:
    """A run in a thread of its own.

    Attributes:
        url: Where it takes calls.
        source: Its source.
        report: What it reported, once it has ended.
    """

    url: str
    source: TelephoneSource
    loop: asyncio.AbstractEventLoop
    report: list[Any] = field(default_factory=list)
    phones: ExitStack = field(default_factory=ExitStack)

    def phone(self, url: str | None = None, **options: Any) -> Phone:
        """A connection; closed after the run at the latest."""
        return Phone(self.phones.enter_context(connect(url or self.url, **options)))


class Ear:
    """A plugin that keeps what the model says."""

    def __init__(self) -> None:
        self.frames: list[npt.NDArray[np.float32]] = []

    @hookimpl
    def on_frame(self, session_id: str, packet: Packet) -> None:
        if packet.output == "audio":
            self.frames.append(np.array(packet.payload, np.float32)[0])


@contextmanager
def running(folder: Path, *words: str, ear: Ear | None = None, **options: Any) -> Iterator[Run]:
    """The whole command with the source of the test, up to its report."""
    ready: queue.Queue[Any] = queue.Queue()

    def on_ready(port: int) -> None:
        ready.put((port, asyncio.get_running_loop()))

    source = TelephoneSource(TelephoneOptions(port=0, **options), on_ready=on_ready)
    plugins = load_plugins([] if ear is None else [("ear", ear)])
    chosen = [f"output_dir={folder}", "source=telephone", "graph=codec", "seed=1", "model=embedded"]
    config = load_run([*chosen, "engine.max_lag_ms=60000", *words], plugins.nodes)
    reports: list[Any] = []

    def work() -> None:
        try:
            reports.append(run_config(config, SilentUI(), plugins, source))
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=work)
    thread.start()
    started = ready.get(timeout=WAIT_S)
    if isinstance(started, BaseException):
        thread.join()
        raise started
    port, loop = started
    run = Run(f"ws://127.0.0.1:{port}/media", source, loop, reports)
    try:
        yield run
    finally:
        loop.call_soon_threadsafe(source.stop)
        thread.join(WAIT_S)
        run.phones.close()
        assert not thread.is_alive()


def reports(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("call-*.session.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def samples(path: Path) -> npt.NDArray[np.float32]:
    pcm, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000
    return np.asarray(pcm, np.float32)


def test_a_call_is_heard_and_answered_byte_for_byte(tmp_path: Path) -> None:
    said, ear = tone(1.6), Ear()
    words = ["sink=[file]", "sink.file.bits=32", "sink.file.output=user_audio"]
    with running(tmp_path, *words, ear=ear) as run:
        phone = run.phone().start()
        phone.say(said)
        phone.send("dtmf", dtmf={"track": "inbound_track", "digit": "5"})
        phone.send("stop", stop={"callSid": "CA1"})
        messages, code, _ = phone.rest()

    (report,) = reports(tmp_path)
    up, down = LiveResampler(RATE, 24_000), LiveResampler(24_000, RATE)
    user_N, wanted_N = samples(tmp_path / f"{report['id']}.wav"), up.push(mulaw.decode(said))
    assert user_N.size == wanted_N.size
    assert np.array_equal(user_N, wanted_N)
    spoken_N = np.concatenate([*ear.frames, np.zeros(round(down.delay_s * 24_000), np.float32)])
    heard = sound(messages)
    assert len(heard) == 20 * 640
    assert heard == mulaw.encode(down.push(spoken_N))
    assert all(
        len(base64.b64decode(m["media"]["payload"])) == PACKET
        for m in messages
        if m["event"] == "media"
    )
    assert {message["streamSid"] for message in messages} == {SID}
    assert code == 1000
    source = report["source"]
    assert (source["packets"], source["dropped_packets"], source["digits"]) == (80, 0, "5")
    assert (source["ended"], source["stream_sid"], source["call_sid"]) == ("stop", SID, "CA1")
    assert report["sinks"]["telephone"]["packets"] * PACKET == len(heard)
    assert report["status"] == "done"


def test_two_calls_at_once_do_not_hear_each_other_and_a_third_is_refused(tmp_path: Path) -> None:
    words = ["sink=[file]", "engine.slots=4", "numerics=reference"]
    pitches = (300.0, 700.0)
    with running(tmp_path / "both", *words, max_calls=2) as run:
        phones = [run.phone().start() for _ in pitches]
        for phone, hz in zip(phones, pitches, strict=True):
            phone.say(tone(0.8, hz))
        for phone in phones:
            assert phone.message()["event"] == "media"  # both are answered before either ends
        _, code, reason = run.phone().start().rest()
        for phone in phones:
            phone.send("stop", stop={})
        heard = [sound(phone.rest()[0]) for phone in phones]
    alone = []
    for hz in pitches:
        with running(tmp_path / str(hz), *words) as run:
            phone = run.phone().start()
            phone.say(tone(0.8, hz))
            phone.message()
            phone.send("stop", stop={})
            alone.append(sound(phone.rest()[0]))

    assert (code, reason) == (1013, "busy")
    assert heard == alone
    assert heard[0] != heard[1]
    assert len(reports(tmp_path / "both")) == 2


def test_calls_come_one_after_the_other(tmp_path: Path) -> None:
    with running(tmp_path, "sink=[]") as run:
        for _ in range(3):
            phone = run.phone().start()
            phone.say(tone(0.3))
            phone.send("stop", stop={})
            assert phone.rest()[1] == 1000

    assert [report["status"] for report in reports(tmp_path)] == ["done"] * 3
    assert len(run.report[0].sessions) == 3


def test_the_end_of_the_run_lets_the_answer_be_heard_and_says_good_bye(tmp_path: Path) -> None:
    with running(tmp_path, "sink=[]") as run:
        phone = run.phone().start()
        phone.say(tone(0.8))
        first = phone.message()
        run.loop.call_soon_threadsafe(run.source.stop)
        messages, code, reason = phone.rest()

    assert (code, reason) == (1001, "stopped")
    assert len(sound([first, *messages])) % PACKET == 0
    assert reports(tmp_path)[0]["source"]["ended"] == "stopped"


def test_a_caller_that_vanishes_ends_its_call_alone(tmp_path: Path) -> None:
    with running(tmp_path, "sink=[]") as run:
        gone = run.phone().start()
        gone.say(tone(0.3))
        gone.connection.socket.shutdown(socket.SHUT_RDWR)
        phone = run.phone().start()  # the only line is free again
        phone.send("stop", stop={})
        code = phone.rest()[1]

    assert code == 1000
    assert {report["status"] for report in reports(tmp_path)} == {"done"}
    assert reports(tmp_path)[0]["source"]["ended"] == "closed"


START = {"streamSid": SID, "mediaFormat": FORMAT}
BAD_STARTS: list[tuple[Any, int, str]] = [
    ("{", 1007, "not JSON"),
    ("[" * 15_000, 1007, "not JSON"),
    ("[]", 1007, "no event"),
    ({"event": 3}, 1007, "no event"),
    (b"\x00", 1003, "not text"),
    ({"event": "media", "media": {"payload": ""}}, 1008, "start expected"),
    ({"event": "stop"}, 1008, "start expected"),
    ({"event": "hello"}, 1008, "start expected"),
    ({"event": "start"}, 1007, "no start"),
    ({"event": "start", "start": {"streamSid": SID}}, 1003, "wrong media format"),
    (
        {"event": "start", "start": {**START, "mediaFormat": {**FORMAT, "sampleRate": 16_000}}},
        1003,
        "wrong media format",
    ),
    (
        {"event": "start", "start": {**START, "mediaFormat": {**FORMAT, "encoding": "audio/l16"}}},
        1003,
        "wrong media format",
    ),
    ({"event": "start", "start": {**START, "streamSid": "../../etc"}}, 1007, "wrong streamSid"),
    ({"event": "start", "start": {**START, "streamSid": 7}}, 1007, "no streamSid"),
    (
        {"event": "start", "start": {**START, "customParameters": [1]}},
        1007,
        "wrong custom parameters",
    ),
    ("x" * 20_000, 1009, "too large"),
]


@pytest.fixture(scope="module")
def module_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with running(tmp_path_factory.mktemp("calls"), "sink=[]") as run:
        yield run


@pytest.mark.parametrize(("sent", "code", "reason"), BAD_STARTS, ids=lambda value: str(value)[:30])
def test_what_does_not_begin_as_a_call_is_closed_and_counted(
    module_run: Run, sent: Any, code: int, reason: str
) -> None:
    before = module_run.source.refused[reason]
    phone = module_run.phone()
    phone.connection.send(sent if isinstance(sent, str | bytes) else json.dumps(sent))

    _, got, said = phone.rest()

    assert got == code
    assert code == 1009 or said == reason
    assert module_run.source.refused[reason] == before + 1


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        ("{", 1007, "not JSON"),
        ({"event": "media", "media": {}}, 1007, "no payload"),
        ({"event": "media", "media": {"payload": "a*b="}}, 1007, "wrong payload"),
        ({"event": "media", "media": {"payload": "\u00e9"}}, 1007, "wrong payload"),
        ({"event": "mark", "mark": {}}, 1007, "no name"),
        ({"event": "start", "start": START}, 1008, "second start"),
        ("x" * 20_000, 1009, "too large"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_call_that_goes_wrong_is_cut_and_the_next_one_works(
    module_run: Run, sent: Any, code: int, reason: str
) -> None:
    phone = module_run.phone().start()
    phone.say(tone(0.2))
    phone.connection.send(sent if isinstance(sent, str) else json.dumps(sent))

    assert phone.rest()[1] == code
    assert module_run.source.refused[reason] >= 1
    again = module_run.phone().start()
    again.say(tone(0.2))
    again.send("stop", stop={})
    messages, code, _ = again.rest()
    assert code == 1000
    assert sound(messages)


def test_unknown_messages_and_marks_and_the_other_track_change_nothing(module_run: Run) -> None:
    phone = module_run.phone().start()
    phone.send("weather", weather="fine")
    phone.send("mark", mark={"name": "who?"})
    phone.send("media", media={"track": "outbound", "payload": "!"})
    phone.send("stop", stop={})

    assert phone.rest()[1] == 1000


def test_another_path_is_not_there(module_run: Run) -> None:
    with pytest.raises(InvalidStatus) as caught:
        module_run.phone(module_run.url.replace("/media", "/admin"))

    assert caught.value.response.status_code == 404
    assert module_run.source.refused["wrong path"] == 1


def test_who_says_nothing_is_closed(tmp_path: Path) -> None:
    with running(tmp_path, "sink=[]", start_s=0.05) as run:
        _, code, reason = run.phone().rest()

    assert (code, reason) == (1008, "no start")
    assert run.source.refused == {"no start": 1}


def test_too_many_who_say_nothing_are_refused_before_they_are_heard(tmp_path: Path) -> None:
    with running(tmp_path, "sink=[]", start_s=WAIT_S) as run:
        silent = [run.phone() for _ in range(8)]
        with pytest.raises(InvalidStatus) as caught:
            run.phone()
        for phone in silent:
            phone.connection.close()

    assert caught.value.response.status_code == 503


def test_a_silent_call_and_a_long_call_are_ended(tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {"idle": {"idle_s": 0.05}, "limit": {"duration_s": 0.05}}
    for name, options in cases.items():
        with running(tmp_path / name, "sink=[]", **options) as run:
            _, code, reason = run.phone().start().rest()
        assert (code, reason) == (1000, name)
        assert reports(tmp_path / name)[0]["source"]["ended"] == name


@pytest.mark.parametrize(
    ("parameters", "headers", "welcome"),
    [
        ({"token": "sesame", "from": "+1555"}, {}, True),
        ({}, {"Authorization": "Bearer sesame"}, True),
        ({"token": "guess"}, {}, False),
        ({}, {"Authorization": "Basic sesame"}, False),
        ({}, {}, False),
    ],
)
def test_a_call_must_bring_the_token(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parameters: dict[str, str],
    headers: dict[str, str],
    welcome: bool,
) -> None:
    monkeypatch.setenv("CALL_TOKEN", "sesame")
    with running(tmp_path, "sink=[]", token_env="CALL_TOKEN") as run:
        phone = run.phone(additional_headers=headers).start(customParameters=parameters)
        if welcome:
            phone.send("stop", stop={})
        _, code, reason = phone.rest()

    assert (code, reason) == ((1000, "stop") if welcome else (1008, "wrong token"))
    written = "".join(p.read_text(encoding="utf-8") for p in tmp_path.glob("*.session.json"))
    assert "sesame" not in written
    assert ("+1555" in written) == ("from" in parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": "0.0.0.0"}, r"^source\.host=0\.0\.0\.0 lets strangers call"),
        ({"token_env": "NOT_SET_ANYWHERE"}, "^the environment variable NOT_SET_ANYWHERE holds no"),
        ({"port": 70_000}, r"^source\.port cannot be 70000"),
        ({"path": "media"}, r"^source\.path cannot be 'media'"),
        ({"max_calls": 0}, r"^source\.max_calls cannot be 0"),
        ({"idle_s": 0.0}, r"^source\.idle_s cannot be 0"),
    ],
)
def test_options_that_no_call_could_meet_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TelephoneSource(TelephoneOptions(**options))


def test_a_port_that_is_taken_is_said_so(module_run: Run) -> None:
    port = int(module_run.url.split(":")[2].split("/")[0])

    async def go() -> None:
        async for _ in TelephoneSource(TelephoneOptions(port=port)).sessions():
            pass

    with pytest.raises(InputError, match=rf"^cannot listen on 127\.0\.0\.1, port {port}"):
        asyncio.run(go())


def test_a_graph_without_a_voice_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="telephone needs the output 'audio'"),
        running(tmp_path, "graph=encode", "sink=[]"),
    ):
        pass


class SlowConnection:
    """Takes nothing until it is told to."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.room = asyncio.Event()

    async def send(self, message: str) -> None:
        await self.room.wait()
        self.sent.append(json.loads(message))


def packet(number: int) -> bytes:
    return bytes([number]) * PACKET


async def outbox_of(clock: ManualClock) -> tuple[Outbox, SlowConnection]:
    connection = SlowConnection()
    return Outbox(SID, connection, clock, max_behind_ms=500), connection


def test_a_slow_connection_loses_the_oldest_packets_and_the_count_is_right() -> None:
    async def go() -> tuple[Outbox, SlowConnection]:
        outbox, connection = await outbox_of(ManualClock())
        for number in range(MAX_WAITING + 7):
            outbox.put(packet(number))
        connection.room.set()
        outbox.end()
        await outbox.run()
        return outbox, connection

    outbox, connection = asyncio.run(go())

    assert (outbox.num_dropped, outbox.num_sent) == (7, MAX_WAITING)
    assert sound(connection.sent) == b"".join(packet(n) for n in range(7, MAX_WAITING + 7))


def test_what_the_caller_holds_too_long_is_cleared() -> None:
    async def go() -> tuple[Outbox, SlowConnection]:
        clock = ManualClock()
        outbox, connection = await outbox_of(clock)
        connection.room.set()
        sending = asyncio.create_task(outbox.run())
        for number in range(2 * MARK_EVERY):
            outbox.put(packet(number))
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        clock.advance(400_000_000)
        outbox.played(str(MARK_EVERY))  # in time
        clock.advance(400_000_000)
        outbox.played(str(2 * MARK_EVERY))  # 800 ms: too late
        outbox.played(str(2 * MARK_EVERY))  # again: says nothing
        outbox.end()
        await sending
        return outbox, connection

    outbox, connection = asyncio.run(go())

    events = [message["event"] for message in connection.sent]
    assert events.count("mark") == 2
    assert events.index("mark") == MARK_EVERY
    assert events[-1] == "clear"
    assert (outbox.num_cleared, outbox.behind.count) == (1, 2)
    assert round(outbox.behind.max_ns / 1e6) == 800


def test_a_recording_calls_and_keeps_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moshi_pipe_telephone import client

    from moshi_pipe.cli import main

    monkeypatch.setattr(client, "SystemClock", Hurry)
    soundfile.write(tmp_path / "in.wav", mulaw.decode(tone(0.5)), RATE)
    with running(tmp_path / "out", "sink=[]") as run:
        code = main(["phone", run.url, str(tmp_path / "in.wav"), str(tmp_path / "answer.wav")])

    assert code == 0
    pcm_N, rate = soundfile.read(tmp_path / "answer.wav")
    assert rate == RATE
    assert len(pcm_N) / rate == pytest.approx(2.5, abs=0.2)
    assert "s of answer in" in capsys.readouterr().out


class Hurry:
    """A clock that never waits."""

    def now_ns(self) -> int:
        return 0

    async def sleep_until(self, deadline_ns: int) -> None:
        await asyncio.sleep(0)


def test_a_call_to_nobody_says_what_to_do(tmp_path: Path) -> None:
    from moshi_pipe_telephone.client import call

    with pytest.raises(InputError, match=r"^cannot call ws://127\.0\.0\.1:9/media"):
        asyncio.run(call("ws://127.0.0.1:9/media", tone(0.1)))
