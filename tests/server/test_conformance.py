"""The corpus, and what plays it."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest
import yaml

pytest.importorskip("websockets")

from support.edge import edge, run
from support.rust_like_server import RustLikeServer
from websockets.asyncio.server import serve

from moshi_pipe.server.conformance.__main__ import main
from moshi_pipe.server.conformance.case import CASES, Case, load_cases, load_streams
from moshi_pipe.server.conformance.notation import Pattern, parse_bytes, show
from moshi_pipe.server.conformance.player import Target, play
from moshi_pipe.server.messages import Kind
from moshi_pipe.server.ogg import PageReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

STREAMS = {"tone": [b"AA", b"BB", b"CC"]}


# notation


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("", b""),
        ("01 ff", b"\x01\xff"),
        ("01ff", None),
        ("01 'a b' 00", b"\x01a b\x00"),
        ("01 (00 80)*3", b"\x01\x00\x80\x00\x80\x00\x80"),
        ("01 <tone 1>", b"\x01BB"),
        ("01 <tone 0-2>", b"\x01AABBCC"),
        ("01 <tone 2-3>", None),
        ("01 <hum 0>", None),
        ("zz", None),
    ],
)
def test_bytes_are_written_as_the_corpus_writes_them(text: str, data: bytes | None) -> None:
    if data is not None:
        assert parse_bytes(text, STREAMS) == data
    else:
        with pytest.raises(ValueError, match=r"not a notation|no stream|has 3 pages"):
            parse_bytes(text, STREAMS)


def test_a_pattern_is_exact_unless_it_is_open() -> None:
    exact, open_one = Pattern.parse("05 'a'", {}), Pattern.parse("05 'a' ...", {})
    assert exact.matches(b"\x05a")
    assert not exact.matches(b"\x05ab")
    assert open_one.matches(b"\x05ab")
    assert not open_one.matches(b"\x05b")


def test_messages_are_shown_for_people() -> None:
    assert show(b"\x05oh: no") == "05 'oh: no'"
    assert show(b"\x01" + bytes(100)).endswith("00 ... (101 bytes)")
    assert show(b"") == "an empty message"


# corpus


def test_the_corpus_can_be_read_and_its_names_are_its_own() -> None:
    names = [case.name for case in load_cases()]
    assert len(names) == len(set(names)) > 40


def test_the_corpus_sends_every_kind_that_clients_send_and_awaits_every_other() -> None:
    sent: set[int] = set()
    awaited: set[int] = {Kind.HANDSHAKE, Kind.METADATA, Kind.TEXT}  # of every conversation
    for case in load_cases():
        for step in case.steps:
            if step.verb == "send" and step.value:
                sent.add(step.value[0])
            elif step.verb in ("next", "eventually"):
                awaited.add(step.value.head[0])
    assert {Kind.AUDIO, Kind.CONTROL, Kind.PING} <= sent
    assert awaited == set(Kind) - {Kind.CONTROL}


def test_recorded_streams_are_whole() -> None:
    reader = PageReader()
    pages = reader.push(b"".join(load_streams()["tone"]))
    assert [page.sequence for page in pages] == list(range(16))
    assert (reader.num_damaged, reader.num_skipped_bytes, len(reader)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"name": "a", "servers": "all"}, "a case has a name, servers and steps"),
        ({"name": "a", "servers": "some", "steps": []}, "servers are all or ours, not 'some'"),
        ({"name": "a", "servers": "all", "steps": [{"go": 1}]}, "there is no step 'go'"),
        ({"name": "a", "servers": "all", "steps": [{"send": "x"}]}, "not a notation of bytes"),
        (
            {"name": "a", "servers": "all", "steps": [{"drop": 1, "cut": 2}]},
            "drop does not know cut",
        ),
    ],
)
def test_a_case_that_is_written_wrongly_is_named(
    tmp_path: Path, case: dict[str, Any], message: str
) -> None:
    (tmp_path / "streams.yaml").write_text("tone: []")
    (tmp_path / "1.yaml").write_text(yaml.safe_dump([case], sort_keys=False))
    with pytest.raises(ValueError, match=f"^1.yaml: a: {message}"):
        load_cases(tmp_path)


# playing


def named(words: str) -> Case:
    (case,) = [case for case in load_cases() if case.name == words]
    return case


def verdicts(url: str, cases: Sequence[Case], **options: Any) -> dict[str, str]:
    """What a server does wrong, by the case."""

    async def all_of_them() -> dict[str, str]:
        target = Target(url, within_s=5.0, **options)
        wrongs = [(case.name, await play(case, target)) for case in cases]
        return {name: wrong for name, wrong in wrongs if wrong is not None}

    return asyncio.run(all_of_them())


def test_a_server_as_the_rust_one_does_what_all_do(capsys: pytest.CaptureFixture[str]) -> None:
    with RustLikeServer() as server:
        assert main([server.url, "--reference", "--within", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    asked = [case for case in load_cases() if not case.only_ours]
    assert [line.split("  ")[-1] for line in lines[:-1]] == [case.name for case in asked]
    assert lines[-1] == f"{len(asked)} of {len(asked)} cases are right"


def test_a_server_as_the_rust_one_does_not_do_what_ours_does() -> None:
    cases = [named("a ping comes back as it was"), named("the process says that it lives")]
    with RustLikeServer() as server:
        wrong = verdicts(server.url, cases)
    assert wrong[cases[0].name].startswith("step 2 (begin): there is no such metadata: ")
    assert wrong[cases[1].name] == "step 1 (http): /healthz answers 426, not 200"


def test_our_edge_does_what_needs_no_engine() -> None:
    async def talk() -> None:
        async with edge() as one:
            target = Target(f"ws://127.0.0.1:{one.port}", within_s=5.0)
            for case in load_cases():
                if case.steps[0].verb == "http" and "info" in case.name:
                    continue  # that of the engine
                if case.only_ours and any(s.verb in ("begin", "audio") for s in case.steps):
                    continue
                if "made up" not in case.name:
                    assert await play(case, target) is None, case.name

    run(talk)


async def scripted(
    script: Callable[[Any], Awaitable[None]], case: Case, **options: Any
) -> str | None:
    """Play a case against a server that does no more than a script."""
    async with serve(script, "127.0.0.1", 0, compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        return await play(case, Target(f"ws://127.0.0.1:{port}", within_s=2.0, **options))


def session(**values: Any) -> bytes:
    return b"\x04" + json.dumps({"type": "session", "protocol": 1, **values}).encode()


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([b"\x00\x00"], "step 2 (begin): the handshake is not one byte: 00 00"),
        ([b"\x01abc"], "step 2 (begin): its audio cannot be decoded"),
        ([b"\x02hi", b"\x00"], "step 2 (begin): before the handshake came 02 'hi'"),
        ([b"\x00", b"\x02hi"], "step 2 (begin): after the handshake came no metadata but 02 'hi'"),
        ([b"\x00", b"\x04[]"], "step 2 (begin): this is no JSON object: b'[]'"),
        ([b"\x00", b'\x04{"type":"new"}'], "step 2 (begin): there is no such metadata: "),
        ([b"\x00", b"\x02\xff"], r"step 2 (begin): its text is not UTF-8: b'\xff'"),
        ([b"\x03\x00"], "step 2 (begin): servers do not send this: 03 00"),
        (["text"], "step 2 (begin): it sent a message that is text"),
        ([], "step 2 (begin): it closed instead of a handshake, with 1000"),
        ([b"\x00", session(), b"\x06no"], "step 4 (next): it sent 06 6e 6f instead of 06 "),
        ([b"\x00", session()], "step 4 (next): it closed with 1000 instead of 06 "),
    ],
)
def test_what_a_server_does_wrong_is_said(messages: list[bytes | str], wrong: str) -> None:
    async def script(client: Any) -> None:
        for message in messages:
            await client.send(message)
        if len(messages) > 2:
            await client.recv()

    if messages == [b"\x01abc"]:
        messages[0] = b"\x01OggS\x00\x09" + bytes(30)
    got = asyncio.run(scripted(script, named("a ping comes back as it was")))
    assert got is not None
    assert got.startswith(wrong)


def test_a_server_that_is_silent_is_not_waited_for_for_ever() -> None:
    async def script(client: Any) -> None:
        await client.wait_closed()

    case = named("a client is let in and greeted")

    async def talk() -> str | None:
        async with serve(script, "127.0.0.1", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            return await play(case, Target(f"ws://127.0.0.1:{port}", within_s=0.2))

    assert asyncio.run(talk()) == "step 2 (begin): nothing came for 0.2 s"


def test_a_server_that_is_not_there_fails_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main([f"127.0.0.1:{port}", "--only", "greeted"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 of 1 cases are right"
    assert CASES.is_dir()
