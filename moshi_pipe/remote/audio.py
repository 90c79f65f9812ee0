"""Payloads of audio messages, 24 kHz mono, on the client's side.

Shape letters: N PCM sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from moshi_pipe.errors import BackendError
from moshi_pipe.server.messages import AudioFormat

if TYPE_CHECKING:
    import numpy.typing as npt

SAMPLE_RATE: Final = 24_000
FRAME_SIZE: Final = 1_920
_S16: Final = 32_768


class Encoder(Protocol):
    """Samples to payload."""

    def push(self, pcm_N: npt.NDArray[np.float32]) -> bytes:
        """Take samples in [-1, 1]; give what can be sent, maybe nothing."""


class Decoder(Protocol):
    """Payload to samples."""

    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        """Take a payload, split anywhere; give the samples that are whole."""


class AudioError(Exception):
    """The payload is not what it should be."""


def make_encoder(form: AudioFormat) -> Encoder:
    """Make an encoder of one stream.

    Raises:
        BackendError: The Opus library is missing.
    """
    return _OpusEncoder() if form is AudioFormat.OGG_OPUS else _PcmEncoder(form)


def make_decoder(form: AudioFormat) -> Decoder:
    """Make a decoder of one stream.

    Raises:
        BackendError: The Opus library is missing.
    """
    return _OpusDecoder() if form is AudioFormat.OGG_OPUS else _PcmDecoder(form)


class _OpusEncoder:
    def __init__(self) -> None:
        self._stream = _sphn().OpusStreamWriter(SAMPLE_RATE)

    def push(self, pcm_N: npt.NDArray[np.float32]) -> bytes:
        return bytes(self._stream.append_pcm(np.ascontiguousarray(pcm_N, dtype=np.float32)))


class _OpusDecoder:
    def __init__(self) -> None:
        self._stream = _sphn().OpusStreamReader(SAMPLE_RATE)

    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        try:
            samples_N: npt.NDArray[np.float32] = self._stream.append_bytes(data)
        except ValueError as error:
            raise AudioError(str(error)) from error
        return samples_N


class _PcmEncoder:
    def __init__(self, form: AudioFormat) -> None:
        self._form = form

    def push(self, pcm_N: npt.NDArray[np.float32]) -> bytes:
        if self._form is AudioFormat.PCM_F32LE:
            return pcm_N.astype("<f4").tobytes()
        return np.clip(np.round(pcm_N * _S16), -_S16, _S16 - 1).astype("<i2").tobytes()


class _PcmDecoder:
    def __init__(self, form: AudioFormat) -> None:
        self._dtype = np.dtype("<f4" if form is AudioFormat.PCM_F32LE else "<i2")
        self._rest = b""

    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        data = self._rest + data
        whole = len(data) // self._dtype.itemsize * self._dtype.itemsize
        self._rest = data[whole:]
        samples_N = np.frombuffer(data[:whole], dtype=self._dtype).astype(np.float32)
        samples_N = samples_N if self._dtype.kind == "f" else samples_N / np.float32(_S16)
        if not np.isfinite(samples_N).all():
            raise AudioError("samples that are NaN or infinite")
        return samples_N


def _sphn() -> Any:
    try:
        import sphn
    except ImportError as error:
        raise BackendError(
            "Opus needs the package sphn",
            fix="pip install sphn; without it, to a moshi-pipe server: model.audio=pcm_s16le",
        ) from error
    return sphn
