"""What a source may know of the engine that its sessions run on, and have done by it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.graph.node import SessionSettings, TextTokenizer


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What does not change while a run lasts.

    Attributes:
        model: Name of the model.
        random: Whether its weights are random.
        model_type: ``moshi``, ``hibiki`` or ``stt``.
        backend: What computes it, such as ``torch``.
        device: Where.
        dtype: Of its weights.
        quant: How linear weights are stored, in one line; None where they are of ``dtype``.
        slots: Sessions that the engine holds at once.
        frame_s: Duration of a frame in seconds.
        frame_samples: Samples of a frame.
        sample_rate: Hz of the model's audio.
        settings: What a session gets that asks for nothing; its seed means nothing.
        max_top_k: Most candidates per audio code that a session may ask for.
        max_text_top_k: Likewise, per text token.
        outputs: What the graph makes, such as ``audio`` and ``text``.
        tokenizer: Turns text tokens into pieces; None when the graph makes no text.
        late: What happens to frames that the models are too late for: ``drop_oldest``,
            ``skip_to_live``, ``slow_down`` or ``fail``.
        numerics: ``fast`` or ``reference``.
        seed: Of the run.
        versions: Packages, Python and platform.
    """

    model: str
    random: bool
    model_type: str
    backend: str
    device: str
    dtype: str
    quant: str | None
    slots: int
    frame_s: float
    frame_samples: int
    sample_rate: int
    settings: SessionSettings
    max_top_k: int
    max_text_top_k: int
    outputs: tuple[str, ...] = ()
    tokenizer: TextTokenizer | None = None
    late: str = "drop_oldest"
    numerics: str = "fast"
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


class Host(Protocol):
    """An engine, as a source sees it. All calls are of the event loop, and return at once.

    A *parked* session keeps its input, its sinks and its state, the last in host memory, and leaves
    its slot to others.
    """

    @property
    def facts(self) -> RunFacts:
        """What does not change."""

    @property
    def can_park(self) -> bool:
        """Whether every node of the graph can keep a session's state."""

    @property
    def usable_slots(self) -> int:
        """Sessions at once for which a tick stays short enough; 1 to ``facts.slots``.

        It changes as ticks do. All slots, where that was not asked for, where frames wait instead
        (``late=slow_down``), and where every tick runs all rows (``numerics=reference``).
        """

    async def park(self, session_id: str) -> int:
        """Take a session out of its slot; returns the bytes that its state takes.

        Raises:
            SessionError: It has ended meanwhile, is not running, or cannot be kept.
        """

    async def unpark(self, session_id: str) -> None:
        """Let a parked session wait for a slot, after others that wait; return when it runs again.

        Raises:
            SessionError: It has ended meanwhile, or is not parked.
        """

    def cancel(self, session_id: str) -> None:
        """End a session before its next frame, wherever it is; nothing if it has ended."""

    def statistics(self) -> Mapping[str, Any]:
        """What the engine did so far, as plain numbers.

        ``ticks``, ``rows``, ``frames`` and ``sessions`` are counts; ``tick``, ``overhead`` (of a
        tick, outside of nodes) and each of ``nodes`` tell ``count``, ``total_ms``, ``mean_ms``,
        ``p50_ms``, ``p90_ms``, ``p99_ms`` and ``max_ms``; ``late`` counts frames after their
        deadline.
        """
