"""Nodes: where sessions come from, where their outputs go, and what runs in between.

A node class is registered under a kind and a name together with a dataclass of options; it is
constructed as ``cls(options)``, or ``cls()`` without options. Sources and sinks live at the edge
(asyncio); batched nodes run in the engine's thread, once per tick, over all slots at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from moshi_pipe.errors import SessionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.errors import MoshiPipeError
    from moshi_pipe.graph.format import Format
    from moshi_pipe.graph.host import Host
    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.models.spec import CodecSpec


class SessionInput(ABC):
    """One conversation's incoming audio, or one file's.

    Attributes:
        id: Unique among the sessions of a source; safe as a file name.
        meta: What an output name may use: at least ``stem``; files also give ``path`` (absolute),
            ``name``, ``parent`` and ``index``.
        sample_rate: Hz of what :meth:`chunks` yields.
        num_samples: Samples per channel that will come, None when not known.
        seed: Seed of this session, None to derive one from the run's seed and ``id``.
        warnings: Sentences about input that is not as it should be, such as a file that was cut
            off; complete once :meth:`chunks` has ended.
        delivered_ns: Live: when the device delivered the end of the chunk that was yielded last,
            by ``time.monotonic_ns``; None when not known, then it is stamped as it comes.
        sinks: Sinks that belong to this input, such as the way back of a connection or the
            speaker of a duplex device; they come before those of the configuration.
        settings: What this session wants other than the run, by field of
            :class:`SessionSettings`; a wrong one ends the session alone. Its seed is :attr:`seed`.
        reply: Way back of this input, for a sink of the same origin, which finds it in
            :class:`SessionInfo`.
        record: False when nothing of this session may be kept: the configuration's sinks that keep
            something are left out, and no record of it is written.
    """

    id: str
    meta: Mapping[str, Any]
    sample_rate: int
    num_samples: int | None = None
    seed: int | None = None
    warnings: Sequence[str] = ()
    delivered_ns: int | None = None
    sinks: Sequence[Sink] = ()
    settings: Mapping[str, Any] = {}  # read only
    reply: Any = None
    record: bool = True

    async def prepare(self) -> None:
        """Get what the rest needs, such as a file from far away, before the session has a slot.

        Raises:
            InputError: It cannot be had; the session ends alone.
        """

    async def release(self) -> None:
        """Let go of what :meth:`prepare` got; called once the session is over."""

    @abstractmethod
    def chunks(self) -> AsyncIterator[npt.NDArray[np.float32]]:
        """Yield the audio in order, float32 ``[C, N]`` of any N >= 0, until it ends.

        The edge mixes channels down, resamples and cuts into frames. Opens what it reads when the
        iteration starts and closes it when the iteration ends or is closed.

        Raises:
            InputError: The audio cannot be read; names the file and the reason.
        """

    def report(self) -> Mapping[str, Any]:
        """What the report says about this input once it has ended, such as device and counts."""
        return {}


class Source(ABC):
    """Gives sessions: a microphone one, a server one per connection, a folder one per file."""

    live: ClassVar[bool] = False
    """True when audio arrives at its own pace; False when it may be read as fast as wanted."""

    endless: ClassVar[bool] = False
    """True when it gives sessions until it is stopped, perhaps many thousands. Such a run keeps
    totals and its last sessions alone, makes a new engine when one is lost, and leaves it to the
    source how many of its sessions are open at once."""

    can_wait: ClassVar[bool] = False
    """True when it is live, but may be made to wait: then ``engine.late=slow_down`` loses
    nothing."""

    gives: ClassVar[str] = "audio"
    """What its inputs yield: ``audio`` or ``codes``."""

    takes: Sequence[str] = ()
    """Graph outputs that the sinks of its own inputs need."""

    plugin: str | None = None
    """Plugin that registered it, None for the package's own; set by what constructs it."""

    @abstractmethod
    def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield session inputs in order.

        Raises:
            InputError: There is nothing to read, or not as configured.
        """

    def num_sessions(self) -> int | None:
        """Sessions that :meth:`sessions` will yield, None when not known. For progress bars.

        Raises:
            InputError: As :meth:`sessions`.
        """
        return None

    def attach(self, host: Host) -> None:
        """The engine is ready; called on the event loop before :meth:`sessions`.

        Endless: called again with each new engine, after :meth:`engine_lost`.

        Args:
            host: What a source may know of the engine, and have done by it.
        """

    def engine_lost(self, error: MoshiPipeError) -> None:
        """Endless: the engine is gone, and all that it held ended with this error.

        Called on the event loop. Sessions given before :meth:`attach` is called again, which it
        may never be, end with the same error.
        """

    def stop(self) -> None:
        """Live: end the input of every session, and give no further one; on the event loop."""

    def keys(self) -> Mapping[str, Key]:
        """Live: keys that a person may press while it runs."""
        return {}


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the live view.

    Attributes:
        label: What it does, in a word.
        press: Called on the event loop; returns the new status, such as ``muted``, or nothing.
    """

    label: str
    press: Callable[[], str]


