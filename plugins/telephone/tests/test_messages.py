"""Messages, from any side: read as they are meant, or refused, never anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moshi_pipe_telephone import messages
from moshi_pipe_telephone.messages import CallError, parse

FORMAT = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
KINDS = (
    messages.Start | messages.Media | messages.Mark | messages.Dtmf | messages.Stop | messages.Other
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["streamSid", "callSid", "mediaFormat", "customParameters", "payload", "track", "name", "digit"]
)
EVENTS = st.sampled_from(["connected", "start", "media", "mark", "dtmf", "stop", "clear"])


def test_messages_of_the_documentation_are_read() -> None:
    start = {
        "streamSid": "MZ1",
        "accountSid": "AC1",
        "callSid": "CA1",
        "tracks": ["inbound"],
        "customParameters": {"from": "+1555"},
        "mediaFormat": FORMAT,
    }
    given = [
        ({"event": "connected", "protocol": "Call"}, messages.Other("connected")),
        ({"event": "start", "start": start}, messages.Start("MZ1", "CA1", {"from": "+1555"})),
        (
            {"event": "media", "media": {"track": "inbound", "payload": "/3+A"}},
            messages.Media(b"\xff\x7f\x80"),
        ),
        ({"event": "mark", "mark": {"name": "50"}}, messages.Mark("50")),
        ({"event": "dtmf", "dtmf": {"digit": "#"}}, messages.Dtmf("#")),
        ({"event": "stop", "stop": {"callSid": "CA1"}}, messages.Stop()),
    ]

    assert [parse(json.dumps(record)) for record, _ in given] == [wanted for _, wanted in given]


def test_what_is_written_has_the_form_of_the_documentation() -> None:
    assert json.loads(messages.media("MZ1", b"\xff\x7f\x80")) == {
        "event": "media",
        "streamSid": "MZ1",
        "media": {"payload": "/3+A"},
    }
    assert json.loads(messages.mark("MZ1", "50")) == {
        "event": "mark",
        "streamSid": "MZ1",
        "mark": {"name": "50"},
    }
    assert json.loads(messages.clear("MZ1")) == {"event": "clear", "streamSid": "MZ1"}


def read(data: str | bytes) -> None:
    """Parse, and check what came of it."""
    error = None
    try:
        message: Any = parse(data)
    except CallError as refused:
        error = refused
    if error is not None:
        assert error.code in (messages.NOT_TEXT, messages.NOT_READABLE)
        assert len(error.reason.encode()) < 100  # a close frame takes 123 bytes
        return
    assert isinstance(message, KINDS)
    if isinstance(message, messages.Start):
        for text in (*message.parameters, *message.parameters.values()):
            assert text.isprintable()
            assert text.encode().decode() == text


@given(st.text() | st.binary())
def test_any_text_is_read_or_refused(data: str | bytes) -> None:
    read(data)


@given(EVENTS, st.dictionaries(FIELDS, VALUES), VALUES)
def test_any_record_is_read_or_refused(event: str, part: dict[str, Any], other: Any) -> None:
    for inner in (part, other):
        read(json.dumps({"event": event, event: inner}))


@given(st.dictionaries(st.text(), VALUES, max_size=40))
def test_any_parameters_are_read_or_refused(parameters: dict[str, Any]) -> None:
    start = {"streamSid": "MZ1", "mediaFormat": FORMAT, "customParameters": parameters}
    read(json.dumps({"event": "start", "start": start}))


@pytest.mark.parametrize("digit", ["", "55", "x", "\ud800", "\n"])
def test_what_no_telephone_has_is_no_digit(digit: str) -> None:
    assert parse(json.dumps({"event": "dtmf", "dtmf": {"digit": digit}})) == messages.Other("dtmf")


def test_halves_of_characters_and_line_breaks_do_not_reach_the_report() -> None:
    start = {"streamSid": "MZ1", "mediaFormat": FORMAT, "customParameters": {"a\ud800": "b\n\x1b"}}

    message = parse(json.dumps({"event": "start", "start": start}))

    assert isinstance(message, messages.Start)
    assert message.parameters == {"a": "b"}


def test_what_lists_the_source_imports_nothing_heavy() -> None:
    code = (
        "import sys, moshi_pipe_telephone.server, moshi_pipe_telephone.options\n"
        "print([m for m in ('numpy', 'torch', 'websockets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
