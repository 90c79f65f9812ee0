"""A dialogue of stages, ticked by hand on any device; needs nothing but torch and NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.engine.clock import SystemClock
from moshi_pipe.engine.scheduled_nodes import ScheduledNodes
from moshi_pipe.engine.stages import DecodeStage, EncodeStage, LMStage
from moshi_pipe.graph.node import SessionSettings, Tick
from moshi_pipe.graph.schedule import Schedule
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi
from support.golden import BASE_LM, TINY_MIMI, fill_golden

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

NUM_SLOTS = 8
FRAME = 32
_CODES = BASE_LM["dep_q"]
_RATE = Fraction(25, 2)
_WIRING = Schedule(
    "heard",
    ("encode", "lm", "decode"),
    {
        "encode": {"audio": "heard"},
        "lm": {"user_codes": "encode.codes"},
        "decode": {"codes": "lm.codes"},
    },
    {"audio": "decode.audio", "text": "lm.text", "codes": "lm.codes"},
)


@dataclass
class Heard:
    """What the sessions of a run were given, by name; only what was valid."""

    text: dict[str, list[int]] = field(default_factory=dict)
    codes: dict[str, list[list[int]]] = field(default_factory=dict)
    audio: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)


def make_models(device: str = "cpu", **lm_options: Any) -> tuple[Mimi, Moshi]:
    """The tiny codec and language model with golden weights."""
    quantizer = TINY_MIMI["quantizer"] | {"bins": BASE_LM["card"]}
    codec = Mimi(MimiSpec.from_config(TINY_MIMI | {"quantizer": quantizer}))
    fill_golden(codec)
    lm = Moshi(LMSpec.from_config(BASE_LM), **lm_options)
    fill_golden(lm)
    codec.to(device).prepare()
    return codec, lm.to(device)


class Dialogue:
    """Encode, language model and decode over slots.

    Attributes:
        stages: By name.
        nodes: The same, opened.
    """

    def __init__(self, codec: Mimi, lm: Moshi, *, graphs: bool = False) -> None:
        self.stages: dict[str, Any] = {
            "encode": EncodeStage(codec, graphs=graphs),
            "lm": LMStage(lm, frame_rate=_RATE, max_candidates=10, graphs=graphs),
            "decode": DecodeStage(codec, _CODES, graphs=graphs),
        }
        self.nodes = ScheduledNodes(_WIRING, device=str(codec.device), clock=SystemClock())

    def open(self) -> None:
        """Make state and warm up."""
        self.nodes.open(self.stages, NUM_SLOTS)

    @property
    def num_graphs(self) -> int:
        """Graphs of all stages."""
        return sum(stage._call.num_graphs for stage in self.stages.values())

    def tick(
        self, n: int, active: list[int], pcm: npt.NDArray[np.float32]
    ) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]:
        """Run one tick over the first ``n`` slots; ``pcm`` holds a frame for each."""
        valid = np.isin(np.arange(n), active)
        tick = Tick(n=n, active=valid, end_codes=np.zeros(n, dtype=bool))
        frames = torch.from_numpy(pcm[:n, None])
        if self.stages["encode"]._device.type == "cuda":
            frames = frames.pin_memory()
        outputs, _ = self.nodes.step(tick, frames, valid.copy())
        assert self.nodes.broken() == {}
        return dict(outputs)


def sampled(seed: int, **options: Any) -> SessionSettings:
    """Settings of a session that draws."""
    return SessionSettings(seed=seed, top_k=5, text_top_k=5, **options)


def greedy() -> SessionSettings:
    """Settings of a session that does not."""
    return SessionSettings(temperature=0, text_temperature=0, top_k=5, text_top_k=5)


def come_and_go(dialogue: Dialogue) -> Heard:
    """Run sessions that join, pause and leave, in ticks of one, four and eight rows."""
    heard = Heard()
    slots: dict[int, str] = {}
    for n, step, pcm, action in _plan():
        for slot, settings in action.items():
            if slot in slots:
                dialogue.nodes.leave(slot)
                del slots[slot]
            if settings is not None:
                dialogue.nodes.join(slot, settings)
                slots[slot] = f"slot {slot} from {step}"
        active = [slot for slot in slots if slot < n and (step + slot) % 5]
        outputs = dialogue.tick(n, active, pcm)
        for slot in active:
            for name, kept in (
                ("text", heard.text),
                ("codes", heard.codes),
                ("audio", heard.audio),
            ):
                rows, valid = outputs[name]
                if valid[slot]:
                    made = rows[slot].copy() if name == "audio" else rows[slot].tolist()
                    kept.setdefault(slots[slot], []).append(made)
    return heard


def _plan() -> Iterator[
    tuple[int, int, npt.NDArray[np.float32], dict[int, SessionSettings | None]]
]:
    random = np.random.default_rng(0)
    actions: dict[int, dict[int, SessionSettings | None]] = {
        0: {0: sampled(1)},
        4: {1: greedy(), 2: sampled(2, first_frame="reset")},
        9: {5: sampled(3, repetition_penalty=1.3), 1: None},
        14: {0: sampled(4, first_frame="none"), 3: greedy()},
        20: {5: None, 3: None},
    }
    rows = {0: 1, 4: 4, 9: 8, 20: 4}
    n = 1
    for step in range(28):
        n = rows.get(step, n)
        pcm = random.uniform(-0.5, 0.5, (NUM_SLOTS, FRAME)).astype(np.float32)
        yield n, step, pcm, actions.get(step, {})