@dataclass(frozen=True, slots=True)
class TextReader:
    """What tokens of a text output stand for.

    Attributes:
        tokenizer: Turns them into pieces.
        delay_s: By how much they lag the sound that they write down, in seconds.
    """

    tokenizer: TextTokenizer
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a sink may know of its session.

    Attributes:
        id: The session's id.
        meta: From the source; see :class:`SessionInput`.
        output_dir: Folder for results; exists.
        formats: Format of each output that the graph makes, by name.
        frame_s: Duration of a frame in seconds.
        seed: The session's seed.
        latency_ms: By how much what the model makes lags the input it could have heard.
        lead_s: Silence that was put before the input, in seconds; already inside ``frame`` numbers.
        text_delay_s: By how much text lags the sound it writes down (speech to text); to be
            subtracted from token times, as is ``lead_s``.
        tokenizer: Turns text tokens into pieces; None when the graph makes no text.
        reply: Way back of the input; see :class:`SessionInput`.
        readers: What texts stand for that are not the language model's, by output, such as what a
            node for speech to text hears of the user.
    """

    id: str
    meta: Mapping[str, Any]
    output_dir: Path
    formats: Mapping[str, Format]
    frame_s: float
    seed: int
    latency_ms: float = 0.0
    lead_s: float = 0.0
    text_delay_s: float = 0.0
    tokenizer: TextTokenizer | None = None
    reply: Any = None
    readers: Mapping[str, TextReader] = field(default_factory=dict)

    def reader(self, output: str) -> TextReader | None:
        """What tokens of an output stand for; None where that is no text, or not known."""
        if output != "text" or output in self.readers:
            return self.readers.get(output)
        return None if self.tokenizer is None else TextReader(self.tokenizer, self.text_delay_s)

    def text_time_s(self, frame: int, delay_s: float | None = None) -> float:
        """When what is written in a frame was said, in seconds from the input's start, >= 0.

        Args:
            frame: The token's.
            delay_s: Of its output; None is that of ``text``.
        """
        delay_s = self.text_delay_s if delay_s is None else delay_s
        return round(max(0.0, frame * self.frame_s - self.lead_s - delay_s), 4)


class TextTokenizer(Protocol):
    """The part of a SentencePiece tokenizer that sinks use.

    Numbers below zero stand for pieces of a remote model, whose ids are not known.
    """

    padding_id: int
    word_start_id: int
    eos_id: int

    def piece(self, token: int) -> str:
        """Return the raw piece, such as ``▁Hello`` or ``<0xE2>``."""

    def is_byte(self, token: int) -> bool:
        """Whether the piece is one byte of a character, such as ``<0xE2>``."""

    def is_control(self, token: int) -> bool:
        """Whether the token carries no text: unknown, padding, begin and end of sequence."""


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How a session ended.

    Attributes:
        num_frames: Frames that it lasted; time-aligned sinks pad to this.
        complete: False when it failed or was interrupted.
        padding_s: How much of the last frame only fills it up; a time-aligned sink leaves it out,
            so that its result is as long as the input.
    """

    num_frames: int
    complete: bool = True
    padding_s: float = 0.0


