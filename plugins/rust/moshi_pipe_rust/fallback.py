"""The codec on rustymimi, where the extension is not built.

Measured on rustymimi 0.4.1: ``reset()`` leaves the down-sampling's state behind, a stream ends with
an error at ``max_seq_len``, and decoding takes exactly the number of codes that the tokenizer was
made for. So every stream gets a tokenizer of its own, made ahead, with a limit of 3.3 hours. They
share no weights: each takes about 370 MB.

Once a stream is older than the attention's window, from frame 125 on, its results leave those of
PyTorch: over 160 frames of a random codec, 20 of the last 35 frames had another code, and decoded
audio differed by 1.3 % of its peak. The extension's codec stays equal.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from moshi_pipe.errors import BackendError
from moshi_pipe.models.protocols import Capabilities
from moshi_pipe.models.spec import MimiSpec
from moshi_pipe_rust.native import BUILD, failing_as

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from moshi_pipe.models.spec import CodecSpec

_MAX_POSITIONS: Final = 300_000  # at 25 Hz: 3.3 hours; the table of positions grows with it


@dataclass
class RustymimiState:
    """Streams of one direction.

    Attributes:
        num_codes: Codes per frame; a decoder's is known at its first frame.
        tokenizers: One per slot, None before its first frame.
        spare: The next one, made while others run.
    """

    num_codes: int
    tokenizers: list[Any]
    spare: Future[Any] | None = field(default=None, repr=False)


class RustymimiCodec:
    """The released codec. Implements :class:`moshi_pipe.models.protocols.Codec`.

    Args:
        make: Makes a tokenizer for a number of codes per frame.
        mimi: Hyperparameters.
    """

    def __init__(self, make: Callable[[int], Any], mimi: MimiSpec) -> None:
        self._make = make
        self._mimi = mimi
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="rustymimi")

    @classmethod
    def open(cls, mimi: MimiSpec, path: Path, missing: BackendError) -> RustymimiCodec:
        """Check that rustymimi is there and knows this codec.

        Raises:
            BackendError: It is not, or does not; with how to build the extension.
        """
        try:
            rustymimi = import_module("rustymimi")
        except ImportError as error:
            raise BackendError(
                "backend rust has neither its extension nor rustymimi here",
                got=missing.got,
                fix=f"{BUILD}; for the codec alone: pip install rustymimi",
            ) from error
        if mimi != replace(MimiSpec(), num_active=mimi.num_active):
            raise BackendError(
                "rustymimi knows only the released codec, and the extension is not built here",
                got="a codec of another shape",
                fix=BUILD,
            )

        def make(num_codes: int) -> Any:
            return rustymimi.Tokenizer(
                str(path), num_codebooks=num_codes, max_seq_len=_MAX_POSITIONS
            )

        return cls(make, mimi)

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes that the graph needs to know."""
        return self._mimi.codec

    @property
    def caps(self) -> Capabilities:
        """On the CPU, in float32."""
        return Capabilities(backend="rustymimi", device="cpu", dtype="float32")

    def new_encoder_state(self, num_slots: int) -> RustymimiState:
        """Make state for ``num_slots`` streams."""
        return self._prepared(RustymimiState(self._mimi.num_active, [None] * num_slots))

    def new_decoder_state(self, num_slots: int) -> RustymimiState:
        """Make state for ``num_slots`` streams."""
        return self._prepared(RustymimiState(self._mimi.num_active, [None] * num_slots))

    def encode(self, pcm_BCN: Tensor, valid_B: Tensor, state: RustymimiState) -> Tensor:
        """Encode one frame per slot; see :class:`~moshi_pipe.models.protocols.Codec`.

        Raises:
            BackendError: The step failed.
        """
        out = np.zeros((pcm_BCN.shape[0], self._mimi.num_active), dtype=np.int64)
        pcm = np.ascontiguousarray(pcm_BCN.numpy(), dtype=np.float32)
        for slot in _chosen(valid_B):
            with failing_as("rustymimi could not encode a frame"):
                codes_1KT = self._tokenizer(state, slot).encode_step(pcm[slot : slot + 1])
            out[slot] = codes_1KT[0, :, 0]
        return torch.from_numpy(out)

    def decode(self, codes_BK: Tensor, valid_B: Tensor, state: RustymimiState) -> Tensor:
        """Decode one frame per slot; see :class:`~moshi_pipe.models.protocols.Codec`.

        Raises:
            BackendError: A code is not in the codebook, the number of codes changed within a
                stream, or the step failed.
        """
        batch, num_codes = codes_BK.shape
        if num_codes != state.num_codes:
            if any(tokenizer is not None for tokenizer in state.tokenizers):
                raise BackendError(
                    "rustymimi decodes streams of one number of codes",
                    got=f"{num_codes} after {state.num_codes}",
                )
            state.num_codes, state.spare = num_codes, None
            self._spare(state)
        chosen = _chosen(valid_B)
        codes = codes_BK.numpy()
        if chosen and not 0 <= codes[chosen].min() <= codes[chosen].max() < self._mimi.cardinality:
            raise BackendError(
                "rustymimi was given a code that is not in the codebook",
                wanted=f"0 to {self._mimi.cardinality - 1}",
            )
        out = np.zeros((batch, self._mimi.channels, self._mimi.frame_size), dtype=np.float32)
        for slot in chosen:
            frame = np.ascontiguousarray(codes[slot][None, :, None], dtype=np.uint32)
            with failing_as("rustymimi could not decode a frame"):
                out[slot] = self._tokenizer(state, slot).decode_step(frame)[0]
        return torch.from_numpy(out)

    def reset(self, state: RustymimiState, slots: Sequence[int]) -> None:
        """Start the named slots anew."""
        for slot in slots:
            state.tokenizers[slot] = None

    def _prepared(self, state: RustymimiState) -> RustymimiState:
        self._spare(state)
        return state

    def _spare(self, state: RustymimiState) -> Future[Any]:
        """The next tokenizer, begun if it is not being made."""
        if state.spare is None:
            state.spare = self._maker.submit(self._make, state.num_codes)
        return state.spare

    def _tokenizer(self, state: RustymimiState, slot: int) -> Any:
        """The slot's own; at its first frame, the one that was made ahead."""
        if state.tokenizers[slot] is None:
            spare, state.spare = self._spare(state), None
            state.tokenizers[slot] = spare.result()
            self._spare(state)
        return state.tokenizers[slot]


def _chosen(valid_B: Tensor) -> list[int]:
    return [slot for slot, valid in enumerate(valid_B.tolist()) if valid]
