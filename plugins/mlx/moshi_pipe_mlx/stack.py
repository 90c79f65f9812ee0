"""Streaming transformers on MLX: rings of keys and values, and the blocks over them.

Where a position is written, how it rotates and what it sees is planned by
:func:`moshi_pipe.nn.attention.plan_positions`, as for the PyTorch backend: positions are few
numbers and live on the host, so both backends have one window and one rotation, to the bit.

Shape letters: R row (a slot, or one of its rows), T new position, D width, H head, E width of one
head, L ring capacity.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/modules/{transformer,gating}.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import torch

from moshi_pipe.nn.attention import plan_positions
from moshi_pipe_mlx.place import to_mx

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.models.spec import TransformerSpec
    from moshi_pipe_mlx.matrix import Weights
    from moshi_pipe_mlx.place import Place


@dataclass(slots=True)
class Ring:
    """Keys and values of one layer, in ring order.

    Attributes:
        keys_RHLE: Rotated keys.
        values_RHLE: Values.
    """

    keys_RHLE: mx.array
    values_RHLE: mx.array


@dataclass(slots=True)
class StackState:
    """What a stack remembers.

    Attributes:
        rings: One per layer.
        position_R: Next position of each row, int64, on the host; it never wraps.
    """

    rings: list[Ring]
    position_R: torch.Tensor

    @property
    def arrays(self) -> list[mx.array]:
        """Everything that MLX holds."""
        return [a for ring in self.rings for a in (ring.keys_RHLE, ring.values_RHLE)]

    def reset(self, rows: Sequence[int]) -> None:
        """Zero rows: position, keys and values; a stale NaN would outlive any mask."""
        self.position_R[list(rows)] = 0
        for array in self.arrays:
            for row in rows:
                array[row] = 0


@dataclass(slots=True)
class Step:
    """What all layers of one step share.

    Attributes:
        write_RT: Ring index of each new position; None for ``write_at``.
        row_R1: Row of each entry of ``write_RT``.
        write_at: Ring index of the first new position of a single row, the others following.
        cos_R1TE: Rotation, ``E / 2`` wide; None without rotary positions.
        sin_R1TE: As ``cos_R1TE``.
        mask_R1TL: What each new position sees; None when all of ``length``.
        length: Ring entries to read from the front.
    """

    write_RT: mx.array | None
    row_R1: mx.array | None
    write_at: int
    cos_R1TE: mx.array | None
    sin_R1TE: mx.array | None
    mask_R1TL: mx.array | None
    length: int


class Norm:
    """The norm that a spec names, computed in float32 inside.

    Args:
        kind: ``layer_norm``, ``layer_norm_f32``, ``rms_norm`` or ``rms_norm_f32``.
        weights: Of the model.
        name: Of the norm.
    """

    def __init__(self, kind: str, weights: Weights, name: str) -> None:
        self._eps = 1e-8 if kind.endswith("_f32") else 1e-5
        self._bias: mx.array | None = None
        if kind.startswith("rms_norm"):
            self._weight = weights.vector(f"{name}.alpha").reshape(-1)
        else:
            self._weight = weights.vector(f"{name}.weight")
            self._bias = weights.vector(f"{name}.bias")

    def __call__(self, x: mx.array) -> mx.array:
        """Normalise the last axis."""
        if self._bias is None:
            return mx.fast.rms_norm(x, self._weight, self._eps)
        return mx.fast.layer_norm(x, self._weight, self._bias, self._eps)


class Block:
    """Pre-norm attention and feed-forward, both residual.

    Args:
        spec: Of the stack.
        weights: Of the model.
        name: Such as ``transformer.layers.3``.
    """

    def __init__(self, spec: TransformerSpec, weights: Weights, name: str) -> None:
        self._spec = spec
        self._norm1 = Norm(spec.norm, weights, f"{name}.norm1")
        self._norm2 = Norm(spec.norm, weights, f"{name}.norm2")
        sets = range(spec.num_weight_sets)
        attention = f"{name}.self_attn"
        self._in = [weights.matrix(f"{attention}.in_projs.{i}.weight") for i in sets]
        self._out = [weights.matrix(f"{attention}.out_projs.{i}.weight") for i in sets]
        gated = spec.gating != "none"
        first, second = ("linear_in", "linear_out") if gated else ("linear1", "linear2")
        homes = [f"{name}.gating" if gated else name]
        if gated and spec.weight_sets:
            homes = [f"{name}.gating.{i}" for i in sets]
        self._widen = [weights.matrix(f"{home}.{first}.weight") for home in homes]
        self._narrow = [weights.matrix(f"{home}.{second}.weight") for home in homes]
        self._scales: list[mx.array] = []
        if spec.layer_scale is not None:
            self._scales = [weights.vector(f"{name}.layer_scale_{i}.scale") for i in (1, 2)]

    def step(self, x_RTD: mx.array, ring: Ring, step: Step) -> mx.array:
        """Advance by T positions over a ring."""
        q, k, v = self._heads(self._norm1(x_RTD), 0, step)
        _write(ring, k, v, step)
        keys, values = _read(ring, x_RTD.shape[0], step.length, q.dtype)
        x_RTD = self._attend(x_RTD, q, keys, values, step.mask_R1TL, 0)
        return self._feed_forward(x_RTD, 0)

    def step_in_frame(
        self, x_R1D: mx.array, seen: list[tuple[mx.array, mx.array]], weight_set: int
    ) -> mx.array:
        """Advance a depth transformer by one codebook; it sees all of its frame so far.

        Args:
            x_R1D: Input.
            seen: Keys and values of the codebooks before; this one's are added.
            weight_set: Weights to use.
        """
        q, k, v = self._heads(self._norm1(x_R1D), weight_set, None)
        seen.append((k, v))
        keys = mx.concatenate([k for k, _ in seen], axis=2) if len(seen) > 1 else k
        values = mx.concatenate([v for _, v in seen], axis=2) if len(seen) > 1 else v
        x_R1D = self._attend(x_R1D, q, keys, values, None, weight_set)
        return self._feed_forward(x_R1D, weight_set)

    def _heads(
        self, x_RTD: mx.array, weight_set: int, step: Step | None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Queries, keys and values, ``[R, H, T, E]`` each, rotated."""
        spec = self._spec
        rows, num_new, _ = x_RTD.shape
        projected = self._in[weight_set].project(x_RTD)
        heads = projected.reshape(rows, num_new, -1, spec.head_dim).swapaxes(1, 2)
        rotated = spec.num_heads + spec.num_kv_heads
        qk, v = heads[:, :rotated], heads[:, rotated:]
        if step is not None:
            qk = _rotate(qk, step, interleaved=spec.positional_embedding == "rope")
        return qk[:, : spec.num_heads], qk[:, spec.num_heads :], v

    def _attend(
        self,
        x_RTD: mx.array,
        q: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array | None,
        weight_set: int,
    ) -> mx.array:
        scale = 1 / math.sqrt(self._spec.head_dim)
        y = mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask)
        update = self._out[weight_set].project(y.swapaxes(1, 2).reshape(x_RTD.shape))
        return x_RTD + (update * self._scales[0] if self._scales else update)

    def _feed_forward(self, x_RTD: mx.array, weight_set: int) -> mx.array:
        index = weight_set if len(self._widen) > 1 else 0
        hidden = self._widen[index].project(self._norm2(x_RTD))
        if self._spec.gating == "none":
            hidden = 0.5 * hidden * (1 + mx.erf(hidden * math.sqrt(0.5)))  # GELU, exact
        else:
            gate, value = mx.split(hidden, 2, axis=-1)
            hidden = gate * mx.sigmoid(gate) * value
        update = self._narrow[index].project(hidden)
        return x_RTD + (update * self._scales[1] if self._scales else update)


