"""The conformance checks: our own parts pass, and parts that break one promise each do not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.audio import write_babble
from support.golden import BASE_LM, TINY_MIMI, fill_golden

from moshi_pipe.engine.stages import DecodeStage, EncodeStage, LMStage
from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.graph.format import Audio
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
from moshi_pipe.models.spec import CodecSpec, LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi
from moshi_pipe.nodes.array_source import SilenceSource
from moshi_pipe.nodes.codes_sink import CodesSink
from moshi_pipe.nodes.codes_source import CodesSource
from moshi_pipe.nodes.file_sink import FileSink
from moshi_pipe.nodes.file_source import FileSource
from moshi_pipe.nodes.options import (
    CodesSinkOptions,
    CodesSourceOptions,
    FileSinkOptions,
    FileSourceOptions,
    SilenceSourceOptions,
    TranscriptSinkOptions,
)
from moshi_pipe.nodes.transcript_sink import TranscriptSink
from moshi_pipe.testing import (
    ConformanceError,
    check_codec,
    check_lm,
    check_node,
    check_sink,
    check_source,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.models.protocols import Controls, Step


def make_mimi() -> Mimi:
    model = Mimi(MimiSpec.from_config(TINY_MIMI))
    fill_golden(model)
    model.prepare()
    return model


def make_moshi(numerics: str = "reference") -> Moshi:
    model = Moshi(LMSpec.from_config(BASE_LM), numerics=numerics)
    fill_golden(model)
    return model


MIMI, MOSHI = make_mimi(), make_moshi()
MOSHI_DELAY = MOSHI.spec.max_delay + 3


# ---- our own parts


def test_our_codec_conforms() -> None:
    check_codec(lambda: MIMI)


def test_our_codec_conforms_for_longer_than_its_window() -> None:
    window = (MIMI.mimi.transformer.context or 0) // MIMI.mimi.stride

    check_codec(lambda: MIMI, num_slots=4, frames=2 * window + 3)


@pytest.mark.parametrize("numerics", ["fast", "reference"])
def test_our_language_model_conforms(numerics: str) -> None:
    check_lm(lambda: make_moshi(numerics))


def test_our_language_model_conforms_for_longer_than_its_context() -> None:
    check_lm(lambda: MOSHI, num_slots=4, frames=(MOSHI.lm.temporal.context or 0) + 3)


def test_our_batched_nodes_conform() -> None:
    rate = MIMI.spec.frame_rate

    check_node(lambda: EncodeStage(MIMI), codec=MIMI.spec)
    check_node(lambda: DecodeStage(MIMI), codec=MIMI.spec)
    for first_frame in ("duplicate", "reset"):
        settings = SessionSettings(seed=3, first_frame=first_frame)
        check_node(
            lambda: LMStage(MOSHI, frame_rate=rate), settings=settings, frames=2 * MOSHI_DELAY
        )


def test_our_sources_conform(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.5)
    write_babble(tmp_path / "b.wav", 0.3)
    codes = np.arange(16, dtype=np.int64).reshape(8, 2)
    save_file({"codes": codes}, tmp_path / "c.safetensors")

    check_source(lambda: SilenceSource(SilenceSourceOptions(duration_s=2.5, count=2)))
    check_source(lambda: FileSource(FileSourceOptions(path=str(tmp_path / "*.wav"))))
    check_source(lambda: CodesSource(CodesSourceOptions(path=str(tmp_path / "c.safetensors"))))


class Letters:
    """A tokenizer of one letter a token."""

    padding_id, word_start_id, eos_id = 3, 0, 2

    def piece(self, token: int) -> str:
        return "▁" + chr(97 + token % 26)

    def is_byte(self, token: int) -> bool:
        return False

    def is_control(self, token: int) -> bool:
        return token < 4


def test_our_sinks_conform() -> None:
    check_sink(lambda: FileSink(FileSinkOptions()))
    check_sink(lambda: FileSink(FileSinkOptions(stereo=True, format="flac")))
    check_sink(lambda: CodesSink(CodesSinkOptions()))
    formats = ["jsonl", "txt", "srt", "vtt"]
    check_sink(lambda: TranscriptSink(TranscriptSinkOptions(formats=formats)), tokenizer=Letters())


# ---- codecs that break one promise each


class Wrapped:
    """A codec or model that is as the one inside, but for what a subclass changes."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class OneStateForAll(Wrapped):
    """State shared between streams: whoever asks gets the same."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.states: dict[tuple[str, int], Any] = {}

    def new_encoder_state(self, num_slots: int) -> Any:
        return self.states.setdefault(("e", num_slots), self.inner.new_encoder_state(num_slots))

    def new_state(self, num_slots: int, rows_per_slot: int = 1) -> Any:
        key = (f"{rows_per_slot}", num_slots)
        return self.states.setdefault(key, self.inner.new_state(num_slots, rows_per_slot))


class OneSlotForAll(Wrapped):
    """Slots share the position of slot 0."""

    def encode(self, pcm_BCN: Any, valid_B: Any, state: Any) -> Any:
        heard_BCN = torch.where(valid_B[:, None, None], pcm_BCN, 0.0)
        mixed_BCN = pcm_BCN + 0.1 * heard_BCN.sum(0, keepdim=True)
        return self.inner.encode(mixed_BCN, valid_B, state)


class ResetsNothing(Wrapped):
    def reset(self, state: Any, slots: Sequence[int], conditions: Any = None) -> None:
        pass


class ResetsAll(Wrapped):
    def __init__(self, inner: Any, num_slots: int = 4) -> None:
        super().__init__(inner)
        self.num_slots = num_slots

    def reset(self, state: Any, slots: Sequence[int], conditions: Any = None) -> None:
        self.inner.reset(state, range(self.num_slots))


class IgnoresTheMask(Wrapped):
    def encode(self, pcm_BCN: Any, valid_B: Any, state: Any) -> Any:
        return self.inner.encode(pcm_BCN.nan_to_num(), torch.ones_like(valid_B), state)


class WrongType(Wrapped):
    def encode(self, pcm_BCN: Any, valid_B: Any, state: Any) -> Any:
        return self.inner.encode(pcm_BCN, valid_B, state).int()


class ChangesItsInput(Wrapped):
    def encode(self, pcm_BCN: Any, valid_B: Any, state: Any) -> Any:
        codes_BK = self.inner.encode(pcm_BCN, valid_B, state)
        pcm_BCN *= 0.5
        return codes_BK


class AnswersOneFrameLate(Wrapped):
    """Off by one: the answer to frame t comes with frame t + 1."""

    def new_encoder_state(self, num_slots: int) -> Any:
        state = self.inner.new_encoder_state(num_slots)
        late = torch.zeros(num_slots, self.inner.spec.num_codebooks, dtype=torch.int64)
        return state, late

    def encode(self, pcm_BCN: Any, valid_B: Any, state: Any) -> Any:
        inner, late_BK = state
        rows = len(valid_B)
        out_BK = late_BK[:rows].clone()
        now_BK = self.inner.encode(pcm_BCN, valid_B, inner)
        late_BK[:rows] = torch.where(valid_B[:, None], now_BK, late_BK[:rows])
        return out_BK

    def reset(self, state: Any, slots: Sequence[int]) -> None:
        if isinstance(state, tuple):
            state[1][list(slots)] = 0
            state = state[0]
        self.inner.reset(state, slots)


class DecoderInTheEncoder(Wrapped):
    """The two directions share a loudness, as a module's own buffer would."""

    loudness = 1.0

    def encode(self, pcm_BCN: Any, valid_B: Any, state: Any) -> Any:
        return self.inner.encode(pcm_BCN * self.loudness, valid_B, state)

    def decode(self, codes_BK: Any, valid_B: Any, state: Any) -> Any:
        audio = self.inner.decode(codes_BK, valid_B, state)
        self.loudness = 0.2
        return audio

    def new_encoder_state(self, num_slots: int) -> Any:
        self.loudness = 1.0
        return self.inner.new_encoder_state(num_slots)


