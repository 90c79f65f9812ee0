"""Audio files that are valid while they grow: a kill loses at most the last second."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from moshi_pipe.errors import ConfigError, closest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy.typing as npt

FORMATS: Final = ("wav", "flac", "ogg")
INT_BITS: Final = 16
FLOAT_BITS: Final = 32
_INT16_MAX: Final = 32_767
_FLAC_LENGTH: Final = 21  # offset of the 36 bits of length, the low half of this byte first
_NOT_ALL: Final = "the encoder could not write all of it"


class AudioWriter(Protocol):
    """Takes samples in order."""

    def write(self, pcm_CN: npt.NDArray[np.float32]) -> None:
        """Append samples in [-1, 1]; the file is valid again when this returns.

        Raises:
            OSError: The disk is full, or gone.
        """

    def close(self) -> None:
        """Finish the file."""


def open_writer(
    path: Path, kind: str, *, sample_rate: int, channels: int, bits: int = 16
) -> AudioWriter:
    """Create an audio file.

    Args:
        path: File to create or replace.
        kind: One of :data:`FORMATS`.
        bits: Per sample: 16, or 32 for floating point in a WAV file. Not used for ogg, which is
            Vorbis.
        sample_rate: Hz.
        channels: 1 or more.

    Raises:
        ConfigError: Unknown kind, or bits that it does not have.
        OSError: The file cannot be created.
    """
    if kind not in FORMATS:
        raise ConfigError(f"cannot write audio as '{kind}'", wanted=closest(kind, FORMATS))
    if bits == FLOAT_BITS and kind == "wav":
        return _WavWriter(path, sample_rate, channels, bits)
    if bits != INT_BITS:
        raise ConfigError(
            f"cannot write {kind} with {bits} bits per sample", wanted="16, or 32 for wav"
        )
    return _WRITERS[kind](path, sample_rate, channels)


class _WavWriter:
    """WAV whose header is patched at every write.

    Beyond 4 GiB the header says that the length is not known, and programs read to the end.
    """

    def __init__(self, path: Path, sample_rate: int, channels: int, bits: int = INT_BITS) -> None:
        self._file = path.open("wb", buffering=0)
        self._is_float = bits == FLOAT_BITS
        self._block = bits // 8 * channels
        self._num_bytes = 0
        try:
            self._append(
                struct.pack(
                    "<4sI4s4sIHHIIHH4sI",
                    *(b"RIFF", 36, b"WAVE"),
                    *(
                        b"fmt ",
                        16,
                        3 if self._is_float else 1,
                        channels,
                        sample_rate,
                        sample_rate * self._block,
                    ),
                    *(self._block, bits, b"data", 0),
                )
            )
        except OSError:
            self._file.close()
            raise

    def write(self, pcm_CN: npt.NDArray[np.float32]) -> None:
        pcm_NC = pcm_CN.T if self._is_float else np.round(pcm_CN.T * _INT16_MAX)
        data = pcm_NC.astype("<f4" if self._is_float else "<i2").tobytes()
        start = self._file.tell()
        try:
            self._append(data)
        finally:  # a full disk takes a part of it
            self._num_bytes += (self._file.tell() - start) // self._block * self._block
            for offset, size in ((4, 36 + self._num_bytes), (40, self._num_bytes)):
                os.pwrite(self._file.fileno(), struct.pack("<I", min(size, 2**32 - 1)), offset)

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]


class _EncodedWriter:
    """Ogg Vorbis by libsndfile, which hands pages of a second or so to the system."""

    _format = ("OGG", "VORBIS")

    def __init__(self, path: Path, sample_rate: int, channels: int) -> None:
        import soundfile

        path.open("wb").close()  # libsndfile says only "System error" where open says why
        kind, subtype = self._format
        try:
            self._file: Any = soundfile.SoundFile(
                path, "w", sample_rate, channels, subtype, format=kind
            )
        except soundfile.LibsndfileError as error:
            raise OSError(f"the encoder cannot start: {error}") from error

    def write(self, pcm_CN: npt.NDArray[np.float32]) -> None:
        try:
            self._file.write(pcm_CN.T)
        except (RuntimeError, AssertionError) as error:  # soundfile asserts that all was written
            raise OSError(_NOT_ALL) from error

    def close(self) -> None:
        try:
            self._file.close()
        except RuntimeError as error:
            raise OSError(_NOT_ALL) from error


class _FlacWriter(_EncodedWriter):
    """FLAC whose header says after every write how many samples can be decoded; empty before.

    The encoder itself writes the length when it finishes; many programs cannot read a file before.
    Source: RFC 9639 section 8.2, the layout of STREAMINFO.
    """

    _format = ("FLAC", "PCM_16")

    def __init__(self, path: Path, sample_rate: int, channels: int) -> None:
        super().__init__(path, sample_rate, channels)
        self._header = path.open("r+b", buffering=0)
        self._num_samples = 0

    def write(self, pcm_CN: npt.NDArray[np.float32]) -> None:
        super().write(pcm_CN)
        self._num_samples += pcm_CN.shape[1]
        self._patch()

    def close(self) -> None:
        try:
            super().close()
        except OSError:
            self._patch()
            raise
        finally:
            self._header.close()

    def _patch(self) -> None:
        """Write down the whole blocks; the encoder keeps one sample back."""
        head = os.pread(self._header.fileno(), _FLAC_LENGTH + 1, 0)
        if len(head) <= _FLAC_LENGTH:
            return  # the encoder has not begun
        block = max(1, int.from_bytes(head[8:10], "big"))
        whole = max(0, self._num_samples - 1) // block * block
        length = bytearray(whole.to_bytes(5, "big"))
        length[0] |= head[_FLAC_LENGTH] & 0xF0  # belongs to the field before
        os.pwrite(self._header.fileno(), length, _FLAC_LENGTH)


_WRITERS: Final[Mapping[str, Callable[[Path, int, int], AudioWriter]]] = {
    "wav": _WavWriter,
    "flac": _FlacWriter,
    "ogg": _EncodedWriter,
}
