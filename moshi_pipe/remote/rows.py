"""What a session sends and hears, put together again into one row per frame."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.engine.lateness import TickTimes
from moshi_pipe.engine.session import TIMES, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.engine.clock import Clock
    from moshi_pipe.remote.pieces import Pieces

_PIECE: Final = re.compile(r"[ ▁]*[^ ▁]+|[ ▁]+$")
"""A piece begins with the space in front of it."""


@dataclass(slots=True)
class Sent:
    """A frame on its way to its answer.

    Attributes:
        frame: Its number in the session.
        audio: Samples, ``[1, N]``.
        delivered_ns: When it was there to be sent.
        sent_ns: When it was sent.
    """

    frame: int
    audio: npt.NDArray[np.float32]
    delivered_ns: int
    sent_ns: int = 0


class Rows:
    """Frames in flight, and the outbox that their answers go to, in order.

    Args:
        session: Whose outbox it is.
        user_outputs: Outputs of the graph that are its input.
        pieces: Numbers what the model says.
        clock: Stamps rows.
        count: Told of every frame that was answered.

    Attributes:
        changed: Set when an answer made room, and by the session's rings.
        num_surplus: Answers that no frame of the session waited for.
    """

    def __init__(
        self,
        session: Session,
        user_outputs: tuple[str, ...],
        pieces: Pieces,
        clock: Clock,
        count: Callable[[TickTimes], None],
    ) -> None:
        self.changed = asyncio.Event()
        self.num_surplus = 0
        self._session = session
        self._user_outputs = user_outputs
        self._pieces = pieces
        self._clock = clock
        self._count = count
        self._flight: deque[Sent] = deque()
        self._lock = asyncio.Lock()  # rows come in order
        self._last = -1  # frame of the last row
        self._last_has_audio = False

    def __len__(self) -> int:
        """Frames in flight."""
        return len(self._flight)

    def sent(self, frame: Sent) -> None:
        """Wait for the answer of a frame."""
        self._flight.append(frame)

    def take_back(self) -> list[Sent]:
        """Frames in flight, oldest first, to be sent again."""
        frames = list(self._flight)
        self._flight.clear()
        return frames

    async def answer(self, audio_CN: npt.NDArray[np.float32], *, more: bool = False) -> None:
        """Put an answer beside the frame that it belongs to.

        Args:
            audio_CN: One frame, ``[1, N]``.
            more: All was sent: what no frame waits for is what the server says further.
        """
        now_ns = self._clock.now_ns()
        async with self._lock:
            if self._flight:
                sent = self._flight.popleft()
                self.changed.set()
                took_ns = now_ns - sent.sent_ns
                row = self._heard(sent) | {"audio": audio_CN}
                row[TIMES] = (sent.delivered_ns, sent.sent_ns, now_ns, took_ns)
                await self._put(sent.frame, row)
                frames = ((self._session.id, sent.frame, sent.delivered_ns),)
                stages = ((sent.sent_ns, now_ns),)
                self._count(TickTimes(sent.sent_ns, now_ns, stages, frames))
                self._last_has_audio = True
                return
            self.num_surplus += 1
            if self._last >= 0 and (more or not self._last_has_audio):
                frame = self._last + self._last_has_audio
                self._last_has_audio = True
                await self._put(frame, {"audio": audio_CN, TIMES: (now_ns, now_ns, now_ns, 0)})

    async def say(self, text: str) -> None:
        """Put text to the frame that was answered last.

        Args:
            text: A piece, or what was held back of a character and the piece after it.
        """
        now_ns = self._clock.now_ns()
        async with self._lock:
            times = (now_ns, now_ns, now_ns, 0)
            for piece in _PIECE.findall(text):
                number = self._pieces.number(piece)
                await self._put(max(0, self._last), {"text": number, TIMES: times})

    async def release(self, count: int | None = None) -> int:
        """Give up waiting for the answers of the oldest frames; None means of all.

        Returns:
            How many there were.
        """
        count = len(self._flight) if count is None else min(count, len(self._flight))
        async with self._lock:
            for _ in range(min(count, len(self._flight))):
                sent = self._flight.popleft()
                now_ns = self._clock.now_ns()
                times = (sent.delivered_ns, sent.sent_ns, now_ns, 0)
                await self._put(sent.frame, self._heard(sent) | {TIMES: times})
                self._last_has_audio = False
        self.changed.set()
        return count

    async def wait_for_change(self, tasks: set[asyncio.Future[Any]] | None = None) -> None:
        """Wait until a ring changed, or one of the tasks is done."""
        change = asyncio.ensure_future(self.changed.wait())
        try:
            await asyncio.wait({change, *(tasks or ())}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
        self.changed.clear()

    def _heard(self, sent: Sent) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(self._user_outputs, sent.audio)
        return row | {"text": self._pieces.padding_id}

    async def _put(self, frame: int, row: Mapping[str, Any]) -> None:
        """Put a row into the outbox, waiting for room."""
        session, outbox = self._session, self._session.outbox
        while not outbox.put(frame, row):
            if outbox.ended or session.cancelled:
                return
            self.changed.clear()
            if outbox.full and not outbox.ended:
                await self.wait_for_change()
        if frame > self._last:
            session.num_frames += 1
            session.next_frame = frame + 1
            self._last = frame
