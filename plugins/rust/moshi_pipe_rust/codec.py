"""Mimi in Rust, behind the codec protocol.

Shape letters: B slot, C audio channel, N PCM sample, K codebook.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.models.protocols import Capabilities
from moshi_pipe_rust.native import failing_as

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from moshi_pipe.models.spec import CodecSpec, MimiSpec


class RustCodec:
    """The codec, on the CPU. Implements :class:`moshi_pipe.models.protocols.Codec`.

    Args:
        handle: The extension's codec.
        mimi: Hyperparameters.
    """

    def __init__(self, handle: Any, mimi: MimiSpec) -> None:
        self._handle = handle
        self._mimi = mimi

    @classmethod
    def open(
        cls, native: Any, mimi: MimiSpec, path: Path, *, check_finite: bool = True
    ) -> RustCodec:
        """Load the weights, in float32.

        Raises:
            BackendError: They do not fit the config.
        """
        with failing_as(f"backend rust cannot load the codec {path}"):
            handle = native.Codec(str(path), _spec_json(mimi), check_finite)
        return cls(handle, mimi)

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes that the graph needs to know."""
        return self._mimi.codec

    @property
    def caps(self) -> Capabilities:
        """The CPU, whatever the device of a model."""
        return Capabilities(backend="rust", device="cpu", dtype="float32")

    def new_encoder_state(self, num_slots: int) -> Any:
        """Make state for ``num_slots`` streams."""
        return self._handle.new_encoder_state(num_slots)

    def new_decoder_state(self, num_slots: int) -> Any:
        """Make state for ``num_slots`` streams."""
        return self._handle.new_decoder_state(num_slots)

    def encode(self, pcm_BCN: Tensor, valid_B: Tensor, state: Any) -> Tensor:
        """Encode one frame per slot; see :class:`~moshi_pipe.models.protocols.Codec`.

        Raises:
            BackendError: The step failed.
        """
        pcm = np.ascontiguousarray(pcm_BCN.numpy(), dtype=np.float32)
        with failing_as("backend rust could not encode a frame"):
            return torch.from_numpy(self._handle.encode(pcm, valid_B.tolist(), state))

    def decode(self, codes_BK: Tensor, valid_B: Tensor, state: Any) -> Tensor:
        """Decode one frame per slot; see :class:`~moshi_pipe.models.protocols.Codec`.

        Frames may have any number of codes up to the number of codebooks.

        Raises:
            BackendError: A code is not in the codebook, or the step failed.
        """
        codes = np.ascontiguousarray(codes_BK.numpy(), dtype=np.int64)
        with failing_as("backend rust could not decode a frame"):
            return torch.from_numpy(self._handle.decode(codes, valid_B.tolist(), state))

    def reset(self, state: Any, slots: Sequence[int]) -> None:
        """Start the named slots anew."""
        with failing_as("backend rust could not reset a slot"):
            for slot in slots:
                state.reset(slot)


def _spec_json(mimi: MimiSpec) -> str:
    transformer = mimi.transformer
    names = [
        "frame_size",
        "channels",
        "dimension",
        "num_filters",
        "ratios",
        "kernel_size",
        "residual_kernel_size",
        "last_kernel_size",
        "num_residual_layers",
        "dilation_base",
        "compress",
        "quantizer_dim",
        "num_codebooks",
        "num_active",
        "cardinality",
    ]
    return json.dumps(
        {
            **{name: getattr(mimi, name) for name in names},
            "width": transformer.dim,
            "num_heads": transformer.num_heads,
            "num_layers": transformer.num_layers,
            "feedforward": transformer.feedforward[0],
            "context": transformer.context,
            "max_period": int(transformer.max_period),
        }
    )
