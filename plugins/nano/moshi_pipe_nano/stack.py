"""A transformer over whole sequences, for training, over the names of a checkpoint.

Shape letters: B sequence, T position, D width, H head, E width of one head.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from moshi_pipe.models.spec import TransformerSpec


def run_stack(
    x_BTD: Tensor,
    weights: Mapping[str, Tensor],
    prefix: str,
    spec: TransformerSpec,
    per_call: int = 1,
) -> Tensor:
    """Run every block at every position; position 0 is the first.

    Args:
        x_BTD: Input.
        weights: By in-memory name.
        prefix: Of the stack's names.
        spec: Shape of the stack. With weight sets, position ``t`` uses set ``weight_sets[t]``.
        per_call: Positions that a stream runs at once. They are all stored before any of them
            looks back, so that the first of them sees fewer than the last.
    """
    num_positions = x_BTD.shape[1]
    rotation = None
    if spec.positional_embedding != "none":
        rotation = _rotation(num_positions, spec.head_dim, spec.max_period, x_BTD.device)
    mask = _mask(num_positions, spec.context, per_call, x_BTD.device)
    for layer in range(spec.num_layers):
        name = f"{prefix}.layers.{layer}"
        y = _norm(x_BTD, weights, f"{name}.norm1", spec.norm)
        x_BTD = x_BTD + _scaled(_attend(y, weights, name, spec, rotation, mask), weights, name, 1)
        y = _norm(x_BTD, weights, f"{name}.norm2", spec.norm)
        x_BTD = x_BTD + _scaled(_feed_forward(y, weights, name, spec), weights, name, 2)
    return x_BTD


def rms_norm(x: Tensor, alpha: Tensor, eps: float = 1e-8) -> Tensor:
    """Root-mean-square norm, in the form of :class:`moshi_pipe.nn.norm.RMSNorm`."""
    variance = eps + x.square().mean(-1, keepdim=True)
    return x * (alpha.flatten() * torch.rsqrt(variance))


def _norm(x_BTD: Tensor, weights: Mapping[str, Tensor], name: str, kind: str) -> Tensor:
    eps = 1e-8 if kind.endswith("_f32") else 1e-5
    if kind.startswith("rms_norm"):
        return rms_norm(x_BTD, weights[f"{name}.alpha"], eps)
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.layer_norm(x_BTD, weight.shape, weight, bias, eps)


def _scaled(x_BTD: Tensor, weights: Mapping[str, Tensor], name: str, branch: int) -> Tensor:
    scale = weights.get(f"{name}.layer_scale_{branch}.scale")
    return x_BTD if scale is None else x_BTD * scale


def _by_set(
    x_BTD: Tensor, weights: Mapping[str, Tensor], name: str, spec: TransformerSpec
) -> Tensor:
    """A linear layer whose weights depend on the position; ``{}`` in the name is the set."""
    if not spec.weight_sets:
        return F.linear(x_BTD, weights[name.format(0)])
    sets = spec.weight_sets[: x_BTD.shape[1]]
    stacked_TOD = torch.stack([weights[name.format(i)] for i in sets])
    return torch.bmm(x_BTD.transpose(0, 1), stacked_TOD.transpose(1, 2)).transpose(0, 1)


def _attend(
    x_BTD: Tensor,
    weights: Mapping[str, Tensor],
    name: str,
    spec: TransformerSpec,
    rotation: tuple[Tensor, Tensor] | None,
    mask: Tensor,
) -> Tensor:
    batch, num_positions, _ = x_BTD.shape
    projected = _by_set(x_BTD, weights, name + ".self_attn.in_projs.{}.weight", spec)
    heads = projected.reshape(batch, num_positions, -1, spec.head_dim).transpose(1, 2)
    q, k, v = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
    if rotation is not None:
        q, k = _rotate(q, rotation), _rotate(k, rotation)
    out = F.scaled_dot_product_attention(q, k, v, mask)
    out_BTD = out.transpose(1, 2).reshape(batch, num_positions, -1)
    return _by_set(out_BTD, weights, name + ".self_attn.out_projs.{}.weight", spec)


def _feed_forward(
    x_BTD: Tensor, weights: Mapping[str, Tensor], name: str, spec: TransformerSpec
) -> Tensor:
    if spec.gating == "none":
        hidden = F.gelu(F.linear(x_BTD, weights[f"{name}.linear1.weight"]))
        return F.linear(hidden, weights[f"{name}.linear2.weight"])
    gates = f"{name}.gating.{{}}" if spec.weight_sets else f"{name}.gating"
    gate, value = _by_set(x_BTD, weights, f"{gates}.linear_in.weight", spec).chunk(2, dim=-1)
    return _by_set(F.silu(gate) * value, weights, f"{gates}.linear_out.weight", spec)


@lru_cache(maxsize=64)
def _mask(num_positions: int, context: int | None, per_call: int, device: torch.device) -> Tensor:
    """Which position sees which: its past, of what is stored when its call ends."""
    steps_T = torch.arange(num_positions, device=device)
    seen = steps_T[:, None] >= steps_T
    if context is None:
        return seen
    stored_T = steps_T // per_call * per_call + per_call - 1
    return seen & (stored_T[:, None] - steps_T < context)


@lru_cache(maxsize=64)
def _rotation(
    num_positions: int, head_dim: int, max_period: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    half_E = torch.arange(head_dim // 2, dtype=torch.float32, device=device)
    frequency_E = torch.exp(half_E * (-math.log(max_period) * 2 / head_dim))
    angle_TE = torch.arange(num_positions, device=device)[:, None] * frequency_E
    return angle_TE.cos(), angle_TE.sin()


def _rotate(x_BHTE: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate neighbouring pairs, the form of ``positional_embedding: rope``."""
    cos_TE, sin_TE = rotation
    real, imag = x_BHTE[..., 0::2], x_BHTE[..., 1::2]
    pairs = (real * cos_TE - imag * sin_TE, real * sin_TE + imag * cos_TE)
    return torch.stack(pairs, dim=-1).flatten(-2)
