"""Payloads of audio messages, 24 kHz mono, on the client's side.

Shape letters: N PCM sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moshi_pipe.server import opus
from moshi_pipe.server.messages import AudioFormat
from moshi_pipe.server.ogg import MAX_PAGE_BYTES
from moshi_pipe.server.opus import SAMPLE_RATE, Decoder, Encoder, make_encoder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "FRAME_SIZE",
    "SAMPLE_RATE",
    "AudioError",
    "Decoder",
    "Encoder",
    "make_decoder",
    "make_encoder",
]

FRAME_SIZE: Final = 1_920


class AudioError(Exception):
    """The payload is not what it should be."""


def make_decoder(form: AudioFormat) -> Decoder:
    """Make a decoder of one stream; unlike a server's, it fails on what is of another format.

    Raises:
        BackendError: The Opus library is missing.
    """
    return _Opus() if form is AudioFormat.OGG_OPUS else _Pcm(form)


class _Opus(opus.OpusDecoder):
    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        samples_N = super().push(data)
        if not self.pages.num_pages and self.pages.num_skipped_bytes > MAX_PAGE_BYTES:
            raise AudioError("bytes that are no Ogg Opus stream")
        return samples_N


class _Pcm(opus.PcmDecoder):
    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        samples_N = super().push(data)
        if self.num_faults:
            raise AudioError("samples that are NaN or infinite")
        return samples_N
