"""Audio files that are valid while they grow: a kill loses at most the last second."""

from __future__ import annotations

import wave
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from moshi_pipe.errors import ConfigError, closest

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

FORMATS: Final = ("wav", "flac", "ogg")
_INT16_MAX: Final = 32_767


class AudioWriter(Protocol):
    """Takes samples in order."""

    def write(self, pcm_CN: npt.NDArray[np.float32]) -> None:
        """Append samples in [-1, 1] and bring the file on disk up to date.

        Raises:
            OSError: The disk is full, or gone.
        """

    def close(self) -> None:
        """Finish the file."""


def open_writer(path: Path, kind: str, *, sample_rate: int, channels: int) -> AudioWriter:
    """Create an audio file of 16 bits per sample (Vorbis for ogg).

    Args:
        path: File to create or replace.
        kind: One of :data:`FORMATS`.
        sample_rate: Hz.
        channels: 1 or more.

    Raises:
        ConfigError: Unknown kind.
        OSError: The file cannot be created.
    """
    if kind not in FORMATS:
        raise ConfigError(f"cannot write audio as '{kind}'", wanted=closest(kind, FORMATS))
    if kind == "wav":
        return _WavWriter(path, sample_rate, channels)
    return _EncodedWriter(path, kind, sample_rate, channels)


class _WavWriter:
    """The standard library's writer: it patches the header's length at every write."""

    def __init__(self, path: Path, sample_rate: int, channels: int) -> None:
        self._file = path.open("wb")
        self._wave = wave.open(self._file, "wb")
        self._wave.setnchannels(channels)
        self._wave.setsampwidth(2)
        self._wave.setframerate(sample_rate)
        self.write(np.zeros((channels, 0), dtype=np.float32))

    def write(self, pcm_CN: npt.NDArray[np.float32]) -> None:
        samples_NC = np.round(pcm_CN.T * _INT16_MAX).astype("<i2")
        self._wave.writeframes(samples_NC.tobytes())
        self._file.flush()

    def close(self) -> None:
        try:
            self._wave.close()
        finally:
            self._file.close()


class _EncodedWriter:
    """FLAC and Ogg Vorbis by libsndfile; both can be read up to the last page that was written."""

    def __init__(self, path: Path, kind: str, sample_rate: int, channels: int) -> None:
        import soundfile

        self._errors: type[Exception] = soundfile.LibsndfileError
        path.open("wb").close()  # libsndfile says only "System error" where open says why
        subtype = "PCM_16" if kind == "flac" else "VORBIS"
        self._file: Any = soundfile.SoundFile(
            path, "w", sample_rate, channels, subtype, format=kind.upper()
        )

    def write(self, pcm_CN: npt.NDArray[np.float32]) -> None:
        try:
            self._file.write(pcm_CN.T)
            self._file.flush()
        except (self._errors, AssertionError) as error:  # soundfile asserts that all was written
            raise OSError(f"the encoder stopped: {error or 'short write'}") from error

    def close(self) -> None:
        self._file.close()
