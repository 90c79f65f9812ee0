"""The seam between the engine and a backend: what a codec and a language model offer.

Shape letters: B slot, C audio channel, N PCM sample, K codebook, S stream, R noise draw,
V vocabulary.

Tensors are exchanged on the engine's device and are valid until the next call of the same object.
State is opaque to the engine: it is made by ``new_*_state`` and handed back at every step.
A backend is built, warmed up and stepped on one thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from moshi_pipe.models.spec import CodecSpec, LMSpec

State = Any
"""What a backend remembers between two steps; only the backend looks inside."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do here.

    Attributes:
        backend: Name users choose it by, such as ``torch``.
        device: Device it runs on, such as ``cpu`` or ``cuda:0``.
        dtype: Weights' type, such as ``float32``.
        quant: How linear weights are stored, in one line; None where they are of ``dtype``.
    """

    backend: str
    device: str
    dtype: str
    quant: str | None = None


@dataclass(slots=True)
class Controls:
    """Per-slot inputs of one language model step, besides the column of tokens.

    The engine owns one instance per LM and rewrites its rows when sessions join; a backend reads.

    Attributes:
        temperature_B: Temperature of the audio codes, float32; 0 is greedy.
        text_temperature_B: Temperature of the text token, float32; 0 is greedy.
        top_k_B: Candidates per audio code, int64; 0 means all.
        text_top_k_B: Candidates per text token, int64; 0 means all.
        noise_BKR: Exponential(1) draws, float32 ``[B, 1 + num_generated, R]``; row 0 is text's.
            R is at least the largest top-k in use (the vocabulary where top-k is 0).
            None when every slot is greedy.
        guidance_B: Classifier-free guidance weight, float32; None when no slot uses it.
        forced_text_B: Text token to use instead of sampling, int64; -2 samples. None: all sample.
        repetition_penalty_B: Divides (multiplies, if negative) logits of recent text tokens;
            float32, 1 is off. None: off everywhere.
    """

    temperature_B: Tensor
    text_temperature_B: Tensor
    top_k_B: Tensor
    text_top_k_B: Tensor
    noise_BKR: Tensor | None = None
    guidance_B: Tensor | None = None
    forced_text_B: Tensor | None = None
    repetition_penalty_B: Tensor | None = None


@dataclass(slots=True)
class Step:
    """What one language model step produced; valid until the next step.

    Attributes:
        text_B: Sampled text token, int64; garbage where the slot was not valid.
        codes_BK: Sampled audio codes, int64 ``[B, num_generated]``.
        finite_B: False where a slot's logits were not finite: that session must end.
        extra: Further outputs by name, such as ``text_logits_BV`` or ``extra_heads`` (a list of
            probabilities ``[B, extra_head_size]``).
    """

    text_B: Tensor
    codes_BK: Tensor
    finite_B: Tensor
    extra: dict[str, Any] = field(default_factory=dict)


class Quantizer(Protocol):
    """Turns linear layers of the PyTorch backend into smaller ones, one by one, while it loads."""

    @property
    def summary(self) -> str:
        """What became of the layers, in one line for the report."""

    def linear(self, name: str, weight_OD: Tensor, bias_O: Tensor | None) -> nn.Module:
        """Make the module that stands for ``x @ weight.T + bias``.

        Args:
            name: In-memory name of the weight.
            weight_OD: ``[O, D]`` of the file's type, on the CPU; overwritten after the call.
            bias_O: Or None.

        Returns:
            Takes ``[..., D]`` and gives ``[..., O]`` of the same type; on the model's device.
        """

    def adopt_int8(
        self, name: str, codes_OD: Tensor, absmax_O: Tensor, bias_O: Tensor | None
    ) -> nn.Module | None:
        """Take the int8 weights of a file as they are: ``weight = codes * absmax / 127``.

        Args:
            name: In-memory name of the weight.
            codes_OD: int8, on the CPU; overwritten after the call.
            absmax_O: Largest magnitude of each row, float32; likewise.
            bias_O: Or None.

        Returns:
            The module; None to be given the widened weight instead.
        """

    def adopt_affine(
        self,
        name: str,
        codes_OD: Tensor,
        scales_OG: Tensor,
        biases_OG: Tensor,
        bias_O: Tensor | None,
        *,
        bits: int,
    ) -> nn.Module | None:
        """Take the groups of an MLX file as they are: ``weight = codes * scales + biases``.

        Args:
            name: In-memory name of the weight.
            codes_OD: uint8, on the CPU.
            scales_OG: Of each group, in the file's float type.
            biases_OG: Likewise.
            bias_O: Or None.
            bits: Of a code.

        Returns:
            The module; None to be given the widened weight instead.
        """


@runtime_checkable
class Codec(Protocol):
    """Audio to codes and back, one frame per call. The two directions never share state."""

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes that the graph needs to know."""

    @property
    def caps(self) -> Capabilities:
        """Where it runs, and what it can do there."""

    def new_encoder_state(self, num_slots: int) -> State:
        """Make zeroed encoder state for ``num_slots`` streams."""

    def new_decoder_state(self, num_slots: int) -> State:
        """Make zeroed decoder state for ``num_slots`` streams."""

    def encode(self, pcm_BCN: Tensor, valid_B: Tensor, state: State) -> Tensor:
        """Encode one frame per slot.

        Args:
            pcm_BCN: Audio in [-1, 1], float32 ``[B, channels, frame_size]``; B may be fewer than
                the state has, and then the first B slots advance.
            valid_B: Which slots have a frame, bool. The others' state does not change.
            state: Updated in place.

        Returns:
            Codes, int64 ``[B, num_codebooks]``; meaningless where not valid.
        """

    def decode(self, codes_BK: Tensor, valid_B: Tensor, state: State) -> Tensor:
        """Decode one frame per slot.

        Args:
            codes_BK: int64 ``[B, K]``, ``1 <= K <=`` the codec's codebooks. Rows that are not valid
                may hold any number.
            valid_B: Which slots have a frame, bool.
            state: Updated in place.

        Returns:
            Audio, float32 ``[B, channels, frame_size]``, not clipped.
        """

    def reset(self, state: State, slots: Sequence[int]) -> None:
        """Zero the named slots of an encoder or decoder state."""


