"""Models for the GPU benchmarks: random weights made on the device, for us and for the reference.

Nothing here touches a disk or draws on the host: 7B parameters in bfloat16 take a second.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.engine import stages
from moshi_pipe.engine.clock import SystemClock
from moshi_pipe.engine.scheduled_nodes import ScheduledNodes
from moshi_pipe.engine.stages import DecodeStage, EncodeStage, LMStage
from moshi_pipe.graph.node import SessionSettings, Tick
from moshi_pipe.graph.schedule import Schedule
from moshi_pipe.models.layout import is_linear, lm_layout, mimi_layout
from moshi_pipe.models.presets import find_preset, lm_config, mimi_config
from moshi_pipe.models.random_weights import Fill, lm_fill, mimi_fill
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi
from moshi_pipe.nn.weight_quantizer import WeightQuantizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from moshi_pipe.nn.transformer import TransformerState

NOT_THE_MODELS = ("model_type", "lm_gen_config", "stt_config", "model_id")
WIRING = Schedule(
    "heard",
    ("encode", "lm", "decode"),
    {
        "encode": {"audio": "heard"},
        "lm": {"user_codes": "encode.codes"},
        "decode": {"codes": "lm.codes"},
    },
    {"audio": "decode.audio", "text": "lm.text"},
)


@dataclass
class Rig:
    """Shapes and weights that all contestants share.

    Attributes:
        device: Where everything is.
        config: Of the language model, as the reference takes it.
        lm: The same, typed.
        mimi: Of the codec.
        mimi_raw: The same as the reference takes it; None for the released shape.
        lm_weights: By in-memory name, bfloat16 on a GPU, else float32.
        mimi_weights: Likewise, float32.
    """

    device: torch.device
    config: dict[str, Any]
    lm: LMSpec
    mimi: MimiSpec
    mimi_raw: dict[str, Any] | None
    lm_weights: dict[str, Tensor]
    mimi_weights: dict[str, Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model's weights."""
        return next(iter(self.lm_weights.values())).dtype

    @property
    def lm_bytes(self) -> int:
        """Of the language model's weights."""
        return sum(tensor.nbytes for tensor in self.lm_weights.values())


def make_rig(preset: str, device: torch.device, seed: int = 0) -> Rig:
    """Draw the weights of a preset on a device."""
    shape = find_preset(preset)
    config = {k: v for k, v in lm_config(shape, "moshi").items() if k not in NOT_THE_MODELS}
    lm = LMSpec.from_config(config)
    raw = mimi_config(shape)
    mimi = MimiSpec() if raw is None else MimiSpec.from_config(raw)
    mimi = mimi.with_codebooks(shape.codebooks)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lm_weights = {
        name: draw(name, spec.shape, lm_fill(name, spec.shape, lm), dtype, device, seed)
        for name, spec in lm_layout(lm).weights.items()
    }
    mimi_weights = {
        name: draw(name, spec.shape, mimi_fill(name, spec.shape, mimi), torch.float32, device, seed)
        for name, spec in mimi_layout(mimi).weights.items()
    }
    return Rig(device, config, lm, mimi, raw, lm_weights, mimi_weights)