class KeepsNaN(Wrapped):
    """A reset that sets the position back and leaves what was stored."""

    def reset(self, state: Any, slots: Sequence[int]) -> None:
        kept = deepcopy(state)
        self.inner.reset(state, slots)
        poison(state, kept)


def poison(state: Any, kept: Any) -> None:
    """Put NaN back where it was before a reset."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point():
            state.copy_(torch.where(torch.isnan(kept), kept, state))
    elif isinstance(state, list | tuple):
        for one, other in zip(state, kept, strict=True):
            poison(one, other)
    elif hasattr(state, "__dataclass_fields__"):
        for name in state.__dataclass_fields__:
            poison(getattr(state, name), getattr(kept, name))


CODECS = {
    "one state for all": (OneStateForAll, "two states|the same input"),
    "one slot for all": (OneSlotForAll, "does not depend on what other slots play"),
    "a reset that does nothing": (ResetsNothing, "a reset leaves nothing of the session before"),
    "a reset of everybody": (ResetsAll, "the reset of a slot leaves the others alone"),
    "the mask ignored": (IgnoresTheMask, "not valid leaves its state"),
    "a wrong type": (WrongType, "encode: wrong type"),
    "its input changed": (ChangesItsInput, "encode changes the audio"),
    "off by one frame": (AnswersOneFrameLate, "does not answer to the frame that it is given"),
    "directions that share": (DecoderInTheEncoder, "the encoder and the decoder share state"),
    "NaN that stays": (KeepsNaN, "a reset does not clear NaN"),
}


@pytest.mark.parametrize("broken", CODECS)
def test_a_codec_that_breaks_a_promise_is_found_out(broken: str) -> None:
    wrap, promise = CODECS[broken]

    with pytest.raises(ConformanceError, match=promise):
        check_codec(lambda: wrap(MIMI), num_slots=4, frames=4)


def test_what_lacks_a_member_is_no_codec() -> None:
    with pytest.raises(ConformanceError, match=r"(?s)lacks a member.*without.*decode"):
        check_codec(lambda: object())  # type: ignore[arg-type, return-value]


# ---- language models that break one promise each


class LMIgnoresTheMask(Wrapped):
    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        column_BS = column_BS.clamp(min=-1)
        step: Step = self.inner.step(column_BS, torch.ones_like(valid_B), controls, state)
        return step


class LMAnswersOneColumnLate(Wrapped):
    """Off by one: a column is fed with the next step."""

    def new_state(self, num_slots: int, rows_per_slot: int = 1) -> Any:
        column_BS = torch.tensor(self.inner.spec.initial_codes).repeat(num_slots, 1)
        return self.inner.new_state(num_slots, rows_per_slot), column_BS

    def reset(self, state: Any, slots: Sequence[int], conditions: Any = None) -> None:
        state[1][list(slots)] = torch.tensor(self.inner.spec.initial_codes)
        self.inner.reset(state[0], slots, conditions)

    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        rows = len(valid_B)
        before_BS = state[1][:rows].clone()
        state[1][:rows] = torch.where(valid_B[:, None], column_BS, before_BS)
        step: Step = self.inner.step(before_BS, valid_B, controls, state[0])
        return step


class OneStreamLate(LMAnswersOneColumnLate):
    """An off-by-one delay of a single codebook."""

    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        rows = len(valid_B)
        mixed_BS = column_BS.clone()
        mixed_BS[:, 3] = state[1][:rows, 3]
        state[1][:rows] = torch.where(valid_B[:, None], column_BS, state[1][:rows])
        step: Step = self.inner.step(mixed_BS, valid_B, controls, state[0])
        return step


class DrawsForItself(Wrapped):
    """Noise is not honoured."""

    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        noise = controls.noise_BKR
        if noise is not None:
            generator = torch.Generator().manual_seed(0)
            noise = torch.rand(noise.shape, generator=generator) + 0.01
        step: Step = self.inner.step(column_BS, valid_B, replace(controls, noise_BKR=noise), state)
        return step


class NoiseOfAnotherRow(Wrapped):
    """The text takes the draws of the first codebook."""

    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        noise = controls.noise_BKR
        if noise is not None:
            noise = noise.roll(1, dims=1)
        step: Step = self.inner.step(column_BS, valid_B, replace(controls, noise_BKR=noise), state)
        return step


class TakesMutedForZero(Wrapped):
    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        step: Step = self.inner.step(column_BS.clamp(min=0), valid_B, controls, state)
        return step


class RefusesMuted(Wrapped):
    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        if bool((column_BS[valid_B] < 0).any()):
            raise IndexError("index out of range")
        step: Step = self.inner.step(column_BS, valid_B, controls, state)
        return step


class ForcesNothing(Wrapped):
    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        step: Step = self.inner.step(
            column_BS, valid_B, replace(controls, forced_text_B=None), state
        )
        return step


class WrongTextType(Wrapped):
    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        step: Step = self.inner.step(column_BS, valid_B, controls, state)
        step.text_B = step.text_B.int()
        return step


class SamplesEverybody(Wrapped):
    """One slot that samples makes all sample."""

    def step(self, column_BS: Any, valid_B: Any, controls: Controls, state: Any) -> Step:
        if controls.noise_BKR is not None:
            warm_B = torch.full_like(controls.temperature_B, 2.0)
            controls = replace(controls, temperature_B=warm_B, text_temperature_B=warm_B)
        step: Step = self.inner.step(column_BS, valid_B, controls, state)
        return step


MODELS = {
    "one state for all": (OneStateForAll, "two states|the same input"),
    "a reset that does nothing": (ResetsNothing, "a reset leaves nothing of the session before"),
    "a reset of everybody": (ResetsAll, "the reset of a slot leaves the others alone"),
    "the mask ignored": (LMIgnoresTheMask, "not valid leaves its state"),
    "off by one column": (LMAnswersOneColumnLate, "stream 0 of a column does not tell"),
    "off by one in a codebook": (OneStreamLate, "stream 3 of a column does not tell"),
    "draws of its own": (DrawsForItself, "noise_BKR is not what decides"),
    "draws of another row": (NoiseOfAnotherRow, "noise_BKR is not what decides"),
    "muted taken for zero": (TakesMutedForZero, "-1 in stream 0 is taken for the id 0"),
    "muted refused": (RefusesMuted, "-1 in stream 0 is not taken"),
    "text not forced": (ForcesNothing, "forced_text_B is not obeyed"),
    "a wrong type": (WrongTextType, "text_B: wrong type"),
    "everybody samples": (SamplesEverybody, "not greedy while others sample"),
}


@pytest.mark.parametrize("broken", MODELS)
def test_a_language_model_that_breaks_a_promise_is_found_out(broken: str) -> None:
    wrap, promise = MODELS[broken]

    with pytest.raises(ConformanceError, match=promise):
        check_lm(lambda: wrap(MOSHI), num_slots=4, frames=4)


# ---- batched nodes


class Smoother(BatchedNode):
    """A node with a memory: half of the frame before is mixed into each frame."""

    def __init__(self) -> None:
        self.memory = torch.zeros(0)

    def fit(self, codec: CodecSpec) -> None:
        form = Audio(codec.sample_rate, codec.frame_size, codec.channels)
        self.inputs = {"audio": form}
        self.outputs = {"audio": form}

    def open(self, num_slots: int) -> None:
        self.memory = torch.zeros(num_slots, *self.inputs["audio"].shape)

    def join(self, slot: int, settings: Any) -> None:
        self.memory[slot] = 0

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        audio = inputs["audio"]
        valid = audio.valid & tick.active
        heard = torch.from_numpy(valid)[:, None, None]
        mixed = audio.tensor + 0.5 * self.memory[: tick.n]
        self.memory[: tick.n] = torch.where(heard, audio.tensor, self.memory[: tick.n])
        return {"audio": Value(mixed, valid)}


class NeverForgets(Smoother):
    def join(self, slot: int, settings: Any) -> None:
        pass


class RemembersIdleRows(Smoother):
    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        made = super().step(inputs, tick)
        self.memory[: tick.n] = inputs["audio"].tensor.nan_to_num()
        return made


class GivesInvalidRows(Smoother):
    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        made = super().step(inputs, tick)
        return {"audio": Value(made["audio"].tensor, np.ones(tick.n, dtype=bool))}


class GivesDoubles(Smoother):
    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        made = super().step(inputs, tick)
        return {"audio": Value(made["audio"].tensor.double(), made["audio"].valid)}


class GivesAnotherPort(Smoother):
    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        return {"sound": super().step(inputs, tick)["audio"]}


class WorksInPlace(Smoother):
    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        inputs["audio"].tensor.mul_(2)
        return super().step(inputs, tick)


class OneMemory(Smoother):
    shared = torch.zeros(16, 1, 1_920)

    def open(self, num_slots: int) -> None:
        self.memory = self.shared


class HasNoPorts(Smoother):
    def fit(self, codec: CodecSpec) -> None:
        pass


NODES = {
    NeverForgets: "a reset leaves nothing of the session before",
    RemembersIdleRows: "not valid leaves its state",
    GivesInvalidRows: "is valid in a slot that has no input",
    GivesDoubles: "output 'audio': wrong type",
    GivesAnotherPort: "step gives other ports than it declares",
    WorksInPlace: "step changes what it was given",
    OneMemory: "two states of one object",
    HasNoPorts: "the node has no inputs",
}


def test_a_node_with_a_memory_conforms() -> None:
    check_node(Smoother)


@pytest.mark.parametrize("broken", NODES, ids=lambda cls: cls.__name__)
def test_a_node_that_breaks_a_promise_is_found_out(broken: type[Smoother]) -> None:
    with pytest.raises(ConformanceError, match=NODES[broken]):
        check_node(broken)


# ---- sources


@dataclass
class Heard(SessionInput):
    """A session that yields what it is given."""

    given: Sequence[Any]
    id: str = "a"
    sample_rate: int = 100
    num_samples: int | None = None

    def __post_init__(self) -> None:
        self.meta = {"stem": self.id}

    async def chunks(self) -> AsyncIterator[Any]:
        for chunk in self.given:
            yield chunk


QUIET = np.zeros((1, 10), np.float32)


class Given(Source):
    def __init__(self, *items: SessionInput, count: int | None = None) -> None:
        self.items = items
        self.count = count

    async def sessions(self) -> AsyncIterator[SessionInput]:
        for item in self.items:
            yield item

    def num_sessions(self) -> int | None:
        return self.count


class ReusesItsBuffer(Heard):
    async def chunks(self) -> AsyncIterator[Any]:
        buffer = np.zeros((1, 10), np.float32)
        for i in range(3):
            buffer[:] = i / 10
            yield buffer


class LeavesATask(Heard):
    async def chunks(self) -> AsyncIterator[Any]:
        self.task = asyncio.create_task(asyncio.Event().wait(), name="reader")
        yield QUIET


class Talks(Heard):
    """Live sound; ends when its event is set, or never."""

    async def chunks(self) -> AsyncIterator[Any]:
        self.ended = asyncio.Event()
        while not self.ended.is_set():
            yield QUIET
            await asyncio.sleep(0)


class Live(Given):
    live = True

    def stop(self) -> None:
        for item in self.items:
            if isinstance(item, Talks) and hasattr(item, "ended"):
                item.ended.set()


class NeverStops(Live):
    """``stop`` lets its input wait for sound that does not come."""

    class Waits(Talks):
        async def chunks(self) -> AsyncIterator[Any]:
            yield QUIET
            await asyncio.Event().wait()

    def stop(self) -> None:
        pass


SOURCES = {
    "no session": (lambda: Given(), "gives no session"),
    "a wrong count": (lambda: Given(Heard([QUIET]), count=2), "num_sessions does not say"),
    "one id twice": (lambda: Given(Heard([QUIET]), Heard([QUIET])), "the same id"),
    "an id with a slash": (lambda: Given(Heard([QUIET], id="a/b")), "not safe as a file name"),
    "doubles": (lambda: Given(Heard([QUIET.astype(float)])), "a chunk has a wrong form"),
    "no channel axis": (lambda: Given(Heard([QUIET[0]])), "a chunk has a wrong form"),
    "a list": (lambda: Given(Heard([[0.0]])), "a chunk is no numpy array"),
    "channels that change": (
        lambda: Given(Heard([QUIET, np.zeros((2, 10), np.float32)])),
        "the number of channels changes",
    ),
    "16 bit numbers": (lambda: Given(Heard([QUIET + 32_000])), "audio leaves"),
    "NaN": (lambda: Given(Heard([QUIET * np.nan])), "not finite"),
    "a wrong length": (lambda: Given(Heard([QUIET], num_samples=11)), "num_samples"),
    "no rate": (lambda: Given(Heard([QUIET], sample_rate=0)), "sample_rate is no number"),
    "a buffer used again": (lambda: Given(ReusesItsBuffer([])), "a chunk changes after"),
    "a task left running": (lambda: Given(LeavesATask([])), "leaves tasks running"),
    "no end after stop": (
        lambda: NeverStops(NeverStops.Waits([])),
        "does not come",
    ),
}


@pytest.mark.parametrize("broken", SOURCES)
def test_a_source_that_breaks_a_promise_is_found_out(broken: str) -> None:
    make, promise = SOURCES[broken]

    with pytest.raises(ConformanceError, match=promise):
        check_source(make, max_chunks=20, timeout_s=0.05)


def test_a_live_source_conforms() -> None:
    check_source(lambda: Live(Talks([])), max_chunks=5)


# ---- sinks


class Writes(Sink):
    """Writes what it takes, as text."""

    takes: Sequence[str] = ("audio",)

    def outputs(self, session: SessionInfo) -> list[Path]:
        return [session.output_dir / f"{session.meta['stem']}.txt"]

    async def open(self, session: SessionInfo) -> None:
        self.path = self.outputs(session)[0]
        self.lines: list[str] = []

    async def write(self, packet: Packet) -> None:
        self.lines.append(str(packet.frame))

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        self.path.write_text(json.dumps(self.lines), encoding="utf-8")
        return {"files": [str(self.path)]}


class OneFileForAll(Writes):
    def outputs(self, session: SessionInfo) -> list[Path]:
        return [session.output_dir / "all.txt"]


class WritesNothing(Writes):
    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        return {}


class NamesWhatIsNotThere(Writes):
    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        await super().close(end)
        return {"files": [str(self.path) + ".bak"]}


class ScalesInPlace(Writes):
    async def write(self, packet: Packet) -> None:
        payload: Any = packet.payload
        payload *= 2


class ReportsAnArray(Writes):
    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        return {**await super().close(end), "levels": np.zeros(2)}


class ReportsNothing(Writes):
    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        await super().close(end)
        return None  # type: ignore[return-value]


class TakesWhatNobodyMakes(Writes):
    takes = ("video",)


class TakesAWord(Writes):
    takes = "audio"


SINKS = {
    OneFileForAll: "two sessions write into the same file",
    WritesNothing: "outputs\\(\\) names files that are not there",
    NamesWhatIsNotThere: "close names a file that is not there",
    ScalesInPlace: "changes the packet",
    ReportsAnArray: "cannot be written as JSON",
    ReportsNothing: "close is no mapping",
    TakesWhatNobodyMakes: "takes what no graph makes",
    TakesAWord: "takes is no sequence of names",
}


def test_a_small_sink_conforms() -> None:
    check_sink(Writes)


@pytest.mark.parametrize("broken", SINKS, ids=lambda cls: cls.__name__)
def test_a_sink_that_breaks_a_promise_is_found_out(broken: type[Writes]) -> None:
    with pytest.raises(ConformanceError, match=SINKS[broken]):
        check_sink(broken)


# ---- the package itself


def test_the_checks_need_no_test_framework() -> None:
    code = (
        "import sys, moshi_pipe.testing\n"
        "print('pytest' in sys.modules, 'hypothesis' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[1]

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["False", "False"]


def test_what_a_check_raises_is_an_error_of_ours_and_an_assertion() -> None:
    assert issubclass(ConformanceError, MoshiPipeError)
    assert issubclass(ConformanceError, AssertionError)
