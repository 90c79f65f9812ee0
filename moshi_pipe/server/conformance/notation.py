"""How the corpus writes bytes.

::

    01 ff            two bytes
    'at_capacity: '  the bytes of a text
    (00)*3840        so many times
    <tone 0-3>       pages of a recorded stream, see cases/streams.yaml
    ...              at the end of a pattern: anything
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Streams = Mapping[str, Sequence[bytes]]

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<hex>[0-9a-f]{2})(?![0-9a-f])"
    r"|'(?P<text>[^']*)'"
    r"|\((?P<part>[^()]*)\)\*(?P<times>[0-9]+)"
    r"|<(?P<stream>\w+) (?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?>)\s*"
)
_SHOWN_BYTES: Final = 24


def parse_bytes(text: str, streams: Streams) -> bytes:
    """Bytes that a notation stands for.

    Args:
        text: The notation.
        streams: Pages of streams, by name.

    Raises:
        ValueError: It is none.
    """
    out, at = b"", 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"not a notation of bytes: {text[at:]!r}")
        if found["hex"] is not None:
            out += bytes.fromhex(found["hex"])
        elif found["text"] is not None:
            out += found["text"].encode()
        elif found["part"] is not None:
            out += parse_bytes(found["part"], streams) * int(found["times"])
        else:
            out += _pages(streams, found["stream"], int(found["first"]), found["last"])
        at = found.end()
    return out


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a message should be.

    Attributes:
        text: As it was written.
        head: What it begins with.
        is_open: Whether anything may follow.
    """

    text: str
    head: bytes
    is_open: bool

    @classmethod
    def parse(cls, text: str, streams: Streams) -> Pattern:
        """Read a notation that may end in ``...``.

        Raises:
            ValueError: It is none.
        """
        head = text.removesuffix("...")
        return cls(text, parse_bytes(head, streams), head != text)

    def matches(self, message: bytes) -> bool:
        """Whether the message is so."""
        return message.startswith(self.head) if self.is_open else message == self.head


def show(message: bytes) -> str:
    """A message for people: its kind, and its payload as text where it is one."""
    if not message:
        return "an empty message"
    payload = message[1:]
    if message[0] in (2, 4, 5):
        return f"{message[0]:02x} {payload.decode(errors='replace')[:200]!r}"
    rest = f" ... ({len(message)} bytes)" if len(message) > _SHOWN_BYTES else ""
    return message[:_SHOWN_BYTES].hex(" ") + rest


def _pages(streams: Streams, name: str, first: int, last: str | None) -> bytes:
    if name not in streams:
        raise ValueError(f"there is no stream {name!r}")
    end = first + 1 if last is None else int(last) + 1
    if not first < end <= len(streams[name]):
        raise ValueError(
            f"stream {name!r} has {len(streams[name])} pages, not {first} to {end - 1}"
        )
    return b"".join(streams[name][first:end])