def draw(
    name: str,
    shape: tuple[int, ...],
    fill: Fill,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> Tensor:
    """One tensor, of its own stream of numbers."""
    if fill.constant:
        return torch.full(shape, fill.scale, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()) ^ seed)
    half = (*shape[:-1], shape[-1] // 2) if fill.difference else shape
    tensor = torch.empty(half, device=device)
    tensor.uniform_(-fill.scale * sqrt(3), fill.scale * sqrt(3), generator=generator)
    if fill.difference:
        tensor = torch.cat([tensor, -tensor], dim=-1)
    return tensor.to(dtype)


def our_lm(rig: Rig, form: str = "plain", *, kernels: bool = False, **options: Any) -> Moshi:
    """Our language model over the rig's weights.

    Args:
        rig: Shapes and weights; plain ones are shared.
        form: ``plain``, or what its linear layers become and how they multiply: ``int8 auto``.
        kernels: Step with those of our own.
        options: Of :class:`~moshi_pipe.nn.moshi.Moshi`.
    """
    with torch.device("meta"):
        model = Moshi(rig.lm, **options)
    model.load_state_dict(rig.lm_weights, assign=True)
    model.requires_grad_(False)
    if form != "plain":
        quant, product = form.split()
        quantizer = WeightQuantizer(
            quant, group_size=32, product=product, exact=False, device=rig.device
        )
        for name in [name for name in rig.lm_weights if is_linear(name)]:
            parent, _, last = name.removesuffix(".weight").rpartition(".")
            layer = quantizer.linear(name, rig.lm_weights[name], None)
            model.get_submodule(parent).register_module(last, layer)
        model.quant = quantizer.summary
    if kernels:
        model.use_kernels()
    return model


def our_codec(rig: Rig, *, kernels: bool = False) -> Mimi:
    """Our codec over the rig's weights."""
    with torch.device("meta"):
        codec = Mimi(rig.mimi)
    codec.load_state_dict(rig.mimi_weights, assign=True)
    codec.requires_grad_(False)
    codec.prepare()
    if kernels:
        codec.use_kernels()
    return codec


class Ours:
    """Encode, language model and decode over slots, ticked as the engine does.

    Args:
        rig: Shapes.
        codec: Ours.
        lm: Ours.
        num_slots: Sessions.
        rows: Sizes of ticks to capture; None captures those of the engine.
        graphs: Replay CUDA graphs.
    """

    def __init__(
        self,
        rig: Rig,
        codec: Mimi,
        lm: Moshi,
        num_slots: int,
        *,
        rows: Sequence[int] | None = None,
        graphs: bool = True,
    ) -> None:
        self.stages: dict[str, Any] = {
            "encode": EncodeStage(codec, graphs=graphs),
            "lm": LMStage(lm, frame_rate=rig.mimi.codec.frame_rate, graphs=graphs),
            "decode": DecodeStage(codec, rig.lm.num_generated, graphs=graphs),
        }
        self._nodes = ScheduledNodes(WIRING, device=str(rig.device), clock=SystemClock())
        sizes = stages.tick_sizes
        stages.tick_sizes = lambda n: sizes(n) if rows is None else sorted(rows)
        try:
            self._nodes.open(self.stages, num_slots)
        finally:
            stages.tick_sizes = sizes
        for slot in range(num_slots):
            self._nodes.join(slot, SessionSettings(seed=slot, first_frame="none"))
        pcm = 0.1 * torch.randn(num_slots, 1, rig.mimi.frame_size)
        self._pcm_BCN = pcm.pin_memory() if rig.device.type == "cuda" else pcm
        self.spans_ns: list[tuple[int, int]] = []

    def fill(self) -> None:
        """Make every ring full, of random numbers."""
        lm = self.stages["lm"]
        fill_rings(lm._running().state.temporal)
        for name in ("encode", "decode"):
            fill_rings(self.stages[name]._state.transformer)

    def tick(self, n: int) -> None:
        """A frame of the first ``n`` sessions; results are on the host then."""
        everyone = np.ones(n, dtype=bool)
        tick = Tick(n=n, active=everyone, end_codes=np.zeros(n, dtype=bool))
        _, self.spans_ns = self._nodes.step(tick, self._pcm_BCN[:n], everyone.copy())
        broken = self._nodes.broken()
        if broken:
            raise SystemExit(f"numbers that are not finite: {broken}")

    def close(self) -> None:
        """Free state and graphs."""
        self._nodes.close()


def fill_rings(state: TransformerState) -> None:
    """Make the rings of a stack full, of random numbers."""
    for ring in state.rings:
        state.position_B.fill_(ring.keys_BHLE.shape[2])
        for held, scales in (
            (ring.keys_BHLE, ring.key_scales_BHL),
            (ring.values_BHLE, ring.value_scales_BHL),
        ):
            if scales is None:
                held.normal_()
            else:
                held.random_(-127, 128)
                scales.fill_(1 / 64)


class Reference:
    """The reference package's codec and language model, with its own CUDA graphs.

    Args:
        rig: Shapes and weights, which are shared.
        batch: Sessions.
        greedy: Take the likeliest, instead of drawing as the package does by default.
    """

    def __init__(self, rig: Rig, batch: int, *, greedy: bool = False) -> None:
        from moshi.models.lm import LMGen
        from moshi.models.loaders import get_mimi, get_moshi_lm

        torch.set_grad_enabled(False)
        self._mimi = get_mimi(None, rig.mimi_raw, device=rig.device, num_codebooks=rig.lm.num_user)
        self._mimi.load_state_dict(rig.mimi_weights)
        lm = get_moshi_lm(None, dict(rig.config), device="meta", dtype=rig.dtype)
        lm.load_state_dict(rig.lm_weights, assign=True)
        self._generator = LMGen(lm, use_sampling=not greedy, support_out_of_sync=True)
        self._mimi.streaming_forever(batch)
        self._generator.streaming_forever(batch)
        pcm = 0.1 * torch.randn(batch, 1, rig.mimi.frame_size)
        self._pcm_BCN = pcm.pin_memory() if rig.device.type == "cuda" else pcm
        self._device = rig.device

    def tick(self) -> None:
        """A frame of every session; results are on the host then."""
        codes_BKT = self._mimi.encode(self._pcm_BCN.to(self._device, non_blocking=True))
        made = self._generator.step(codes_BKT)
        audio_BCN = self._mimi.decode(made[:, 1:].clamp(min=0))
        audio_BCN.cpu()
        made.cpu()

    def step(self, user_BK: Tensor) -> list[int]:
        """Text and codes of the first session from given codes."""
        row: list[int] = self._generator.step(user_BK[..., None])[0, :, 0].tolist()
        return row
