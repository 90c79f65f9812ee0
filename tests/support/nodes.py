"""Small sources, sinks and batched nodes for tests of the graph, the engine and the edge."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.errors import InputError, OutputError
from moshi_pipe.graph.format import Audio, Text
from moshi_pipe.graph.node import (
    BatchedNode,
    SessionEnd,
    SessionInfo,
    SessionInput,
    SessionSettings,
    Sink,
    Source,
    Tick,
    Value,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from moshi_pipe.graph.packet import Packet

FRAME = 8
RATE = 100
AUDIO = Audio(sample_rate=RATE, frame_size=FRAME)
AUDIO_RATE = Fraction(RATE, FRAME)


class ArrayInput(SessionInput):
    """Gives one array in chunks; fails after ``fail_after`` chunks if asked."""

    def __init__(
        self, name: str, pcm_N: Any, *, chunk: int = FRAME, fail_after: int | None = None
    ) -> None:
        self.id = name
        self.meta = {"stem": name}
        self.sample_rate = RATE
        self.pcm_N = np.asarray(pcm_N, dtype=np.float32)
        self.num_samples = self.pcm_N.size
        self.chunk = chunk
        self.fail_after = fail_after

    async def chunks(self) -> AsyncIterator[Any]:
        """Yield ``[1, chunk]`` arrays."""
        for i, start in enumerate(range(0, self.pcm_N.size, self.chunk)):
            if i == self.fail_after:
                raise InputError(f"cannot read {self.id}", got="a stone in the file")
            yield self.pcm_N[None, start : start + self.chunk]


class ListSource(Source):
    """Gives the sessions it was made with."""

    def __init__(self, items: Sequence[SessionInput]) -> None:
        self.items = items

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield them in order."""
        for item in self.items:
            yield item


class MemorySink(Sink):
    """Keeps everything; raises on the frame ``fail_at`` if asked."""

    def __init__(self, takes: Sequence[str] = ("audio",), *, fail_at: int | None = None) -> None:
        self.takes = takes
        self.fail_at = fail_at
        self.packets: list[Packet] = []
        self.closed: tuple[int, bool] | None = None
        self.opened = False

    async def open(self, session: SessionInfo) -> None:
        """Remember that it was opened."""
        self.opened = True

    async def write(self, packet: Packet) -> None:
        """Keep the packet."""
        if packet.frame == self.fail_at:
            raise OutputError("the disk is full")
        self.packets.append(packet)

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Remember how the session ended."""
        self.closed = (end.num_frames, end.complete)
        return {"packets": len(self.packets)}

    def audio(self) -> np.ndarray:
        """All audio packets joined."""
        parts = [p.payload for p in self.packets if p.output == "audio"]
        return np.concatenate([np.asarray(p)[0] for p in parts]) if parts else np.zeros(0)


class Accumulate(BatchedNode):
    """Adds to each frame the sum of all frames before it: has state, so slots can be mixed up.

    Args:
        break_on: A frame that holds this value becomes NaN.
    """

    def __init__(self, break_on: float | None = None) -> None:
        self.inputs = {"audio": AUDIO}
        self.outputs = {"audio": AUDIO}
        self.break_on = break_on
        self.broken: list[int] = []
        self.ticks: list[Tick] = []
        self.joined: list[tuple[int, int]] = []
        self.state = torch.zeros(0)

    def open(self, num_slots: int) -> None:
        """Make state."""
        self.state = torch.zeros(num_slots, 1, FRAME)

    def join(self, slot: int, settings: SessionSettings) -> None:
        """Zero the row."""
        self.joined.append((slot, settings.seed))
        self.state[slot] = 0

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Add."""
        self.ticks.append(tick)
        audio = inputs["audio"]
        valid = torch.from_numpy(audio.valid)[:, None, None]
        self.state[: tick.n] += torch.where(valid, audio.tensor, 0)
        out = self.state[: tick.n].clone()
        self.broken = []
        if self.break_on is not None:
            hit = (audio.tensor == self.break_on).any(dim=-1)[:, 0].numpy() & audio.valid
            self.broken = [int(slot) for slot in np.flatnonzero(hit)]
            out[self.broken] = torch.nan
        return {"audio": Value(out, audio.valid)}

    def failed(self) -> Sequence[int]:
        """Rows that became NaN in the last step."""
        return self.broken


class Speaker(BatchedNode):
    """Makes a text token per frame: 1 while it hears, then 0, and 2 some frames after the end."""

    def __init__(self, end_after: int) -> None:
        self.inputs = {"audio": AUDIO}
        self.outputs = {"text": Text(3, AUDIO_RATE)}
        self.end_after = end_after
        self.since_end: dict[int, int] = {}

    def join(self, slot: int, settings: SessionSettings) -> None:
        """Forget the last session."""
        self.since_end.pop(slot, None)

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Answer."""
        token = torch.ones(tick.n, dtype=torch.int64)
        for slot in range(tick.n):
            if tick.end_codes[slot]:
                self.since_end[slot] = 0
            if slot in self.since_end:
                token[slot] = 2 if self.since_end[slot] == self.end_after else 0
                self.since_end[slot] += 1
        return {"text": Value(token, tick.active.copy())}


class Script(BatchedNode):
    """Writes a text token per frame as given, the last one for ever, and repeats what it hears."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.inputs = {"audio": AUDIO}
        self.outputs = {"audio": AUDIO, "text": Text(9, AUDIO_RATE)}
        self.tokens = tokens
        self.frames: dict[int, int] = {}
        self.end_codes = 0

    def join(self, slot: int, settings: SessionSettings) -> None:
        """Begin the script."""
        self.frames[slot] = 0

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Say the next token."""
        self.end_codes += int(tick.end_codes.sum())
        token = torch.zeros(tick.n, dtype=torch.int64)
        for slot in np.flatnonzero(tick.active):
            token[slot] = self.tokens[min(self.frames[int(slot)], len(self.tokens) - 1)]
            self.frames[int(slot)] += 1
        audio = inputs["audio"]
        return {
            "audio": Value(audio.tensor.clone(), audio.valid),
            "text": Value(token, tick.active),
        }


def session_info(name: str, folder: Path, formats: Mapping[str, Any] | None = None) -> SessionInfo:
    """What sinks are told in tests."""
    return SessionInfo(
        id=name,
        meta={"stem": name},
        output_dir=folder,
        formats=formats or {"audio": AUDIO},
        frame_s=FRAME / RATE,
        seed=0,
    )
