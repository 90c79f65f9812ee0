"""Moshi on candle, behind the language model protocol.

Tokens are sampled inside the extension, by the rule of the PyTorch backend from the same noise;
equal probabilities are in order of their tokens. Torch wakes its threads for each function of so
many logits.

Shape letters: B slot, S stream, K generated codebook, R noise draw, V vocabulary, D model width,
W remembered text token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from moshi_pipe.errors import ConfigError
from moshi_pipe.models.protocols import Capabilities, Controls, Step
from moshi_pipe.models.spec import UNGENERATED, LMSpec, TransformerSpec, gated_hidden
from moshi_pipe.nn.embedding import Conditions
from moshi_pipe.nn.sampling import penalize_recent
from moshi_pipe_rust.given import GivenTensors
from moshi_pipe_rust.native import failing_as

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

_REMEMBERED_TEXT = 64  # tokens that the repetition penalty looks back at, as with backend torch


@dataclass(slots=True)
class RustState:
    """What the model remembers.

    Attributes:
        handle: The extension's rings and positions.
        recent_BW: Recent text tokens without padding, -2 where none, for the repetition penalty.
        rows_per_slot: 2 with classifier-free guidance, else 1.
    """

    handle: Any
    recent_BW: Tensor
    rows_per_slot: int


class RustLM:
    """The language model. Implements :class:`moshi_pipe.models.protocols.SpeechLM`.

    Valid slots are stepped together, so that each weight is read once a frame; the others are left
    out. Tensors are exchanged on the CPU, whatever the device.

    Args:
        handle: The extension's model.
        lm: Every number of the model.
        conditions: Its conditions, or None.
        dtype: Type of the weights that are not quantized.
        kv_dtype: Type of stored keys and values.
        quantized: Whether linear weights are 8-bit blocks.
        origin: How weights are held, where ``dtype`` does not say it.
    """

    def __init__(
        self,
        handle: Any,
        lm: LMSpec,
        *,
        conditions: Conditions | None,
        dtype: str,
        kv_dtype: str,
        quantized: bool,
        origin: str | None = None,
    ) -> None:
        self._handle = handle
        self._lm = lm
        self._conditions = conditions
        self._dtype = dtype
        self._kv_dtype = kv_dtype
        self._quantized = quantized
        self._origin = origin

    @classmethod
    def open(
        cls,
        native: Any,
        lm: LMSpec,
        source: Path | GivenTensors,
        *,
        device: str,
        dtype: str,
        kv_dtype: str,
        quantize: bool,
        end_as_padding: bool = False,
        check_finite: bool = True,
        portable: bool = False,
    ) -> RustLM:
        """Load the weights.

        Args:
            native: The extension.
            lm: Every number of the model.
            source: Safetensors or GGUF, under the names of the PyTorch or of the candle release;
                or tensors of any other file.
            device: Candle's name of the device.
            dtype: Type of the weights that are not quantized.
            kv_dtype: Type of stored keys and values.
            quantize: Keep linear weights as 8-bit blocks; as the file has them, or made here.
            end_as_padding: Read the end of a stream as padding, as Hibiki needs.
            check_finite: Refuse NaN and infinity.
            portable: Use candle's operations on the CPU too, as other devices do.

        Raises:
            BackendError: The weights do not fit the config, or the device failed.
        """
        spec = _spec_json(lm, end_as_padding)
        with failing_as(f"backend rust cannot load the language model {source}"):
            if isinstance(source, GivenTensors):
                what = source.read, source.names, str(source)
                handle = native.Lm.given(*what, spec, device, dtype, quantize, check_finite)
                read = source.read
            else:
                handle = native.Lm(
                    str(source), spec, device, dtype, quantize, check_finite, portable=portable
                )
                read = partial(native.read_tensor, str(source))
            conditions = _load_conditions(read, lm) if lm.conditioners else None
        origin = source.origin if isinstance(source, GivenTensors) else None
        if handle.holds_bfloat16 and dtype != "bfloat16":
            origin = "weights stay bfloat16, as in the file"
        return cls(
            handle,
            lm,
            conditions=conditions,
            dtype=dtype,
            kv_dtype=kv_dtype,
            quantized=quantize,
            origin=origin,
        )

    @property
    def spec(self) -> LMSpec:
        """Every number of the model."""
        return self._lm

    @property
    def caps(self) -> Capabilities:
        """Where tensors are exchanged, and the weights' type."""
        dtype = "int8" if self._quantized else self._dtype
        return Capabilities(backend="rust", device="cpu", dtype=dtype, quant=self._origin)

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices and tables."""
        return int(self._handle.num_bytes)

    def new_state(self, num_slots: int, rows_per_slot: int = 1) -> RustState:
        """Make zeroed state; see :class:`~moshi_pipe.models.protocols.SpeechLM`."""
        with failing_as("backend rust cannot make state"):
            handle = self._handle.new_state(num_slots, rows_per_slot, self._kv_dtype)
        recent_BW = torch.full((num_slots, _REMEMBERED_TEXT), UNGENERATED)
        return RustState(handle, recent_BW, rows_per_slot)

    def reset(
        self, state: RustState, slots: Sequence[int], conditions: Mapping[str, str] | None = None
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
        vectors: list[list[float]] = []
        given = dict(conditions or {})
        if self._conditions is not None:
            wanted: dict[str, str | None] = {k: v for k, v in given.items() if not k.endswith("!")}
            unwanted = {k: given.get(f"{k}!") for k in wanted}
            rows = [wanted, unwanted][: state.rows_per_slot]
            vectors = self._conditions.vectors(rows).tolist()
        elif given:
            raise ConfigError("the model takes no conditions", got=", ".join(given), wanted="none")
        with failing_as("backend rust could not reset a slot"):
            for slot in slots:
                self._handle.reset(state.handle, slot, vectors)
        state.recent_BW[list(slots)] = UNGENERATED

    @torch.inference_mode()
    def step(
        self, column_BS: Tensor, valid_B: Tensor, controls: Controls, state: RustState
    ) -> Step:
        """Advance the valid slots; see :class:`~moshi_pipe.models.protocols.SpeechLM`.

        ``extra`` holds ``text_logits_BV`` (float32, after guidance) and, where the model has them,
        ``extra_heads``: a list of probabilities ``[B, extra_head_size]``.

        Raises:
            BackendError: An id is beyond its table, or the step failed.
        """
        batch = column_BS.shape[0]
        guidance = None
        if controls.guidance_B is not None and state.rows_per_slot > 1:
            guidance = controls.guidance_B[:batch].tolist()
        with failing_as("backend rust could not run the language model"):
            logits, heads, finite_text = self._handle.temporal(
                column_BS.contiguous().numpy(), valid_B.tolist(), guidance, state.handle
            )
        text_logits_BV = torch.from_numpy(logits)
        extra: dict[str, Any] = {"text_logits_BV": text_logits_BV}
        if self._lm.num_extra_heads:
            extra["extra_heads"] = list(torch.from_numpy(heads).unbind(1))
        finite_B = torch.tensor(finite_text, dtype=torch.bool)
        text_B = self._sample_text(text_logits_BV, valid_B, controls, state)
        if self._lm.depth is None:
            return Step(text_B, text_B.new_zeros(batch, 0), finite_B, extra)
        noise_BKR = controls.noise_BKR
        with failing_as("backend rust could not run the depth transformer"):
            codes, finite_codes = self._handle.depth(
                text_B.tolist(),
                controls.temperature_B[:batch].tolist(),
                controls.top_k_B[:batch].tolist(),
                None if noise_BKR is None else noise_BKR[:batch].contiguous().numpy(),
                guidance,
                state.handle,
            )
        finite_B = finite_B & torch.tensor(finite_codes, dtype=torch.bool)
        return Step(text_B, torch.from_numpy(codes), finite_B, extra)

    def _sample_text(
        self, logits_BV: Tensor, valid_B: Tensor, controls: Controls, state: RustState
    ) -> Tensor:
        batch = logits_BV.shape[0]
        recent_BW = state.recent_BW[:batch]
        penalty_B = controls.repetition_penalty_B
        if penalty_B is not None:
            logits_BV = penalize_recent(logits_BV, recent_BW, penalty_B[:batch])
        noise_BKR = controls.noise_BKR
        with failing_as("backend rust could not sample a text token"):
            tokens = self._handle.sample(
                logits_BV.numpy(),
                valid_B.tolist(),
                controls.text_temperature_B[:batch].tolist(),
                controls.text_top_k_B[:batch].tolist(),
                None if noise_BKR is None else noise_BKR[:batch, 0].contiguous().numpy(),
            )
        text_B = torch.tensor(tokens, dtype=torch.int64)
        if controls.forced_text_B is not None:
            forced_B = controls.forced_text_B[:batch]
            text_B = torch.where(forced_B == UNGENERATED, text_B, forced_B)
        if penalty_B is not None:
            padding = torch.tensor([self._lm.text_padding_id, self._lm.text_end_padding_id])
            spoken_B = valid_B & ~torch.isin(text_B, padding)
            shifted_BW = torch.cat([recent_BW[:, 1:], text_B[:, None]], dim=1)
            recent_BW.copy_(torch.where(spoken_B[:, None], shifted_BW, recent_BW))
        return text_B


def _load_conditions(read: Callable[[str], Any], lm: LMSpec) -> Conditions:
    """Read the conditions' weights: small, so they stay with PyTorch."""
    module = Conditions(lm)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = read(f"condition_provider.{name}")
            parameter.copy_(torch.from_numpy(values).view_as(parameter))
    return module.requires_grad_(False)


