"""A client's connection, as the engine's process sees it: rows up, rows down, and words."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.server.lane import Down, DownWriter, Up, UpReader
    from moshi_pipe.server.messages import Close
    from moshi_pipe.server.process import EdgeProcess


class Connection:
    """One connection; it has a lane once it is seated.

    Args:
        edge: The process that holds its socket.
        number: Its number there.
        request: What the client asked for; see :mod:`~moshi_pipe.server.link`.

    Attributes:
        edge: The process that holds its socket.
        request: What the client asked for.
        lane: Number of its lane; None before it has a seat.
        news: Set when rows came, room was made, or it was closed.
        closed: Nothing more is sent or taken; the edge has been told why.
    """

    def __init__(self, edge: EdgeProcess, number: int, request: Mapping[str, Any]) -> None:
        self.edge = edge
        self.request = request
        self.lane: int | None = None
        self.news = asyncio.Event()
        self.closed = False
        self._number = number
        self._up: UpReader | None = None
        self._down: DownWriter | None = None
        self._num_up = 0  # rows that the edge has put
        self._num_sent = 0  # rows down that the edge has taken

    def seat(self, lane: int, session: Mapping[str, Any]) -> None:
        """Give it a lane, and let the client talk."""
        self.lane = lane
        self._up = self.edge.lanes.up_reader(lane)
        self._down = self.edge.lanes.down_writer(lane)
        self._send({"op": "seat", "lane": lane, "session": session})

    def queue(self, position: int, waiting: int) -> None:
        """Tell the client where it is in line."""
        self._send({"op": "queue", "position": position, "waiting": waiting})

    def say(self, metadata: Mapping[str, Any]) -> None:
        """Send metadata to the client."""
        self._send({"op": "say", "metadata": metadata})

    def end(self, close: Close, reason: str, error: str | None = None) -> None:
        """Close it once all rows were sent; it must not be used any more."""
        op = "refuse" if self._down is None else "end"
        rows = 0 if self._down is None else self._down.num_put
        self._send({"op": op, "rows": rows, "close": int(close), "reason": reason, "error": error})
        self.drop()

    def drop(self) -> None:
        """Take and send nothing any more."""
        self.closed = True
        self.news.set()

    def came(self, rows: int) -> None:
        """The edge has put so many rows."""
        self._num_up = rows
        self.news.set()

    def went(self, rows: int) -> None:
        """The edge has taken so many rows."""
        self._num_sent = rows
        self.news.set()

    @property
    def num_taken(self) -> int:
        """Frames taken so far."""
        return 0 if self._up is None else self._up.num_taken

    def take(self) -> Up | None:
        """Take the next frame if there is one.

        Raises:
            LaneError: The edge does not count right.
        """
        if self.closed or self._up is None or self.lane is None:
            return None
        frame = self._up.take(self._num_up)
        if frame is not None:
            self.edge.link.took(self.lane, self._up.num_taken)
        return frame

    def room(self) -> int:
        """Answers that can be sent now.

        Raises:
            LaneError: The edge does not count right.
        """
        if self.closed or self._down is None:
            return 0
        return self._down.room(self._num_sent)

    def put(self, answer: Down) -> None:
        """Send an answer; there must be room."""
        if self._down is not None and self.lane is not None:
            self.edge.link.put(self.lane, self._down.put(answer))

    def _send(self, message: Mapping[str, Any]) -> None:
        if not self.closed:
            self.edge.link.send({**message, "conn": self._number})
