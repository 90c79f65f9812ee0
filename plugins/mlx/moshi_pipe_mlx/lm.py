"""Moshi's language model on MLX.

One step is one graph: it is computed when the sampled token and codes are asked for, at its end.

Shape letters: B slot, S stream, K generated codebook, R row (B times rows per slot), V vocabulary,
D model width, W remembered text token.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/lm.py; Défossez et al. 2024, "Moshi: a
speech-text foundation model for real-time dialogue", section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.models.protocols import Capabilities, Controls, Step
from moshi_pipe.models.spec import UNGENERATED, ZERO_CODE
from moshi_pipe_mlx.place import dtype_name, to_mx, to_torch
from moshi_pipe_mlx.sampling import penalize_recent, sample
from moshi_pipe_mlx.stack import Norm, Stack, StackState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from moshi_pipe.models.spec import ConditionerSpec, LMSpec
    from moshi_pipe_mlx.matrix import Packing, Weights
    from moshi_pipe_mlx.place import Place

_REMEMBERED_TEXT: Final = 64  # tokens that the repetition penalty looks back at


@dataclass(slots=True)
class MoshiState:
    """What the model remembers between frames; rows of a slot side by side.

    Attributes:
        temporal: Rings and positions of the temporal transformer.
        condition_RD: Sum of the conditions; None without conditions.
        recent_BW: Recent text tokens without padding, -2 where none.
        rows_per_slot: 2 with classifier-free guidance, else 1.
    """

    temporal: StackState
    condition_RD: mx.array | None
    recent_BW: npt.NDArray[np.int64]
    rows_per_slot: int


class Moshi:
    """The language model on MLX. Implements :class:`moshi_pipe.models.protocols.SpeechLM`.

    Tensors are exchanged on the CPU whatever the device: a frame is a few numbers.

    Args:
        lm: Every number of the model.
        weights: Loaded and evaluated.
        place: Device and types.
        packing: How most of its matrices are quantized; None when they are not.
    """

    def __init__(
        self, lm: LMSpec, weights: Weights, place: Place, packing: Packing | None = None
    ) -> None:
        if lm.temporal.context is None:
            raise ConfigError("the language model needs a context", wanted="a number of frames")
        self.lm = lm
        self.weights = weights
        self.place = place
        self.packing = packing
        self._text_emb = _Embedding(lm, weights, "text_emb")
        self._emb = [_Embedding(lm, weights, f"emb.{k}") for k in range(lm.num_codebooks)]
        self._temporal = Stack(lm.temporal, weights, "transformer")
        self._out_norm = Norm(lm.temporal.norm, weights, "out_norm")
        self._text_head = _Head(weights, "text_linear")
        self._extra_heads = [_Head(weights, f"extra_heads.{i}") for i in range(lm.num_extra_heads)]
        self._conditions = [_Condition(spec, weights) for spec in lm.conditioners]
        self._depth = _Depth(lm, weights) if lm.depth is not None else None
        self._initial_S = np.array(lm.initial_codes, dtype=np.int64)

    @property
    def spec(self) -> LMSpec:
        """Every number of the model."""
        return self.lm

    @property
    def caps(self) -> Capabilities:
        """Where the engine exchanges tensors with it, and its weights' type."""
        packed = f"int{self.packing.bits}" if self.packing is not None else None
        return Capabilities("mlx", "cpu", packed or dtype_name(self.place.dtype))

    def new_state(self, num_slots: int, rows_per_slot: int = 1) -> MoshiState:
        """Make zeroed state; see :class:`~moshi_pipe.models.protocols.SpeechLM`."""
        with self.place.enter():
            rows = num_slots * rows_per_slot
            temporal = self._temporal.new_state(rows, self.lm.temporal.context or 0, self.place)
            condition = None
            if self._conditions:
                condition = mx.zeros((rows, self.lm.temporal.dim), self.place.dtype)
                mx.eval(condition)
            recent = np.full((num_slots, _REMEMBERED_TEXT), UNGENERATED, dtype=np.int64)
            return MoshiState(temporal, condition, recent, rows_per_slot)

    def reset(
        self, state: MoshiState, slots: Sequence[int], conditions: Mapping[str, str] | None = None
    ) -> None:
        """Zero the named slots and set their conditions.

        Args:
            state: Updated in place.
            slots: Slots to clear.
            conditions: Value per condition; ``name!`` gives the unwanted value of guidance.

        Raises:
            ConfigError: The values do not fit what the model declares.
        """
        if not slots:
            return
        per_slot = state.rows_per_slot
        rows = [slot * per_slot + i for slot in slots for i in range(per_slot)]
        with self.place.enter():
            state.temporal.reset(rows)
            state.recent_BW[list(slots)] = UNGENERATED
            self._set_conditions(state, slots, dict(conditions or {}))
            mx.eval(state.temporal.arrays)

    def step(
        self, column_BS: Tensor, valid_B: Tensor, controls: Controls, state: MoshiState
    ) -> Step:
        """Advance the valid slots; see :class:`~moshi_pipe.models.protocols.SpeechLM`.

        ``extra`` holds ``text_logits_BV`` (float32, after guidance) and, where the model has them,
        ``extra_heads``: a list of probabilities ``[B, extra_head_size]``.

        Raises:
            ValueError: An id that the model has no embedding for.
        """
        valid = valid_B.numpy()
        column = np.where(valid[:, None], column_BS.numpy(), self._initial_S)
        self._check_ids(column)
        with self.place.enter():
            return self._step(column, valid, controls, state)

    def _step(
        self,
        column_BS: npt.NDArray[np.int64],
        valid_B: npt.NDArray[np.bool_],
        controls: Controls,
        state: MoshiState,
    ) -> Step:
        batch, per_slot = len(column_BS), state.rows_per_slot
        chooser = _Chooser(controls, batch, per_slot)
        hidden_R1D = self._hidden(
            column_BS.repeat(per_slot, axis=0), valid_B.repeat(per_slot), state
        )
        logits_BV = chooser.guide(self._text_head(hidden_R1D))
        finite_B = mx.isfinite(logits_BV).all(axis=-1)
        text_B = self._choose_text(logits_BV, chooser, controls, state)
        heads = [mx.softmax(head(hidden_R1D[::per_slot]), axis=-1) for head in self._extra_heads]
        codes_BK = mx.zeros((batch, 0), mx.int32)
        if self._depth is not None:
            codes_BK, finite_codes_B = self._depth.step(text_B, hidden_R1D, chooser)
            finite_B = finite_B & finite_codes_B
        mx.eval(text_B, codes_BK, finite_B, logits_BV, heads, state.temporal.arrays)
        extra: dict[str, Any] = {"text_logits_BV": to_torch(logits_BV)}
        if heads:
            extra["extra_heads"] = [to_torch(head) for head in heads]
        text = to_torch(text_B)
        if controls.repetition_penalty_B is not None:
            self._remember_text(text.numpy(), valid_B, state.recent_BW[:batch])
        return Step(text, to_torch(codes_BK), to_torch(finite_B), extra)

    def _hidden(
        self,
        column_RS: npt.NDArray[np.int64],
        valid_R: npt.NDArray[np.bool_],
        state: MoshiState,
    ) -> mx.array:
        """Normalised output of the temporal transformer, ``[R, 1, D]``."""
        muted = column_RS == ZERO_CODE
        ids_RS = mx.array(np.maximum(column_RS, 0).astype(np.int32))
        x: mx.array | None = None
        for stream, table in [*enumerate(self._emb, start=1), (0, self._text_emb)]:
            zero_R = mx.array(muted[:, stream]) if muted[:, stream].any() else None
            y = table(ids_RS[:, stream], zero_R)
            x = y if x is None else x + y
        if x is None:
            raise RuntimeError("a model has at least the text stream")
        if state.condition_RD is not None:
            x = x + state.condition_RD[: x.shape[0]]
        return self._out_norm(self._temporal.step(x[:, None], state.temporal, valid_R))

    def _choose_text(
        self, logits_BV: mx.array, chooser: _Chooser, controls: Controls, state: MoshiState
    ) -> mx.array:
        batch = logits_BV.shape[0]
        if controls.repetition_penalty_B is not None:
            recent_BW = state.recent_BW[:batch]
            seen = np.zeros(logits_BV.shape, dtype=np.bool_)
            slot, place = np.nonzero(recent_BW >= 0)
            seen[slot, recent_BW[slot, place]] = True
            penalty_B = to_mx(controls.repetition_penalty_B[:batch])
            logits_BV = penalize_recent(logits_BV, mx.array(seen), penalty_B)
        text_B = chooser.text(logits_BV)
        if controls.forced_text_B is not None:
            forced = controls.forced_text_B[:batch].numpy()
            self._check_ids(forced[:, None])
            forced_B = mx.array(forced.astype(np.int32))
            text_B = mx.where(forced_B == UNGENERATED, text_B, forced_B)
        return text_B

    def _remember_text(
        self,
        text_B: npt.NDArray[np.int64],
        valid_B: npt.NDArray[np.bool_],
        recent_BW: npt.NDArray[np.int64],
    ) -> None:
        spoken = (text_B != self.lm.text_padding_id) & (text_B != self.lm.text_end_padding_id)
        for slot in np.flatnonzero(spoken & valid_B):
            recent_BW[slot] = [*recent_BW[slot, 1:], text_B[slot]]

    def _set_conditions(
        self, state: MoshiState, slots: Sequence[int], given: dict[str, str]
    ) -> None:
        if state.condition_RD is None:
            if given:
                raise ConfigError(
                    "the model takes no conditions", got=", ".join(given), wanted="none"
                )
            return
        wanted: dict[str, str | None] = {k: v for k, v in given.items() if not k.endswith("!")}
        unwanted = {k: given.get(f"{k}!") for k in wanted}
        for i, values in enumerate([wanted, unwanted][: state.rows_per_slot]):
            total_D = mx.sum(mx.stack([c.vector(values) for c in self._conditions]), axis=0)
            for slot in slots:
                row = slot * state.rows_per_slot + i
                state.condition_RD[row] = total_D.astype(self.place.dtype)
        mx.eval(state.condition_RD)

    def _check_ids(self, ids_BS: npt.NDArray[np.int64]) -> None:
        """Refuse what has no row: MLX would read past the table."""
        largest_S = self._initial_S[: ids_BS.shape[1]]
        if (ids_BS > largest_S).any():
            slot, stream = np.argwhere(ids_BS > largest_S)[0]
            raise ValueError(
                f"stream {stream} of slot {slot} holds id {ids_BS[slot, stream]}; "
                f"the largest is {largest_S[stream]}"
            )