class Stack:
    """A stack of blocks.

    Args:
        spec: Shape of the stack.
        weights: Of the model.
        name: Such as ``transformer``.
    """

    def __init__(self, spec: TransformerSpec, weights: Weights, name: str) -> None:
        self.spec = spec
        self._blocks = [Block(spec, weights, f"{name}.layers.{i}") for i in range(spec.num_layers)]

    def new_state(self, num_rows: int, capacity: int, place: Place) -> StackState:
        """Make zeroed state with rings of ``capacity`` positions."""
        shape = (num_rows, self.spec.num_kv_heads, capacity, self.spec.head_dim)
        rings = [
            Ring(mx.zeros(shape, place.kv_dtype), mx.zeros(shape, place.kv_dtype))
            for _ in self._blocks
        ]
        state = StackState(rings, torch.zeros(num_rows, dtype=torch.int64))
        mx.eval(state.arrays)
        return state

    def step(self, x_RTD: mx.array, state: StackState, valid_R: npt.NDArray[np.bool_]) -> mx.array:
        """Advance the valid rows by T positions.

        Args:
            x_RTD: Input; R may be fewer than the state has.
            state: Updated in place.
            valid_R: Rows whose position advances.
        """
        rows, num_new, _ = x_RTD.shape
        position_R = state.position_R[:rows]
        step = self._plan(position_R, num_new, state.rings[0].keys_RHLE.shape[2])
        for block, ring in zip(self._blocks, state.rings, strict=True):
            x_RTD = block.step(x_RTD, ring, step)
        position_R += num_new * torch.from_numpy(valid_R)
        return x_RTD

    def frame(self) -> list[list[tuple[mx.array, mx.array]]]:
        """Make what a depth transformer remembers within one frame."""
        return [[] for _ in self._blocks]

    def step_in_frame(
        self, x_R1D: mx.array, frame: list[list[tuple[mx.array, mx.array]]], weight_set: int
    ) -> mx.array:
        """Advance a depth transformer by one codebook."""
        for block, seen in zip(self._blocks, frame, strict=True):
            x_R1D = block.step_in_frame(x_R1D, seen, weight_set)
        return x_R1D

    def _plan(self, position_R: torch.Tensor, num_new: int, capacity: int) -> Step:
        spec = self.spec
        alone = len(position_R) == 1
        plan = plan_positions(
            position_R,
            num_new,
            capacity=capacity,
            context=spec.context,
            head_dim=spec.head_dim,
            max_period=None if spec.positional_embedding == "none" else spec.max_period,
            prefix=alone,
        )
        # Positions are on the host: what no row has filled is not read, whatever their number.
        length = min(plan.length, int(position_R.max()) + num_new)
        mask = plan.mask_B1TL
        first = int(plan.write_BT[0, 0])
        in_one_piece = alone and first + num_new <= capacity
        return Step(
            write_RT=None if in_one_piece else to_mx(plan.write_BT),
            row_R1=None if in_one_piece else mx.arange(len(position_R))[:, None],
            write_at=first,
            cos_R1TE=None if plan.cos_B1TE is None else to_mx(plan.cos_B1TE),
            sin_R1TE=None if plan.sin_B1TE is None else to_mx(plan.sin_B1TE),
            mask_R1TL=None if mask is None else to_mx(mask[..., :length]),
            length=length,
        )


