"""Sink ``websocket``: back to the client that the session came from."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.server.guest import Guest
from moshi_pipe.server.lane import Down
from moshi_pipe.units import NS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.graph.node import TextTokenizer
    from moshi_pipe.graph.packet import Packet

_UNKNOWN_ID: Final = 0


class Pieces:
    """Text of tokens as the reference sends it: the unknown and the padding token are nothing.

    Pieces that are one byte of a character are held until the character is whole.

    Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/server.py, which leaves bytes as they are.

    Args:
        tokenizer: That of the model.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take a token, and return what can be said of it now; often nothing."""
        tokenizer = self._tokenizer
        if token in (_UNKNOWN_ID, tokenizer.padding_id):
            return ""
        piece = tokenizer.piece(token)
        if tokenizer.is_byte(token):
            return self._bytes.decode(bytes([int(piece[1:-1], 16)]))  # <0xE2>
        return self.finish() + piece.replace("▁", " ")

    def finish(self) -> str:
        """What is left of a character that was never whole."""
        rest = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return rest


class WebsocketSink(Sink):
    """What the model says, to the client; audio, text, or both, as the graph makes them.

    Answers that find no room are dropped and counted, so that nobody waits for a slow client;
    where the run is lossless, the session waits instead.
    """

    optional = ("audio", "text")
    realtime = True
    keeps = False

    def __init__(self) -> None:
        self._guest: Guest | None = None
        self._pieces: Pieces | None = None
        self._with_audio = False
        self._text = ""  # comes before the audio of its frame
        self._frame_ns = 0
        self._last_frame: int | None = None
        self._num_frames = self._num_characters = self._num_dropped = self._num_late = 0

    async def open(self, session: SessionInfo) -> None:
        """Find the client.

        Raises:
            ConfigError: The session has none, or the graph makes nothing for it.
        """
        guest = getattr(session, "reply", None)
        if not isinstance(guest, Guest):
            raise ConfigError(
                "sink=websocket sends to the client of a session, and this one has none",
                fix="choose it with source=websocket",
            )
        self._with_audio = isinstance(session.formats.get("audio"), Audio)
        if "text" in session.formats and session.tokenizer is not None:
            self._pieces = Pieces(session.tokenizer)
        if not self._with_audio and self._pieces is None:
            raise ConfigError(
                "sink=websocket needs the output 'audio' or 'text', and this graph makes neither",
                fix="choose graph=dialogue, graph=transcribe or graph=codec",
            )
        self._guest = guest
        self._frame_ns = round(session.frame_s * NS_PER_SECOND)
        guest.has_sink = True

    async def write(self, packet: Packet) -> None:
        """Send a packet; what is written goes along with the audio of its frame."""
        guest = self._running()
        if packet.output == "text":
            self._text += "" if self._pieces is None else self._pieces.push(int(packet.payload))
            if self._with_audio or not self._text:
                return
        await self._send(guest, packet)

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Send what is left, and say good-bye."""
        guest = self._guest
        if guest is None:
            return {}
        if self._pieces is not None:
            self._text += self._pieces.finish()
        if self._text:
            await guest.send(Down(end.num_frames, 0, None, self._text))
        guest.finish(complete=end.complete)
        return {
            "sink": "websocket",
            "frames": self._num_frames,
            "characters": self._num_characters,
            "skipped": guest.num_skipped,
            "late": self._num_late,
        }

    async def _send(self, guest: Guest, packet: Packet) -> None:
        times, text, audio_N = packet.times, self._text, None
        self._text = ""
        self._num_characters += len(text)
        if packet.output == "audio":
            audio_N = np.asarray(packet.payload, np.float32)[0]
            self._count(guest, packet)
        await guest.send(
            Down(
                packet.frame,
                times.delivered_ns,
                audio_N,
                text,
                self._num_dropped,
                self._num_late,
            )
        )

    def _count(self, guest: Guest, packet: Packet) -> None:
        times = packet.times
        self._num_frames += 1
        guest.counts.answers += 1
        if self._last_frame is not None:
            num_missing = packet.frame - self._last_frame - 1
            self._num_dropped += num_missing
            guest.counts.dropped += num_missing
        self._last_frame = packet.frame
        latency_ns = times.end_ns - times.delivered_ns
        if times.delivered_ns and latency_ns >= 0:
            self._num_late += latency_ns > self._frame_ns
            guest.counts.latency.add_ns(latency_ns)

    def _running(self) -> Guest:
        if self._guest is None:
            raise RuntimeError("the sink is not open")
        return self._guest
