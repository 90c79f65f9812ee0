"""Small random models as files, and the same model on PyTorch and in Rust."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from moshi_pipe_rust.codec import RustCodec
from moshi_pipe_rust.lm import RustLM
from moshi_pipe_rust.native import load_native
from safetensors.torch import save_file
from support.golden import fill_golden

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.engine.noise import fill_exponential
from moshi_pipe.models.layout import lm_layout, mimi_layout
from moshi_pipe.models.protocols import Codec, Controls, SpeechLM, Step
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from moshi_pipe.models.layout import Layout

NUM_DRAWS = 12


def released_tensors(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """A module's weights under the released, fused names."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    stacked = {part for parts in layout.fused.values() for part in parts}
    found = {name: own[name] for name in layout.tensors if name not in stacked}
    found |= {
        name: torch.cat([own[part] for part in parts]) for name, parts in layout.fused.items()
    }
    return {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def torch_lm(config: dict[str, Any]) -> Moshi:
    model = Moshi(LMSpec.from_config(config), numerics="reference")
    fill_golden(model)
    return model


def write_lm(
    folder: Path, model: Moshi, change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
) -> Path:
    path = folder / "model.safetensors"
    save_file(change(released_tensors(model, lm_layout(model.spec))), path)
    return path


def rust_lm(path: Path, spec: LMSpec, **options: Any) -> RustLM:
    chosen = {
        "device": "cpu",
        "dtype": "float32",
        "kv_dtype": "float32",
        "quantize": path.suffix == ".gguf",
        **options,
    }
    return RustLM.open(load_native(), spec, path, **chosen)


def torch_mimi(config: dict[str, Any]) -> Mimi:
    model = Mimi(MimiSpec.from_config(config))
    fill_golden(model)
    return model


def write_mimi(folder: Path, model: Mimi) -> Path:
    path = folder / "mimi.safetensors"
    save_file(released_tensors(model, mimi_layout(model.mimi)), path)
    return path


def rust_codec(path: Path, mimi: MimiSpec) -> RustCodec:
    return RustCodec.open(load_native(), mimi, path)


def candle_names(tensors: dict[str, Tensor], spec: LMSpec) -> dict[str, Tensor]:
    """The names of candle's release: a whole depth transformer per codebook.

    Source: kyutai-labs/moshi@e6a55d2 scripts/import_rust.py.
    """
    found = {k: v for k, v in tensors.items() if not k.startswith(("depformer", "linears"))}
    depth = spec.depth
    if depth is None:
        return found
    for k in range(spec.num_generated):
        weights, slice_ = spec.codebook_weight_set(k), f"depformer.{k}"
        source = "depformer_text_emb" if k == 0 else f"depformer_emb.{k - 1}"
        for tail in ("weight", "low_rank.weight"):
            if f"{source}.{tail}" in tensors:
                found[f"{slice_}.emb.{tail}"] = tensors[f"{source}.{tail}"].clone()
        found[f"{slice_}.linear_in.weight"] = tensors[f"depformer_in.{weights}.weight"].clone()
        found[f"{slice_}.linear_out.weight"] = tensors[f"linears.{k}.weight"].clone()
        for layer in range(depth.num_layers):
            old, new = f"depformer.layers.{layer}", f"{slice_}.transformer.layers.{layer}"
            for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight"):
                parts = tensors[f"{old}.{name}"].chunk(depth.num_weight_sets)
                found[f"{new}.{name}"] = parts[weights].clone()
            for name in ("linear_in.weight", "linear_out.weight"):
                found[f"{new}.gating.{name}"] = tensors[f"{old}.gating.{weights}.{name}"].clone()
            for name in ("norm1.alpha", "norm2.alpha"):
                found[f"{new}.{name}"] = tensors[f"{old}.{name}"].clone()
    return found


@dataclass
class Runner:
    """Feeds a model with the same streams and noise as any other runner.

    Attributes:
        model: On any backend.
        num_slots: Sessions.
        temperature: 0 is greedy, without noise.
        seeds: Per slot: of its user's codes and its noise.
        rows_per_slot: 2 with guidance.
        settings: Further fields of the controls.
    """

    model: SpeechLM
    num_slots: int
    temperature: float = 0.0
    seeds: Sequence[int] = ()
    rows_per_slot: int = 1
    settings: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seeds = list(self.seeds or range(self.num_slots))
        self.line = DelayLine(self.model.spec, torch.device("cpu"))
        self.delays = self.line.new_state(self.num_slots)
        self.state = self.model.new_state(self.num_slots, self.rows_per_slot)
        self.ages = [0] * self.num_slots

    def reset(self, slots: Sequence[int], conditions: dict[str, str] | None = None) -> None:
        self.model.reset(self.state, slots, conditions)
        self.line.reset(self.delays, slots)
        for slot in slots:
            self.ages[slot] = 0

    def controls(self) -> Controls:
        spec, count = self.model.spec, self.num_slots
        temperature = torch.full((count,), self.temperature)
        top_k = torch.full((count,), NUM_DRAWS)
        noise = None
        if self.temperature > 0:
            draws = np.ones((count, 1 + spec.num_generated, NUM_DRAWS), dtype=np.float32)
            for slot, seed in enumerate(self.seeds):
                fill_exponential(draws[slot], seed=seed, step=self.ages[slot])
            noise = torch.from_numpy(draws)
        return Controls(temperature, temperature, top_k, top_k, noise, **self.settings)

    def user_codes(self) -> Tensor:
        spec = self.model.spec
        rows = [
            [
                (7 * self.ages[slot] + 3 * k + 11 * seed + 1) % spec.cardinality
                for k in range(spec.num_user)
            ]
            for slot, seed in enumerate(self.seeds)
        ]
        return torch.tensor(rows)

    def step(self, valid: Sequence[bool] | None = None) -> Step:
        valid_B = torch.tensor(valid or [True] * self.num_slots)
        column_BS = self.line.push_user(self.user_codes(), valid_B, self.delays)
        step = self.model.step(column_BS, valid_B, self.controls(), self.state)
        self.line.push_generated(step.text_B, step.codes_BK, valid_B, self.delays)
        for slot, runs in enumerate(valid_B.tolist()):
            self.ages[slot] += runs
        return step


def tokens(step: Step, slot: int) -> list[int]:
    return [int(step.text_B[slot]), *step.codes_BK[slot].tolist()]


def speech(num_frames: int, spec: MimiSpec, seed: int = 0) -> Tensor:
    """Sound with some structure, ``[frames, 1, 1, samples]``."""
    generator = torch.Generator().manual_seed(seed)
    count = num_frames * spec.frame_size
    time_s = torch.arange(count) / spec.sample_rate
    sound = 0.3 * torch.sin(2 * torch.pi * (5 + 3 * seed) * time_s * (1 + 0.2 * time_s))
    sound += 0.05 * torch.randn(count, generator=generator)
    return sound.reshape(num_frames, 1, 1, spec.frame_size)


def encode_all(codec: Codec, frames: Tensor) -> Tensor:
    state = codec.new_encoder_state(1)
    valid_B = torch.ones(1, dtype=torch.bool)
    return torch.stack([codec.encode(frame, valid_B, state).clone() for frame in frames])


def decode_all(codec: Codec, codes: Tensor) -> Tensor:
    state = codec.new_decoder_state(1)
    valid_B = torch.ones(1, dtype=torch.bool)
    return torch.stack([codec.decode(frame, valid_B, state).clone() for frame in codes])