class Sink(ABC):
    """Takes the outputs of one session; one instance per session.

    Calls come in the order ``open``, ``write`` any number of times, ``close``; never two at once.
    """

    takes: Sequence[str] = ()
    """Graph outputs that this sink needs; an instance may narrow it by its options."""

    optional: Sequence[str] = ()
    """Graph outputs that it takes where the graph makes them."""

    keeps: ClassVar[bool] = True
    """False when nothing of a session outlives it here, as with a speaker; others are left out for
    a session that may not be recorded."""

    realtime: ClassVar[bool] = False
    """True when it never waits, such as a speaker; live, others get a thread of their own."""

    plugin: str | None = None
    """Plugin that registered it, None for the package's own; set by what constructs it."""

    num_underruns: int = 0
    """Live: times that it had nothing to play."""

    audible_ns: Mapping[int, int] = {}  # read only
    """Live: when the last frames became audible, by number and the engine's clock."""

    @abstractmethod
    async def open(self, session: SessionInfo) -> None:
        """Get ready, create files.

        Raises:
            OutputError: The place cannot be written; names it and the reason.
        """

    @abstractmethod
    async def write(self, packet: Packet) -> None:
        """Take one packet. Packets of one output come in frame order."""

    @abstractmethod
    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Finish.

        Args:
            end: How the session ended.

        Returns:
            What the report says about this sink: ``files`` (absolute paths), ``warnings``
            (sentences, told with the session) and counts.
        """

    def outputs(self, session: SessionInfo) -> list[Path]:
        """Files that this sink will have written for ``session``, for skipping what is done."""
        return []


@dataclass(slots=True)
class Value:
    """What a link carries during a tick.

    Attributes:
        tensor: ``[n, ...]`` on the engine's device: audio float32 ``[n, C, N]``, codes int64
            ``[n, K]``, text int64 ``[n]``.
        valid: Which of the n rows hold something, numpy bool ``[n]``, on the host: whether a row
            is valid never depends on device data.
    """

    tensor: Any
    valid: npt.NDArray[np.bool_]


@dataclass(slots=True)
class Tick:
    """What a batched node knows of the tick besides its inputs; one row per slot in ``[:n]``.

    Attributes:
        n: Rows that run.
        active: Sessions that advance in this tick, numpy bool ``[n]``.
        end_codes: Sessions whose input just ended and whose model is told so by one column of
            end codes instead of audio, numpy bool ``[n]``.
    """

    n: int
    active: npt.NDArray[np.bool_]
    end_codes: npt.NDArray[np.bool_]


class BatchedNode(ABC):
    """A vertex inside the graph: fires once per tick over the first ``n`` slots.

    Attributes:
        inputs: Format per input port.
        outputs: Format per output port.
    """

    inputs: Mapping[str, Format]
    outputs: Mapping[str, Format]
    plugin: str | None = None
    """Plugin that registered it, None for the package's own; set by what constructs it."""

    def fit(self, codec: CodecSpec) -> None:
        """Set ``inputs`` and ``outputs`` where they follow from the model; called once, at first.

        A graph is checked with an instance that is then dropped, before any weight is loaded; the
        engine makes its own. So construct lightly, and do the rest in :meth:`open`.

        Args:
            codec: Rates and sizes of the run's codec.
        """

    def readers(self) -> Mapping[str, TextReader]:
        """What the tokens of its text ports stand for, by port.

        Asked after :meth:`fit` of the instance that a graph is checked with; may take its time.
        """
        return {}

    def files(self) -> Sequence[Path]:
        """Files that shape its results: when one changes, results are made anew. Asked likewise."""
        return ()

    def open(self, num_slots: int) -> None:
        """Make state for ``num_slots`` and warm up; called once on the engine's thread."""

    @abstractmethod
    def join(self, slot: int, settings: Any) -> None:
        """Begin a session in ``slot``: zero its state and take its settings."""

    def leave(self, slot: int) -> None:
        """End the session in ``slot``."""

    @abstractmethod
    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Advance every row of ``tick`` that is valid at all inputs; others keep their state.

        Tensors returned are valid until the next call.
        """

    def failed(self) -> Sequence[int]:
        """Slots whose last step was not finite; asked after outputs were copied to the host."""
        return ()

    @property
    def can_snapshot(self) -> bool:
        """Whether :meth:`snapshot` and :meth:`restore` work; asked after :meth:`open`."""
        return False

    def snapshot(self, slot: int) -> Any:
        """Copy what is remembered of the session in ``slot`` to host memory.

        The copy is not changed by later steps, and may be restored any number of times.

        Returns:
            Containers of tensors and arrays on the host, so that their size can be counted.

        Raises:
            SessionError: This node cannot.
        """
        raise SessionError(
            "the state of a session cannot be kept", got=f"a {type(self).__name__}, which cannot"
        )

    def restore(self, slot: int, snapshot: Any, settings: Any) -> None:
        """Go on with a session in ``slot``, instead of :meth:`join`.

        Args:
            slot: Any, not only that which it had.
            snapshot: Of a node of the same options and model.
            settings: The session's, as for :meth:`join`.

        Raises:
            SessionError: This node cannot.
        """
        raise SessionError(
            "the state of a session cannot be restored", got=f"a {type(self).__name__}"
        )

    def close(self) -> None:
        """Free what :meth:`open` made."""


FIRST_FRAMES: Final = ("duplicate", "reset", "none")
"""What happens to a session's first frame; see :class:`SessionSettings`."""


@dataclass(slots=True)
class SessionSettings:
    """How one session runs; None takes the model's own default.

    Attributes:
        seed: Seed of all randomness of the session.
        temperature: Of audio codes; 0 is greedy.
        text_temperature: Of text tokens; 0 is greedy.
        top_k: Candidates per audio code; 0 means all.
        text_top_k: Candidates per text token; 0 means all.
        guidance: Classifier-free guidance weight; 1 is off.
        repetition_penalty: On recent text tokens; 1 is off.
        first_frame: ``duplicate`` steps the first frame twice and drops the first result,
            ``reset`` encodes it, resets the codec and loses the first output, ``none`` does
            neither.
        conditions: Value per condition of the model.
        end_on_text: After the input ended, feed one column of end codes and then silence until
            this text token is made; None ends with the input.
        end_on_padding: After the input ended, feed silence until so many text tokens in a row are
            padding: the model has said what it had to say; None ends with the input.
        max_tail_frames: Bound on the frames after the input when ``end_on_text`` or
            ``end_on_padding`` is set.
    """

    seed: int = 0
    temperature: float = 0.8
    text_temperature: float = 0.7
    top_k: int = 250
    text_top_k: int = 25
    guidance: float = 1.0
    repetition_penalty: float = 1.0
    first_frame: str = "duplicate"
    conditions: dict[str, str] = field(default_factory=dict)
    end_on_text: int | None = None
    end_on_padding: int | None = None
    max_tail_frames: int = 250