class _Chooser:
    """How the slots of one step choose their tokens."""

    def __init__(self, controls: Controls, batch: int, rows_per_slot: int) -> None:
        self._rows_per_slot = rows_per_slot
        noise, guidance = controls.noise_BKR, controls.guidance_B
        self._noise_BKR = None if noise is None else to_mx(noise[:batch])
        self._weight_B1 = None if guidance is None else to_mx(guidance[:batch])[:, None]
        self._temperature_B = to_mx(controls.temperature_B[:batch])
        self._text_temperature_B = to_mx(controls.text_temperature_B[:batch])
        self._top_k_B = to_mx(controls.top_k_B[:batch])
        self._text_top_k_B = to_mx(controls.text_top_k_B[:batch])

    def guide(self, logits_RV: mx.array) -> mx.array:
        """Mix wanted and unwanted rows into float32 ``[B, V]``; weight 1 is off.

        Source: Ho and Salimans 2022, arXiv:2207.12598, in the reference's parametrisation.
        """
        if self._rows_per_slot == 1:
            return logits_RV.astype(mx.float32)
        wanted, unwanted = logits_RV[::2].astype(mx.float32), logits_RV[1::2].astype(mx.float32)
        if self._weight_B1 is None:
            return wanted
        mixed = unwanted + (wanted - unwanted) * self._weight_B1
        return mx.where(self._weight_B1 == 1, wanted, mixed)

    def rows(self, ids_B: mx.array) -> mx.array:
        """Ids for every row of a slot."""
        return ids_B if self._rows_per_slot == 1 else mx.repeat(ids_B, self._rows_per_slot)

    def text(self, logits_BV: mx.array) -> mx.array:
        """Choose text tokens."""
        return sample(logits_BV, self._text_temperature_B, self._text_top_k_B, self._noise(0))

    def code(self, logits_BV: mx.array, codebook: int) -> mx.array:
        """Choose the codes of one codebook."""
        return sample(logits_BV, self._temperature_B, self._top_k_B, self._noise(1 + codebook))

    def _noise(self, row: int) -> mx.array | None:
        return None if self._noise_BKR is None else self._noise_BKR[:, row]


