"""Mimi on MLX: 24 kHz audio to 12.5 columns of codes a second, and back; float32.

Shape letters: B slot, C audio channel, N PCM sample, T latent position, K codebook, D latent
width, Q width of a codebook entry, V entries.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/{loaders,compression}.py,
moshi/moshi/quantization/{core_vq,vq}.py; Défossez et al. 2024, "Moshi: a speech-text foundation
model for real-time dialogue", section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import mlx.core as mx
import numpy as np

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.protocols import Capabilities
from moshi_pipe_mlx.conv import (
    CausalConv,
    CausalConvTranspose,
    Memory,
    make_decoder,
    make_encoder,
)
from moshi_pipe_mlx.matrix import Dense, Weights
from moshi_pipe_mlx.place import to_mx, to_torch
from moshi_pipe_mlx.stack import Stack, StackState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from moshi_pipe.models.spec import CodecSpec, MimiSpec
    from moshi_pipe_mlx.place import Place

_MIN_USAGE: Final = 1e-5


@dataclass(slots=True)
class MimiState:
    """What one direction of the codec remembers; slot axis first in every tensor.

    Attributes:
        convs: Left contexts or overlaps of SEANet's layers.
        transformer: Rings and positions.
        resample: Left context of the down-sampling or overlap of the up-sampling.
        fresh_B: Slots that have not seen a frame.
    """

    convs: list[Memory]
    transformer: StackState
    resample: Memory
    fresh_B: npt.NDArray[np.bool_]

    @property
    def arrays(self) -> list[mx.array]:
        """Everything that MLX holds."""
        return [*(memory.array for memory in self._memories), *self.transformer.arrays]

    def reset(self, slots: Sequence[int]) -> None:
        """Zero slots."""
        for memory in self._memories:
            for slot in slots:
                memory.array[slot] = 0
        self.transformer.reset(slots)
        self.fresh_B[list(slots)] = True

    @property
    def _memories(self) -> list[Memory]:
        return [*self.convs, self.resample]


class Mimi:
    """The codec on MLX. Implements :class:`moshi_pipe.models.protocols.Codec`.

    Args:
        mimi: Hyperparameters.
        tensors: Loaded, under their in-memory names.
        place: Device; the type is float32 whatever it says.
    """

    def __init__(self, mimi: MimiSpec, tensors: Mapping[str, mx.array], place: Place) -> None:
        if mimi.transformer.dim != mimi.dimension or mimi.stride < 2:
            raise CheckpointError(
                "backend mlx has no form for this codec",
                got=f"transformer width {mimi.transformer.dim}, stride {mimi.stride}",
                wanted=f"width {mimi.dimension}, stride 2 or more",
                fix="set codec_backend=torch",
            )
        self.mimi = mimi
        self.place = replace(place, dtype=mx.float32, kv_dtype=mx.float32)
        with self.place.enter():
            weights = _stack_weights(tensors, in_major=self.place.in_major)
            self._encoder = make_encoder(tensors, mimi)
            self._encoder_stack = Stack(
                mimi.transformer, weights, "encoder_transformer.transformer"
            )
            self._down = CausalConv(
                tensors, "downsample.conv.conv.conv", stride=mimi.stride, replicate=True
            )
            self._first = _Quantizer(tensors, "quantizer.rvq_first", 1)
            self._rest = _Quantizer(tensors, "quantizer.rvq_rest", mimi.num_codebooks - 1)
            self._up = CausalConvTranspose(
                tensors, "upsample.convtr.convtr.convtr", channel_wise=True
            )
            self._decoder_stack = Stack(
                mimi.transformer, weights, "decoder_transformer.transformer"
            )
            self._decoder = make_decoder(tensors, mimi)

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes that the graph needs to know."""
        return self.mimi.codec

    @property
    def caps(self) -> Capabilities:
        """Where the engine exchanges tensors with it, and its weights' type."""
        return Capabilities("mlx", "cpu", "float32")

    def new_encoder_state(self, num_slots: int) -> MimiState:
        """Make zeroed encoder state."""
        with self.place.enter():
            convs, down = self._encoder.new_state(num_slots), self._down.new_state(num_slots)
            return self._new_state(convs, self._encoder_stack, down, num_slots)

    def new_decoder_state(self, num_slots: int) -> MimiState:
        """Make zeroed decoder state."""
        with self.place.enter():
            convs, up = self._decoder.new_state(num_slots), self._up.new_state(num_slots)
            return self._new_state(convs, self._decoder_stack, up, num_slots)

    def encode(self, pcm_BCN: Tensor, valid_B: Tensor, state: MimiState) -> Tensor:
        """Encode one frame per slot; see :class:`~moshi_pipe.models.protocols.Codec`."""
        wanted = (self.mimi.channels, self.mimi.frame_size)
        if tuple(pcm_BCN.shape[1:]) != wanted:
            raise ValueError(
                f"pcm must be [B, {wanted[0]}, {wanted[1]}], got {list(pcm_BCN.shape)}"
            )
        valid = valid_B.numpy()
        with self.place.enter():
            keep = _keep(valid)
            x = to_mx(pcm_BCN.float()).swapaxes(1, 2)
            if keep is not None:
                x = mx.where(keep, x, 0.0)  # what an idle slot holds may be anything
            codes_BK = self._codes(self._latent(x, valid, keep, state))
            mx.eval(codes_BK, state.arrays)
            state.fresh_B[: len(valid)] &= ~valid
            return to_torch(codes_BK)

    def decode(self, codes_BK: Tensor, valid_B: Tensor, state: MimiState) -> Tensor:
        """Decode one frame per slot; see :class:`~moshi_pipe.models.protocols.Codec`.

        Raises:
            ValueError: A code that no codebook has: MLX would read past the table.
        """
        valid = valid_B.numpy()
        codes = np.where(valid[:, None], codes_BK.numpy(), 0)
        self._check_codes(codes)
        with self.place.enter():
            keep = _keep(valid)
            ids_BK = mx.array(codes.astype(np.int32))
            latent_BD = self._first.decode(ids_BK[:, :1])
            if ids_BK.shape[1] > 1:
                latent_BD = latent_BD + self._rest.decode(ids_BK[:, 1:])
            x = self._up.step(latent_BD[:, None], state.resample, keep)
            x = self._decoder_stack.step(x, state.transformer, valid)
            audio_BCN = self._decoder.step(x, state.convs, keep).swapaxes(1, 2)
            mx.eval(audio_BCN, state.arrays)
            return to_torch(audio_BCN)

    def reset(self, state: MimiState, slots: Sequence[int]) -> None:
        """Zero the named slots."""
        if not slots:
            return
        with self.place.enter():
            state.reset(slots)
            mx.eval(state.arrays)

    def _latent(
        self,
        x_BNC: mx.array,
        valid_B: npt.NDArray[np.bool_],
        keep_B11: mx.array | None,
        state: MimiState,
    ) -> mx.array:
        """Latent before quantization, ``[B, D]``."""
        x = self._encoder.step(x_BNC, state.convs, keep_B11)
        x = self._encoder_stack.step(x, state.transformer, valid_B)
        fresh = state.fresh_B[: len(valid_B)]
        fresh_B11 = mx.array(fresh)[:, None, None] if fresh.any() else None
        return self._down.step(x, state.resample, keep_B11, fresh_B11)[:, 0]

    def _codes(self, latent_BD: mx.array) -> mx.array:
        codes = self._first.encode(latent_BD, 1)
        if self.mimi.num_active > 1:
            codes += self._rest.encode(latent_BD, self.mimi.num_active - 1)
        return mx.stack(codes, axis=1)

    def _check_codes(self, codes_BK: npt.NDArray[np.int64]) -> None:
        wrong = (codes_BK < 0) | (codes_BK >= self.mimi.cardinality)
        if codes_BK.shape[1] == 0 or codes_BK.shape[1] > self.mimi.num_codebooks:
            raise ValueError(
                f"codes must be [B, 1 to {self.mimi.num_codebooks}], got {list(codes_BK.shape)}"
            )
        if wrong.any():
            slot, codebook = np.argwhere(wrong)[0]
            raise ValueError(
                f"codebook {codebook} of slot {slot} has no code {codes_BK[slot, codebook]}; "
                f"legal are 0 to {self.mimi.cardinality - 1}"
            )

    def _new_state(
        self, convs: list[Memory], stack: Stack, resample: Memory, num_slots: int
    ) -> MimiState:
        capacity = max(self.mimi.transformer.context or 0, self.mimi.stride)
        transformer = stack.new_state(num_slots, capacity, self.place)
        state = MimiState(convs, transformer, resample, np.ones(num_slots, dtype=np.bool_))
        mx.eval(state.arrays)
        return state