def _stack(spec: TransformerSpec) -> dict[str, Any]:
    return {
        "dim": spec.dim,
        "num_heads": spec.num_heads,
        "num_kv_heads": spec.num_kv_heads,
        "num_layers": spec.num_layers,
        "hidden": [gated_hidden(spec.dim, size) for size in spec.feedforward],
        "eps": 1e-8 if spec.norm.endswith("_f32") else 1e-5,
    }


def _spec_json(lm: LMSpec, end_as_padding: bool) -> str:
    depth = None
    if lm.depth is not None:
        depth = {
            "stack": _stack(lm.depth),
            "sets": [lm.codebook_weight_set(k) for k in range(lm.num_generated)],
            "multi_linear": lm.multi_linear,
            "low_rank": lm.low_rank,
        }
    return json.dumps(
        {
            "temporal": _stack(lm.temporal),
            "context": lm.temporal.context,
            "max_period": lm.temporal.max_period,
            "num_codebooks": lm.num_codebooks,
            "cardinality": lm.cardinality,
            "text_cardinality": lm.text_cardinality,
            "text_head_size": lm.text_head_size,
            "num_extra_heads": lm.num_extra_heads,
            "extra_head_size": lm.extra_head_size,
            "depth": depth,
            "end_as_padding": end_as_padding,
        }
    )