class _Depth:
    """The depth transformer with its tables and heads."""

    def __init__(self, lm: LMSpec, weights: Weights) -> None:
        if lm.depth is None:
            raise RuntimeError("a model without generated codebooks has no depth transformer")
        self._lm = lm
        self._stack = Stack(lm.depth, weights, "depformer")
        num_inputs = lm.depth.num_weight_sets if lm.multi_linear else 1
        self._in = [weights.matrix(f"depformer_in.{i}.weight") for i in range(num_inputs)]
        names = ["depformer_text_emb", *[f"depformer_emb.{k}" for k in range(lm.num_generated - 1)]]
        self._emb = [_Embedding(lm, weights, name) for name in names]
        self._heads = [_Head(weights, f"linears.{k}") for k in range(lm.num_generated)]
        self._norms = []
        if lm.depth_norm is not None:
            self._norms = [
                Norm(lm.depth_norm, weights, f"depformer_norms.{k}")
                for k in range(lm.num_generated)
            ]

    def step(
        self, text_B: mx.array, hidden_R1D: mx.array, chooser: _Chooser
    ) -> tuple[mx.array, mx.array]:
        """Choose all codes of a frame, each conditioning the next.

        Returns:
            Codes, int32 ``[B, K]``, and whether their logits were finite, ``[B]``.
        """
        frame = self._stack.frame()
        finite_B = mx.ones(text_B.shape, mx.bool_)
        previous_B, codes = text_B, []
        for k, table in enumerate(self._emb):
            weight_set = self._lm.codebook_weight_set(k)
            linear = self._in[weight_set if self._lm.multi_linear else 0]
            ids_R = chooser.rows(previous_B)
            # Text may be forced to the zero code; a code that was chosen is never negative.
            zero_R = ids_R == ZERO_CODE if k == 0 else None
            embedded_R1D = table(mx.maximum(ids_R, 0) if k == 0 else ids_R, zero_R)[:, None]
            x = linear.project(hidden_R1D) + embedded_R1D
            x = self._stack.step_in_frame(x, frame, weight_set)
            logits_BV = chooser.guide(self._heads[k](self._norms[k](x) if self._norms else x))
            finite_B = finite_B & mx.isfinite(logits_BV).all(axis=-1)
            previous_B = chooser.code(logits_BV, k)
            codes.append(previous_B)
        return mx.stack(codes, axis=1), finite_B


