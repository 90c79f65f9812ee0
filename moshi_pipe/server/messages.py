"""Messages between a client and a server, byte for byte; see ``docs/protocol.md``.

A message is binary; its first byte is its kind. Source: kyutai-labs/moshi@e6a55d2
rust/protocol.md and moshi/moshi/server.py, which use kinds 0 to 2 and reserve the others.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PROTOCOL: Final = 1
"""Version of the metadata's contents; announced in every ``session`` message."""

HANDSHAKE: Final = b"\x00"
"""The whole handshake of a server: now a client may talk."""

MAX_PING: Final = 125
"""Bytes of a ping's payload at most."""


class Kind(enum.IntEnum):
    """First byte of a message."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6


class Control(enum.IntEnum):
    """Payload of a control message."""

    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


class AudioFormat(str, enum.Enum):
    """What the payload of an audio message is, in both directions."""

    OGG_OPUS = "ogg_opus"
    PCM_S16LE = "pcm_s16le"
    PCM_F32LE = "pcm_f32le"


class Close(enum.IntEnum):
    """Codes that the server closes a connection with. Source: RFC 6455, section 7.4.1."""

    DONE = 1000
    GOING_AWAY = 1001
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL = 1011
    RESTART = 1012
    TRY_LATER = 1013


REASONS: Final = {
    "done": Close.DONE,
    "time_limit": Close.DONE,
    "idle": Close.DONE,
    "shutdown": Close.GOING_AWAY,
    "bad_request": Close.POLICY,
    "too_many_bad_messages": Close.POLICY,
    "too_fast": Close.POLICY,
    "too_slow": Close.POLICY,
    "taken_over": Close.POLICY,
    "resume_failed": Close.POLICY,
    "internal": Close.INTERNAL,
    "engine failed": Close.RESTART,
    "at_capacity": Close.TRY_LATER,
    "too_many_connections": Close.TRY_LATER,
}
"""What the reason of a close begins with, and its code; that of 1009 is the library's."""

ERRORS: Final = (
    "bad_message",
    "unsupported",
    "bad_request",
    "too_many_bad_messages",
    "too_fast",
    "taken_over",
    "resume_failed",
    "shutdown",
    "engine_failed",
    "internal",
    "at_capacity",
    "too_many_connections",
)
"""Words that error messages begin with; all but the first two are followed by a close."""

METADATA: Final = ("session", "queue", "stats", "ending", "skipped")
"""Types of metadata."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it came.

    Attributes:
        kind: Its first byte.
        payload: What follows.
    """

    kind: Kind
    payload: bytes


class MessageError(Exception):
    """A message that the protocol does not know.

    Attributes:
        code: ``empty``, ``text`` or ``unknown_kind``; counted under this name.
    """

    def __init__(self, code: str, what: str) -> None:
        self.code = code
        super().__init__(what)


def parse(data: bytes | str) -> Message:
    """Take a message apart.

    Raises:
        MessageError: It is empty, text, or of a kind that there is not.
    """
    if isinstance(data, str):
        raise MessageError("text", "messages are binary, this one is text")
    if not data:
        raise MessageError("empty", "the message is empty, it lacks its kind")
    try:
        return Message(Kind(data[0]), data[1:])
    except ValueError as error:
        raise MessageError("unknown_kind", f"there is no message of kind {data[0]}") from error


def build(kind: Kind, payload: bytes = b"") -> bytes:
    """Put a message together."""
    return bytes([kind]) + payload


def text(piece: str) -> bytes:
    """A message with a piece of text."""
    return build(Kind.TEXT, piece.encode())


def metadata(values: Mapping[str, Any]) -> bytes:
    """A message with a JSON object; ``type`` says which."""
    return build(Kind.METADATA, json.dumps(values, separators=(",", ":")).encode())


def error(code: str, what: str) -> bytes:
    """A message that says what went wrong: a word for programs, a sentence for people."""
    return build(Kind.ERROR, f"{code}: {what}".encode())
