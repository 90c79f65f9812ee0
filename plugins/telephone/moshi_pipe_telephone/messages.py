"""Twilio's media-stream messages: JSON text over a websocket.

Source: twilio.com/docs/voice/media-streams/websocket-messages.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

SAMPLE_RATE: Final = 8000
"""Hz of all that is said here."""

MAX_BYTES: Final = 16_384
"""Of one message: a packet of 20 ms takes about 400."""

_FORMAT: Final = {"encoding": "audio/x-mulaw", "sampleRate": SAMPLE_RATE, "channels": 1}
_MAX_PARAMETERS: Final = 32
_MAX_PARAMETER_CHARS: Final = 512
_DIGITS: Final = tuple("0123456789*#ABCD")
_SID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Source: RFC 6455, section 7.4.1, and the registry that it opens.
NOT_TEXT: Final = 1003
NOT_READABLE: Final = 1007
NOT_ALLOWED: Final = 1008
TOO_LARGE: Final = 1009
FAILED: Final = 1011
BUSY: Final = 1013
LEAVING: Final = 1001
DONE: Final = 1000


class CallError(Exception):
    """The other side does what it may not; the call is closed.

    Attributes:
        code: Close code.
        reason: What it did, in a few words; also what such calls are counted under.
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Start:
    """A call begins.

    Attributes:
        stream_sid: Names the stream in every message.
        call_sid: Names the call; empty where the other side gives none.
        parameters: What the caller's application added.
    """

    stream_sid: str
    call_sid: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Media:
    """Sound of the caller, mu-law at 8 kHz."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Mark:
    """What was sent before the mark of this name was played, or was cleared."""

    name: str


@dataclass(frozen=True, slots=True)
class Dtmf:
    """A key was pressed."""

    digit: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The call is over."""


@dataclass(frozen=True, slots=True)
class Other:
    """A message that needs no answer, such as ``connected``."""

    event: str


Message = Start | Media | Mark | Dtmf | Stop | Other


def parse(data: str | bytes) -> Message:
    """Read a message.

    Raises:
        CallError: It is no text, no JSON, or lacks what its kind must have.
    """
    if not isinstance(data, str):
        raise CallError(NOT_TEXT, "not text")
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CallError(NOT_READABLE, "not JSON") from error
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise CallError(NOT_READABLE, "no event")
    event = record["event"]
    if event == "start":
        return _start(_part(record, "start"))
    if event == "media":
        return _media(_part(record, "media"))
    if event == "mark":
        return Mark(_text(_part(record, "mark"), "name"))
    if event == "dtmf":
        return _dtmf(_part(record, "dtmf"))
    return Stop() if event == "stop" else Other(event)


def media(stream_sid: str, payload: bytes) -> str:
    """A message with sound for the caller, mu-law at 8 kHz."""
    return _write("media", stream_sid, media={"payload": base64.b64encode(payload).decode()})


def mark(stream_sid: str, name: str) -> str:
    """A message that comes back when all before it was played."""
    return _write("mark", stream_sid, mark={"name": name})


def clear(stream_sid: str) -> str:
    """A message that makes the other side forget what it has not played yet."""
    return _write("clear", stream_sid)


def _write(event: str, stream_sid: str, **rest: Any) -> str:
    return json.dumps({"event": event, "streamSid": stream_sid, **rest}, separators=(",", ":"))


def _start(part: Mapping[str, Any]) -> Start:
    given = part.get("mediaFormat")
    if not isinstance(given, dict) or any(given.get(k) != v for k, v in _FORMAT.items()):
        raise CallError(NOT_TEXT, "wrong media format")
    parameters = part.get("customParameters") or {}
    if not isinstance(parameters, dict) or len(parameters) > _MAX_PARAMETERS:
        raise CallError(NOT_READABLE, "wrong custom parameters")
    return Start(
        stream_sid=_sid(part, "streamSid"),
        call_sid=_sid(part, "callSid") if part.get("callSid") else "",
        parameters={_clean(key): _clean(str(value)) for key, value in parameters.items()},
    )


def _media(part: Mapping[str, Any]) -> Message:
    if part.get("track", "inbound") != "inbound":
        return Other("media")  # an echo of what was sent
    try:
        return Media(base64.b64decode(_text(part, "payload"), validate=True))
    except (binascii.Error, ValueError) as error:
        raise CallError(NOT_READABLE, "wrong payload") from error


def _dtmf(part: Mapping[str, Any]) -> Message:
    digit = _text(part, "digit")
    return Dtmf(digit) if digit in _DIGITS else Other("dtmf")


def _clean(text: str) -> str:
    """Text that a report can hold: no halves of characters, nothing that moves a cursor."""
    return "".join(c for c in text[:_MAX_PARAMETER_CHARS] if c.isprintable())


def _part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = record.get(name)
    if not isinstance(part, dict):
        raise CallError(NOT_READABLE, f"no {name}")
    return part


def _text(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    if not isinstance(value, str):
        raise CallError(NOT_READABLE, f"no {name}")
    return value


def _sid(part: Mapping[str, Any], name: str) -> str:
    sid = _text(part, name)
    if not _SID.fullmatch(sid):
        raise CallError(NOT_READABLE, f"wrong {name}")
    return sid
