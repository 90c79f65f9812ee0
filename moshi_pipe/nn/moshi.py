"""Moshi's language model: a temporal transformer per frame, a depth transformer per codebook.

One class covers the dialogue models, Hibiki (conditions and guidance) and speech to text (no depth
transformer, extra heads). It takes a column of ids that was already delayed and returns what it
sampled; delays and re-alignment are the engine's.

Shape letters: B slot, S stream, K generated codebook, R row (B times rows per slot), V vocabulary,
D model width, W remembered text token.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/lm.py; Défossez et al. 2024, "Moshi: a
speech-text foundation model for real-time dialogue", section 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe.errors import ConfigError
from moshi_pipe.models.protocols import Capabilities, Controls, Step
from moshi_pipe.models.spec import UNGENERATED
from moshi_pipe.nn.embedding import Conditions, make_embedding
from moshi_pipe.nn.linear import apply_fast, apply_plain
from moshi_pipe.nn.norm import make_norm
from moshi_pipe.nn.sampling import penalize_recent, sample
from moshi_pipe.nn.transformer import Transformer, TransformerState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from moshi_pipe.models.spec import LMSpec

_REMEMBERED_TEXT = 64  # tokens that the repetition penalty looks back at


@dataclass(slots=True)
class MoshiState:
    """What the model remembers between frames; row axis first, rows of a slot side by side.

    Attributes:
        temporal: Rings and positions of the temporal transformer.
        depth: Scratch rings of the depth transformer, rewritten every frame.
        condition_RD: Sum of the conditions, in the model's type; None without conditions.
        recent_BW: Recent text tokens without padding, -2 where none, for the repetition penalty.
        rows_per_slot: 2 with classifier-free guidance, else 1.
        initial_S: The column of a stream that has not begun, on the device: making it in a step
            would be a copy that waits.
    """

    temporal: TransformerState
    depth: TransformerState | None
    condition_RD: Tensor | None
    recent_BW: Tensor
    rows_per_slot: int
    initial_S: Tensor


class Moshi(nn.Module):
    """The language model on PyTorch. Implements :class:`moshi_pipe.models.protocols.SpeechLM`.

    Args:
        lm: Every number of the model.
        numerics: ``reference`` keeps the reference's form of every operation, so that logits are
            bit-identical to it; ``fast`` may reorder sums.
        kv_dtype: Type of the temporal transformer's keys and values, int8 among them; None takes
            the weights'.

    Attributes:
        quant: How linear weights are stored, in one line; None where they are of the model's type.
    """

    def __init__(
        self, lm: LMSpec, *, numerics: str = "fast", kv_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if numerics not in ("fast", "reference"):
            raise ConfigError("unknown numerics", got=numerics, wanted="fast or reference")
        if lm.temporal.context is None:
            raise ConfigError("the language model needs a context", wanted="a number of frames")
        self.lm = lm
        self.kv_dtype = kv_dtype
        self.quant: str | None = None
        self.fast = numerics == "fast"
        self._apply_linear = apply_fast if self.fast else apply_plain
        dim = lm.temporal.dim
        self.emb = nn.ModuleList(
            make_embedding(lm, lm.cardinality + 1, dim, depth=False)
            for _ in range(lm.num_codebooks)
        )
        self.text_emb = make_embedding(lm, lm.text_cardinality + 1, dim, depth=False)
        self.transformer = Transformer(lm.temporal, prefix=self.fast)
        self.out_norm = make_norm(lm.temporal.norm, dim)
        self.text_linear = nn.Linear(dim, lm.text_head_size, bias=lm.bias_heads)
        self.extra_heads = nn.ModuleList(
            nn.Linear(dim, lm.extra_head_size, bias=False) for _ in range(lm.num_extra_heads)
        )
        self.condition_provider = Conditions(lm) if lm.conditioners else None
        self._build_depth()
        self.requires_grad_(False)
        self.eval()

    def _build_depth(self) -> None:
        lm = self.lm
        self.depformer: Transformer | None = None
        if lm.depth is None:
            return
        dim = lm.depth.dim
        num_inputs = lm.depth.num_weight_sets if lm.multi_linear else 1
        self.depformer_in = nn.ModuleList(
            nn.Linear(lm.temporal.dim, dim, bias=False) for _ in range(num_inputs)
        )
        self.depformer_emb = nn.ModuleList(
            make_embedding(lm, lm.cardinality + 1, dim, depth=True)
            for _ in range(lm.num_generated - 1)
        )
        self.depformer_text_emb = make_embedding(lm, lm.text_cardinality + 1, dim, depth=True)
        self.depformer = Transformer(lm.depth, prefix=False)
        self.depformer_norms = nn.ModuleList(
            make_norm(lm.depth_norm, dim) if lm.depth_norm else nn.Identity()
            for _ in range(lm.num_generated)
        )
        self.linears = nn.ModuleList(
            nn.Linear(dim, lm.cardinality, bias=lm.bias_heads) for _ in range(lm.num_generated)
        )

    @property
    def spec(self) -> LMSpec:
        """Every number of the model."""
        return self.lm

    @property
    def caps(self) -> Capabilities:
        """Where this model runs."""
        dtype = str(self.dtype).removeprefix("torch.")
        return Capabilities("torch", str(self.device), dtype, self.quant)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.text_emb.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.text_emb.weight.dtype

    def use_kernels(self) -> None:
        """Step with kernels of our own; see :meth:`Transformer.use_kernels`."""
        self.transformer.use_kernels()
        if self.depformer is not None:
            self.depformer.use_kernels()

    def new_state(self, num_slots: int, rows_per_slot: int = 1) -> MoshiState:
        """Make zeroed state; see :class:`~moshi_pipe.models.protocols.SpeechLM`."""
        rows = num_slots * rows_per_slot
        kv_dtype = self.kv_dtype or self.dtype
        context = self.lm.temporal.context or 0
        temporal = self.transformer.new_state(
            rows, capacity=context, dtype=kv_dtype, device=self.device
        )
        depth = None
        if self.depformer is not None:
            depth = self.depformer.new_state(
                rows, capacity=self.lm.num_generated, dtype=self.dtype, device=self.device
            )
        condition = None
        if self.condition_provider is not None:
            condition = torch.zeros(
                rows, self.lm.temporal.dim, dtype=self.dtype, device=self.device
            )
        recent = torch.full(
            (num_slots, _REMEMBERED_TEXT), UNGENERATED, dtype=torch.int64, device=self.device
        )
        initial_S = torch.tensor(self.lm.initial_codes, device=self.device)
        return MoshiState(temporal, depth, condition, recent, rows_per_slot, initial_S)

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
        state.temporal.reset(rows)
        if state.depth is not None:
            state.depth.reset(rows)
        state.recent_BW[list(slots)] = UNGENERATED
        if self.condition_provider is None or state.condition_RD is None:
            if conditions:
                raise ConfigError(
                    "the model takes no conditions", got=", ".join(conditions), wanted="none"
                )
            return
        given = dict(conditions or {})
        wanted: dict[str, str | None] = {k: v for k, v in given.items() if not k.endswith("!")}
        unwanted = {k: given.get(f"{k}!") for k in wanted}
        vectors_RD = self.condition_provider.vectors([wanted, unwanted][:per_slot])
        state.condition_RD[rows] = vectors_RD.to(self.dtype).repeat(len(slots), 1)

    def snapshot(self, state: MoshiState, slot: int) -> dict[str, Any]:
        """Copy a slot; see :class:`~moshi_pipe.models.protocols.Keeping`.

        The depth transformer's rings are not part of it: every frame rewrites them.
        """
        per_slot = state.rows_per_slot
        rows = range(slot * per_slot, (slot + 1) * per_slot)
        condition = state.condition_RD
        return {
            "temporal": [state.temporal.snapshot(row) for row in rows],
            "conditions": []
            if condition is None
            else [condition[row].to("cpu", copy=True) for row in rows],
            "recent": state.recent_BW[slot].to("cpu", copy=True),
        }

    def restore(self, state: MoshiState, slot: int, snapshot: Mapping[str, Any]) -> None:
        """Put a copy into a slot; see :class:`~moshi_pipe.models.protocols.Keeping`."""
        per_slot = state.rows_per_slot
        rows = range(slot * per_slot, (slot + 1) * per_slot)
        for row, held in zip(rows, snapshot["temporal"], strict=True):
            state.temporal.restore(row, held)
        if state.depth is not None:
            state.depth.reset(rows)
        if state.condition_RD is not None:
            for row, held in zip(rows, snapshot["conditions"], strict=True):
                state.condition_RD[row] = held.to(self.device)
        state.recent_BW[slot] = snapshot["recent"].to(self.device)

    @torch.inference_mode()
    def step(
        self, column_BS: Tensor, valid_B: Tensor, controls: Controls, state: MoshiState
    ) -> Step:
        """Advance the valid slots; see :class:`~moshi_pipe.models.protocols.SpeechLM`.

        ``extra`` holds ``text_logits_BV`` (float32, after guidance) and, where the model has them,
        ``extra_heads``: a list of probabilities ``[B, extra_head_size]``.
        """
        hidden_R1D, text_logits_BV = self.temporal_step(column_BS, valid_B, controls, state)
        batch = column_BS.shape[0]
        text_logits_BV = text_logits_BV.float()
        finite_B = torch.isfinite(text_logits_BV).all(dim=-1)
        extra: dict[str, Any] = {"text_logits_BV": text_logits_BV}
        text_B = self._sample_text(text_logits_BV, valid_B, controls, state)
        if self.extra_heads:
            own_B1D = hidden_R1D[:: state.rows_per_slot]
            extra["extra_heads"] = [
                F.softmax(head(own_B1D), dim=-1)[:, 0] for head in self.extra_heads
            ]
        if self.depformer is None:
            codes_BK = text_B.new_zeros(batch, 0)
        else:
            codes_BK, finite_codes_B = self.depth_step(text_B, hidden_R1D, controls, state)
            finite_B &= finite_codes_B
        return Step(text_B, codes_BK, finite_B, extra)

    def temporal_step(
        self, column_BS: Tensor, valid_B: Tensor, controls: Controls, state: MoshiState
    ) -> tuple[Tensor, Tensor]:
        """Run the temporal transformer.

        Returns:
            Its normalised output ``[R, 1, D]``, and text logits ``[B, V]`` in the model's type
            after guidance.
        """
        per_slot = state.rows_per_slot
        column_RS = torch.where(valid_B[:, None], column_BS, state.initial_S)
        if per_slot > 1:
            column_RS = column_RS.repeat_interleave(per_slot, dim=0)
            valid_B = valid_B.repeat_interleave(per_slot, dim=0)
        x = self._embed(column_RS)
        if state.condition_RD is not None:
            x = x + state.condition_RD[: x.shape[0], None]
        x = self.transformer.step(x, state.temporal, valid_B, apply=self._apply_linear)
        hidden_R1D = self.out_norm(x)
        logits_RV = self._head(self.text_linear, hidden_R1D)
        return hidden_R1D, _guide(logits_RV, controls.guidance_B, per_slot)

    def depth_step(
        self, text_B: Tensor, hidden_R1D: Tensor, controls: Controls, state: MoshiState
    ) -> tuple[Tensor, Tensor]:
        """Run the depth transformer over all codebooks, each code conditioning the next.

        Returns:
            Codes, int64 ``[B, K]``, and whether their logits were finite, ``[B]``.
        """
        depformer, depth = self.depformer, state.depth
        if depformer is None or depth is None:
            raise RuntimeError("a model without generated codebooks has no depth transformer")
        batch, per_slot = text_B.shape[0], state.rows_per_slot
        rows = hidden_R1D.shape[0]
        depth.position_B[:rows] = 0
        running_R = torch.ones(rows, dtype=torch.bool, device=text_B.device)
        finite_B = torch.ones_like(text_B, dtype=torch.bool)
        previous_B, codes = text_B, []
        for k in range(self.lm.num_generated):
            weight_set = self.lm.codebook_weight_set(k)
            linear = self.depformer_in[weight_set if self.lm.multi_linear else 0]
            table = self.depformer_text_emb if k == 0 else self.depformer_emb[k - 1]
            ids_R1 = previous_B.repeat_interleave(per_slot)[:, None]
            x = self._apply_linear(hidden_R1D, linear) + table(ids_R1)
            x = depformer.step(x, depth, running_R, weight_set=weight_set, apply=self._apply_linear)
            x = self.depformer_norms[k](x)
            logits_BV = _guide(
                self._head(self.linears[k], x), controls.guidance_B, per_slot
            ).float()
            finite_B = finite_B & torch.isfinite(logits_BV).all(dim=-1)
            noise_BKR = controls.noise_BKR
            previous_B = sample(
                logits_BV,
                controls.temperature_B[:batch],
                controls.top_k_B[:batch],
                None if noise_BKR is None else noise_BKR[:batch, 1 + k],
            )
            codes.append(previous_B)
        return torch.stack(codes, dim=1), finite_B

    def _embed(self, column_RS: Tensor) -> Tensor:
        """Sum the streams' embeddings: codebooks in order, text last, as bf16 sums depend on it."""
        x: Tensor | None = None
        for k, table in enumerate(self.emb):
            y = table(column_RS[:, 1 + k : 2 + k])
            x = y if x is None else x + y
        text: Tensor = self.text_emb(column_RS[:, :1])
        return text if x is None else x + text

    def _head(self, head: nn.Module, x_R1D: Tensor) -> Tensor:
        """Apply an output head to the single position, ``[R, V]``."""
        return self._apply_linear(x_R1D, head)[:, 0]

    def _sample_text(
        self, logits_BV: Tensor, valid_B: Tensor, controls: Controls, state: MoshiState
    ) -> Tensor:
        batch = logits_BV.shape[0]
        recent_BW = state.recent_BW[:batch]
        penalty_B = controls.repetition_penalty_B
        if penalty_B is not None:
            logits_BV = penalize_recent(logits_BV, recent_BW, penalty_B[:batch])
        noise_BKR = controls.noise_BKR
        text_B = sample(
            logits_BV,
            controls.text_temperature_B[:batch],
            controls.text_top_k_B[:batch],
            None if noise_BKR is None else noise_BKR[:batch, 0],
        )
        if controls.forced_text_B is not None:
            forced_B = controls.forced_text_B[:batch]
            text_B = torch.where(forced_B == UNGENERATED, text_B, forced_B)
        if penalty_B is not None:
            self._remember_text(text_B, valid_B, recent_BW)
        return text_B

    def _remember_text(self, text_B: Tensor, valid_B: Tensor, recent_BW: Tensor) -> None:
        spoken_B = (text_B != self.lm.text_padding_id) & (text_B != self.lm.text_end_padding_id)
        shifted_BW = torch.cat([recent_BW[:, 1:], text_B[:, None]], dim=1)
        recent_BW.copy_(torch.where((spoken_B & valid_B)[:, None], shifted_BW, recent_BW))


def _guide(logits_RV: Tensor, guidance_B: Tensor | None, rows_per_slot: int) -> Tensor:
    """Mix wanted and unwanted rows: ``unwanted + (wanted - unwanted) * weight``; weight 1 is off.

    Source: Ho and Salimans 2022, arXiv:2207.12598, in the reference's parametrisation.
    """
    if rows_per_slot == 1:
        return logits_RV
    wanted_BV, unwanted_BV = logits_RV.view(-1, rows_per_slot, logits_RV.shape[-1]).unbind(1)
    if guidance_B is None:
        return wanted_BV
    weight_B1 = guidance_B[: wanted_BV.shape[0], None]
    scaled_BV = ((wanted_BV - unwanted_BV).float() * weight_B1).to(logits_RV.dtype)
    mixed_BV = unwanted_BV + scaled_BV
    return torch.where(weight_B1 == 1, wanted_BV, mixed_BV)
