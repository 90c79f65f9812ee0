"""Streaming transformer: one class for Mimi's, the temporal and the depth transformer.

Modules hold weights; what a step remembers is a :class:`TransformerState`. Parameter names are the
reference's in-memory names, so that released checkpoints load by name.

Shape letters: B slot (times rows per slot), T new position, D width, H head, E width of one head,
L ring capacity.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/{transformer,gating}.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe.models.spec import TransformerSpec, gated_hidden
from moshi_pipe.nn.attention import KVRing, Positions, attend, plan_positions, rotate
from moshi_pipe.nn.linear import Apply, apply_plain
from moshi_pipe.nn.norm import LayerScale, make_norm
from moshi_pipe.nn.transfer import to_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor


@dataclass(slots=True)
class TransformerState:
    """What a stack remembers.

    Attributes:
        rings: One per layer.
        position_B: Next position of each slot, int64; it never wraps.
    """

    rings: list[KVRing]
    position_B: Tensor

    def reset(self, slots: Sequence[int]) -> None:
        """Zero the named slots: position and stored keys and values alike.

        A stale NaN behind a mask would still poison attention.
        """
        rows = to_rows(slots, self.position_B.device)
        self.position_B.index_fill_(0, rows, 0)
        for ring in self.rings:
            ring.reset(rows)

    def snapshot(self, row: int) -> dict[str, Any]:
        """Copy a slot to the host: its position and the filled part of its rings.

        Entries are filled from the front, so that a young session is a small copy.
        """
        position = int(self.position_B[row])
        length = min(position, self.rings[0].keys_BHLE.shape[2]) if self.rings else 0
        rings = [ring.snapshot(row, length) for ring in self.rings]
        return {"position": torch.tensor(position), "rings": rings}

    def restore(self, row: int, snapshot: Mapping[str, Any]) -> None:
        """Put a copy into a slot, whatever it held."""
        self.reset([row])
        self.position_B[row] = int(snapshot["position"])
        for ring, held in zip(self.rings, snapshot["rings"], strict=True):
            ring.restore(row, held)


class Attention(nn.Module):
    """Self-attention without biases; one set of projections per weight set."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        kv_dim = spec.num_kv_heads * spec.head_dim
        self.in_projs = _linears(spec.num_weight_sets, spec.dim, spec.dim + 2 * kv_dim)
        self.out_projs = _linears(spec.num_weight_sets, spec.dim, spec.dim)

    def step(
        self, x_BTD: Tensor, ring: KVRing, positions: Positions, weight_set: int, apply: Apply
    ) -> Tensor:
        """Attend over the ring and the new positions."""
        spec = self.spec
        batch, num_new, _ = x_BTD.shape
        projected = apply(x_BTD, self.in_projs[weight_set])
        heads = projected.view(batch, num_new, -1, spec.head_dim).transpose(1, 2)
        q, k, v = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        interleaved = spec.positional_embedding == "rope"
        q = rotate(q, positions, interleaved=interleaved)
        k = rotate(k, positions, interleaved=interleaved)
        out = attend(q, k, v, ring, positions)
        return apply(out, self.out_projs[weight_set])