class _Embedding:
    """A table in whatever form it is stored; zero code, norm and low rank go around it."""

    def __init__(self, lm: LMSpec, weights: Weights, name: str) -> None:
        self._table = weights.matrix(f"{name}.weight")
        self._norm = Norm("layer_norm", weights, f"{name}.norm") if lm.norm_embeddings else None
        self._low_rank = weights.matrices.get(f"{name}.low_rank.weight")

    def __call__(self, ids_R: mx.array, zero_R: mx.array | None) -> mx.array:
        """Look ids up, ``[R, D]``.

        Args:
            ids_R: 0 or more.
            zero_R: Rows that are exactly zero; None when none is.
        """
        y = self._table.rows(ids_R)
        if self._norm is not None:
            y = self._norm(y)
        if zero_R is not None:
            y = mx.where(zero_R[:, None], mx.array(0, y.dtype), y)
        return y if self._low_rank is None else self._low_rank.project(y)


class _Head:
    """An output head, with or without a bias."""

    def __init__(self, weights: Weights, name: str) -> None:
        self._weight = weights.matrix(f"{name}.weight")
        self._bias = weights.vectors.get(f"{name}.bias")

    def __call__(self, x_R1D: mx.array) -> mx.array:
        """Logits of the single position, ``[R, V]``."""
        y = self._weight.project(x_R1D)[:, 0]
        return y if self._bias is None else y + self._bias


class _Condition:
    """A condition with a fixed set of values; float32."""

    def __init__(self, spec: ConditionerSpec, weights: Weights) -> None:
        prefix = f"condition_provider.conditioners.{spec.name}"
        self._spec = spec
        self._embed = weights.matrix(f"{prefix}.embed.weight")
        self._project = weights.matrix(f"{prefix}.output_proj.weight")
        self._padding_D = weights.vector(f"{prefix}.learnt_padding").reshape(-1)

    def vector(self, values: Mapping[str, str | None]) -> mx.array:
        """Vector of this condition's value, ``[D]``; None gives the learnt padding.

        Raises:
            ConfigError: No value, or one that the model does not know.
        """
        spec = self._spec
        if spec.name not in values:
            raise ConfigError(
                f"the model needs a value for its condition '{spec.name}'",
                wanted=closest("", spec.values),
                fix=f"set conditions.{spec.name}=VALUE",
            )
        value = values[spec.name]
        if value is None:
            return self._padding_D
        if value not in spec.values:
            raise ConfigError(
                f"the model's condition '{spec.name}' has no such value",
                got=value,
                wanted=closest(value, spec.values),
            )
        row = self._embed.rows(mx.array([spec.values.index(value)]))
        return self._project.project(row)[0]