class _Quantizer:
    """A chain of codebooks, each quantizing what the ones before it left."""

    def __init__(self, tensors: Mapping[str, mx.array], name: str, num_codebooks: int) -> None:
        self._in_DQ = tensors[f"{name}.input_proj.weight"][..., 0].T
        self._out_QD = tensors[f"{name}.output_proj.weight"][..., 0].T
        self._centroids: list[mx.array] = []
        self._half_norms: list[mx.array] = []
        for layer in range(num_codebooks):
            codebook = f"{name}.vq.layers.{layer}._codebook"
            usage_V = mx.maximum(tensors[f"{codebook}.cluster_usage"], _MIN_USAGE)
            centroids_VQ = tensors[f"{codebook}.embedding_sum"] / usage_V[:, None]
            self._centroids.append(centroids_VQ)
            self._half_norms.append(mx.square(centroids_VQ).sum(-1) / 2)
        mx.eval(self._in_DQ, self._out_QD, self._centroids, self._half_norms)

    def encode(self, latent_BD: mx.array, num_codebooks: int) -> list[mx.array]:
        """Nearest centroid per codebook, ``[B]`` each; ties go to the lowest index."""
        residual_BQ = latent_BD @ self._in_DQ
        codes = []
        tables = list(zip(self._centroids, self._half_norms, strict=True))
        for centroids_VQ, half_norm_V in tables[:num_codebooks]:
            # |x - e|^2 / 2 without the |x|^2 that all candidates share
            distance_BV = half_norm_V - residual_BQ @ centroids_VQ.T
            code_B = mx.argmin(distance_BV, axis=-1)
            residual_BQ = residual_BQ - centroids_VQ[code_B]
            codes.append(code_B)
        return codes

    def decode(self, codes_BK: mx.array) -> mx.array:
        """Sum the centroids and project them, ``[B, D]``."""
        total_BQ = self._centroids[0][codes_BK[:, 0]]
        for k in range(1, codes_BK.shape[1]):
            total_BQ = total_BQ + self._centroids[k][codes_BK[:, k]]
        return total_BQ @ self._out_QD


def _stack_weights(tensors: Mapping[str, mx.array], *, in_major: bool) -> Weights:
    """The transformers' weights, in the form that :class:`Stack` takes."""
    weights = Weights()
    for name, tensor in tensors.items():
        if "_transformer." not in name:
            continue
        if tensor.ndim == 2:
            matrix = mx.contiguous(tensor.T) if in_major else tensor
            mx.eval(matrix)
            weights.matrices[name] = Dense(matrix, in_major)
        else:
            weights.vectors[name] = tensor
    return weights


def _keep(valid_B: npt.NDArray[np.bool_]) -> mx.array | None:
    """``[B, 1, 1]`` mask of the slots that advance; None when all do."""
    return None if valid_B.all() else mx.array(valid_B)[:, None, None]