class Gating(nn.Module):
    """Gated feed-forward: ``out(silu(gate) * value)``, gate in the first half of ``linear_in``."""

    def __init__(self, dim: int, feedforward: int) -> None:
        super().__init__()
        hidden = gated_hidden(dim, feedforward)
        self.linear_in = _linear(dim, 2 * hidden)
        self.linear_out = _linear(hidden, dim)

    def step(self, x_BTD: Tensor, apply: Apply) -> Tensor:
        """Apply to every position."""
        gate, value = apply(x_BTD, self.linear_in).chunk(2, dim=-1)
        return apply(F.silu(gate) * value, self.linear_out)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, both residual."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.self_attn = Attention(spec)
        self.norm1 = make_norm(spec.norm, spec.dim)
        self.norm2 = make_norm(spec.norm, spec.dim)
        scaled = spec.layer_scale is not None
        self.layer_scale_1 = LayerScale(spec.dim) if scaled else nn.Identity()
        self.layer_scale_2 = LayerScale(spec.dim) if scaled else nn.Identity()
        self.gating: nn.ModuleList | Gating | None = None
        if spec.gating == "none":
            self.linear1 = _linear(spec.dim, spec.feedforward[0])
            self.linear2 = _linear(spec.feedforward[0], spec.dim)
        elif spec.weight_sets:
            self.gating = nn.ModuleList(Gating(spec.dim, size) for size in spec.feedforward)
        else:
            self.gating = Gating(spec.dim, spec.feedforward[0])

    def step(
        self, x_BTD: Tensor, ring: KVRing, positions: Positions, weight_set: int, apply: Apply
    ) -> Tensor:
        """Advance by T positions."""
        update = self.self_attn.step(self.norm1(x_BTD), ring, positions, weight_set, apply)
        x_BTD = x_BTD + self.layer_scale_1(update)
        update = self._feed_forward(self.norm2(x_BTD), weight_set, apply)
        y_BTD: Tensor = x_BTD + self.layer_scale_2(update)
        return y_BTD

    def _feed_forward(self, x_BTD: Tensor, weight_set: int, apply: Apply) -> Tensor:
        if self.gating is None:
            hidden = F.gelu(apply(x_BTD, self.linear1))
            return apply(hidden, self.linear2)
        gating = self.gating[weight_set] if isinstance(self.gating, nn.ModuleList) else self.gating
        if not isinstance(gating, Gating):
            raise TypeError(f"gating is a {type(gating).__name__}")
        return gating.step(x_BTD, apply)


class Transformer(nn.Module):
    """A stack of blocks.

    Args:
        spec: Shape of the stack.
        prefix: Read only the filled part of the rings where that cannot change which rows a
            product has: one slot on a CPU. Otherwise the whole ring is read behind a mask, which
            is the reference's form.
    """

    def __init__(self, spec: TransformerSpec, *, prefix: bool) -> None:
        super().__init__()
        self._fused: Callable[..., Tensor] | None = None
        self.spec = spec
        self.prefix = prefix
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.num_layers))

    def use_kernels(self) -> None:
        """Step with kernels of our own from now on, which need triton and a GPU.

        Raises:
            ImportError: There is no triton.
        """
        from moshi_pipe.nn.fused import fused_step

        self._fused = fused_step

    def new_state(
        self, num_slots: int, *, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> TransformerState:
        """Make zeroed state.

        Args:
            num_slots: ``B``.
            capacity: Ring entries ``L``; the context, or more to process several frames a call.
            dtype: Of keys and values; int8 has scales beside them.
            device: Where they live.
        """
        shape = (num_slots, self.spec.num_kv_heads, capacity, self.spec.head_dim)
        rings = [KVRing.zeros(shape, dtype, device) for _ in self.layers]
        position_B = torch.zeros(num_slots, dtype=torch.int64, device=device)
        return TransformerState(rings, position_B)

    def step(
        self,
        x_BTD: Tensor,
        state: TransformerState,
        valid_B: Tensor,
        *,
        weight_set: int = 0,
        apply: Apply = apply_plain,
    ) -> Tensor:
        """Advance the valid slots by ``T`` positions.

        Args:
            x_BTD: Input.
            state: Updated in place; may hold more slots than B.
            valid_B: Slots whose position advances, bool.
            weight_set: Weights to use, for a depth transformer.
            apply: How linear layers are applied.

        Returns:
            ``[B, T, D]``.
        """
        if self._fused is not None:
            return self._fused(self, x_BTD, state, valid_B, weight_set, apply)
        batch, num_new, _ = x_BTD.shape
        spec = self.spec
        position_B = state.position_B[:batch]
        capacity = state.rings[0].keys_BHLE.shape[2]
        positions = plan_positions(
            position_B,
            num_new,
            capacity=capacity,
            context=spec.context,
            head_dim=spec.head_dim,
            max_period=None if spec.positional_embedding == "none" else spec.max_period,
            prefix=self.prefix and batch == 1 and x_BTD.device.type == "cpu",
            whole_ring=state.rings[0].key_scales_BHL is not None,
        )
        for layer, ring in zip(self.layers, state.rings, strict=True):
            x_BTD = layer.step(x_BTD, ring, positions, weight_set, apply)  # type: ignore[operator]
        position_B += num_new * valid_B
        return x_BTD


def _linear(dim_in: int, dim_out: int) -> nn.Linear:
    return nn.Linear(dim_in, dim_out, bias=False)


def _linears(count: int, dim_in: int, dim_out: int) -> nn.ModuleList:
    return nn.ModuleList(_linear(dim_in, dim_out) for _ in range(count))