def _rotate(x_RHTE: mx.array, step: Step, *, interleaved: bool) -> mx.array:
    """Rotate by position in float32; pairs are neighbours, or half a head apart."""
    cos, sin = step.cos_R1TE, step.sin_R1TE
    if cos is None or sin is None:
        return x_RHTE
    half = x_RHTE.shape[-1] // 2
    x = x_RHTE.astype(mx.float32)
    if interleaved:
        pairs = x.reshape(*x.shape[:-1], half, 2)
        real, imag = pairs[..., 0], pairs[..., 1]
    else:
        real, imag = x[..., :half], x[..., half:]
    out = [real * cos - imag * sin, real * sin + imag * cos]
    y = mx.stack(out, axis=-1).reshape(x.shape) if interleaved else mx.concatenate(out, axis=-1)
    return y.astype(x_RHTE.dtype)


def _write(ring: Ring, k_RHTE: mx.array, v_RHTE: mx.array, step: Step) -> None:
    """Put the new entries into the ring; MLX reuses its memory, as nobody else holds it."""
    for array, new in ((ring.keys_RHLE, k_RHTE), (ring.values_RHLE, v_RHTE)):
        new = new.astype(array.dtype)
        if step.write_RT is None:
            array[:1, :, step.write_at : step.write_at + new.shape[2]] = new
        else:
            array[step.row_R1, :, step.write_RT] = new.swapaxes(1, 2)


def _read(ring: Ring, rows: int, length: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    keys = ring.keys_RHLE[:rows, :, :length]
    values = ring.values_RHLE[:rows, :, :length]
    return keys.astype(dtype), values.astype(dtype)