@runtime_checkable
class Keeping(Protocol):
    """What a codec or a language model offers besides, if it can keep sessions without a slot."""

    def snapshot(self, state: State, slot: int) -> Any:
        """Copy what is remembered of a slot to host memory.

        Args:
            state: Of an encoder, a decoder or a language model.
            slot: Which.

        Returns:
            Containers of tensors and arrays on the host; not changed by later steps.
        """

    def restore(self, state: State, slot: int, snapshot: Any) -> None:
        """Put a copy into a slot, whatever it held, to the last bit.

        Args:
            state: Updated in place; of the same model and kind as that of the copy, perhaps of
                another number of slots.
            slot: Any.
            snapshot: Left as it is.
        """


@runtime_checkable
class SpeechLM(Protocol):
    """One step of the language model on one already-delayed column of text and codes."""

    @property
    def spec(self) -> LMSpec:
        """Streams, delays, cardinalities, special ids."""

    @property
    def caps(self) -> Capabilities:
        """Where it runs, and what it can do there."""

    def new_state(self, num_slots: int, rows_per_slot: int = 1) -> State:
        """Make zeroed state.

        Args:
            num_slots: Sessions held at once.
            rows_per_slot: 2 to run classifier-free guidance, else 1.
        """

    def reset(
        self, state: State, slots: Sequence[int], conditions: Mapping[str, str] | None = None
    ) -> None:
        """Zero the named slots and set their conditions.

        Args:
            state: Updated in place.
            slots: Slots to clear.
            conditions: Value per declared condition; with guidance, ``name`` is the wanted and
                ``name!`` the unwanted value. None for a model without conditions.

        Raises:
            ConfigError: A declared condition has no value, or one that it does not know.
        """

    def step(self, column_BS: Tensor, valid_B: Tensor, controls: Controls, state: State) -> Step:
        """Advance the valid slots by one frame.

        Args:
            column_BS: Input ids after the delay line, int64 ``[B, 1 + num_codebooks]``: text, own
                codes, user codes; -1 mutes a stream.
            valid_B: Which slots advance, bool.
            controls: Sampling settings and noise; rows beyond B are ignored.
            state: Updated in place.

        Returns:
            The sampled token and codes of this step, not yet re-aligned.
        """
