"""The link between the engine's process and an edge process: messages on a pair of sockets.

A message is a header ``<IB``, the number of bytes that follow and what they are, and then either a
JSON object, or ``<HI``: the number of a lane, and how many of its rows were put or taken so far.
Messages keep their order: what was put before an object is known before it.

The engine's process makes everything and starts each edge process with
:class:`~moshi_pipe.server.process.EdgeProcess`, which calls ::

    moshi_pipe.server.edge_process.main(options_json, listen_fds, link_fd, memory_fd)

with four strings: a JSON object ``{"edge": 0, "server": {...}, "lanes": 12,
"frame_samples": 1920}`` where ``server`` holds the fields of
:class:`~moshi_pipe.server.options.ServerOptions`; the descriptors of the listening sockets, comma
separated, as there may be one per address of the host; that of the edge's end of the link; and that
of the memory of its lanes, see :func:`~moshi_pipe.server.lane.map_memory`. All are inherited and
owned by the edge. It ignores SIGINT and SIGTERM, as terminals and service managers signal whole
groups of processes and the engine's process decides when the end has come; it ends when it is told
to ``stop``, and when its link closes, which is how it learns that the engine's process is gone.
What it wants to have logged it sends as ``{"op": "log", "level": "warning", "text": "..."}``.

Objects, by their ``op``. From the edge:

- ``hello`` (``edge``, ``pid``), first, when it can accept;
- ``open`` (``conn``, ``request``): a client wants a conversation. ``request`` holds
  ``audio``, ``rate``, ``settings`` (of ``temperature``, ``text_temperature``, ``top_k``,
  ``text_top_k`` and ``repetition_penalty``, those that it sets), ``seed``, ``max_s``, ``record``
  and ``resume``;
- ``end_turn`` (``conn``, ``rows``): its input has ended after so many rows up;
- ``gone`` (``conn``, ``lost``, ``why``): the connection is over, also after ``end`` and ``refuse``;
  the edge touches its lane no more. Lost connections may come back;
- ``counts`` (``counts``): events since the last, by name and label, ``bad_messages.empty``;
  ``gauges`` (``gauges``): what is now, such as ``connections``;
- ``ask`` (``id``, ``what``: ``info`` or ``metrics``), answered by ``answer`` (``id``,
  ``value``);
- ``log`` (``level``, ``text``).

From the engine:

- ``ready`` (``facts``): conversations can begin; ``not_ready`` (``why``): the engine was lost;
- ``queue`` (``conn``, ``position``, ``waiting``);
- ``seat`` (``conn``, ``lane``, ``session``): the client may talk, ``session`` is its metadata;
- ``say`` (``conn``, ``metadata``);
- ``end`` (``conn``, ``rows``, ``close``, ``reason``, ``error``): when so many rows down were sent,
  send the error if there is one, and close; at once if ``rows`` is 0 or the connection was not
  seated;
- ``refuse`` (``conn``, ``close``, ``reason``, ``error``): in place of a seat;
- ``drain``: accept nobody any more; ``stop``: close what is left, and end.
"""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Mapping

MAX_MESSAGE: Final = 1 << 20
"""Bytes of a message at most."""

MAX_UNSENT: Final = 8 << 20
"""Bytes that wait for the other side at most; beyond, it is stuck."""

_OBJECT: Final = 0
_PUT: Final = 1
_TOOK: Final = 2
_HEADER: Final = struct.Struct("<IB")
_COUNT: Final = struct.Struct("<HI")
_READ_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Put:
    """The other side has put rows into a lane.

    Attributes:
        lane: Its number.
        rows: Rows put since the conversation began.
    """

    lane: int
    rows: int


@dataclass(frozen=True, slots=True)
class Took:
    """The other side has taken rows from a lane.

    Attributes:
        lane: Its number.
        rows: Rows taken since the conversation began.
    """

    lane: int
    rows: int


class LinkError(Exception):
    """The other side sent what is no message."""


class Decoder:
    """Cuts a stream of bytes into messages, however it arrives."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Put | Took | dict[str, Any]]:
        """Take bytes, and return the messages that are complete.

        Raises:
            LinkError: They are no messages.
        """
        self._data += data
        messages: list[Put | Took | dict[str, Any]] = []
        at = 0
        while len(self._data) - at >= _HEADER.size:
            size, op = _HEADER.unpack_from(self._data, at)
            if size > MAX_MESSAGE:
                raise LinkError(f"a message of {size} bytes, {MAX_MESSAGE} are the most")
            end = at + _HEADER.size + size
            if end > len(self._data):
                break
            messages.append(_message(op, bytes(self._data[at + _HEADER.size : end])))
            at = end
        del self._data[:at]
        return messages


class Link:
    """One end. All calls are of the event loop that the streams belong to.

    Sending never waits: messages of one turn of the loop go out together, and a side that does not
    read them is cut off at :data:`MAX_UNSENT`, which ends :meth:`messages` here.

    Attributes:
        closed: Whether nothing can be sent any more.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._unsent = bytearray()
        self.closed = False

    def send(self, message: Mapping[str, Any]) -> None:
        """Send an object.

        Raises:
            ValueError: It is larger than :data:`MAX_MESSAGE`.
        """
        payload = json.dumps(message, separators=(",", ":")).encode()
        if len(payload) > MAX_MESSAGE:
            raise ValueError(f"a message of {len(payload)} bytes, {MAX_MESSAGE} are the most")
        self._write(_OBJECT, payload)

    def put(self, lane: int, rows: int) -> None:
        """Tell how many rows of a lane were put so far."""
        self._write(_PUT, _COUNT.pack(lane, rows))

    def took(self, lane: int, rows: int) -> None:
        """Tell how many rows of a lane were taken so far."""
        self._write(_TOOK, _COUNT.pack(lane, rows))

    async def messages(self) -> AsyncIterator[Put | Took | dict[str, Any]]:
        """What the other side sends, until it or this side closes, in whatever way.

        Raises:
            LinkError: It sends what is no message.
        """
        decoder = Decoder()
        with suppress(OSError):
            while not self.closed and (data := await self._reader.read(_READ_BYTES)):
                for message in decoder.feed(data):
                    yield message
        self.close()

    def close(self) -> None:
        """Send what waits, and close; not waited for."""
        if not self.closed:
            self._flush()
            self.closed = True
            self._writer.close()

    def _write(self, op: int, payload: bytes) -> None:
        if self.closed:
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += _HEADER.pack(len(payload), op) + payload

    def _flush(self) -> None:
        if self.closed or not self._unsent:
            return
        transport = self._writer.transport
        self._writer.write(bytes(self._unsent))
        self._unsent.clear()
        if transport.get_write_buffer_size() > MAX_UNSENT:
            self.closed = True
            transport.abort()


async def open_link(end: socket.socket) -> Link:
    """A link over one end of a pair of connected sockets, which it owns from now on."""
    end.setblocking(False)
    return Link(*await asyncio.open_connection(sock=end))


def _message(op: int, payload: bytes) -> Put | Took | dict[str, Any]:
    """Understand one message.

    Raises:
        LinkError: It is none.
    """
    try:
        if op == _PUT:
            return Put(*_COUNT.unpack(payload))
        if op == _TOOK:
            return Took(*_COUNT.unpack(payload))
        value = json.loads(payload) if op == _OBJECT else None
    except (struct.error, ValueError) as error:
        raise LinkError(f"a message of kind {op} that cannot be read") from error
    if not isinstance(value, dict):
        raise LinkError(f"a message of kind {op} that is no object")
    return value
