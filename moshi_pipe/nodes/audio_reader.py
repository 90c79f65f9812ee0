"""Reading audio files of any kind in pieces.

libsndfile reads what it can; the rest goes to sphn (AAC, MKV and the like), by segments.

Shape letters: C channel, N sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

SUFFIXES: Final = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"),
    *(".au", ".caf", ".w64", ".rf64", ".aac", ".mka", ".mkv"),
)
"""Endings that are taken from a folder."""

_PIECE_S: Final = 0.5
_SPHN_PIECE_S: Final = 30.0  # its lossy decoders are not exact at seams
_WANTED: Final = "an audio file: wav, flac, mp3, ogg, opus, aiff, aac ..."


@dataclass(frozen=True, slots=True)
class AudioProperties:
    """What a file's header says.

    Attributes:
        sample_rate: Hz.
        channels: 1 or more.
        num_samples: Samples per channel, None when the header does not tell.
        decoder: ``soundfile`` or ``sphn``.
    """

    sample_rate: int
    channels: int
    num_samples: int | None
    decoder: str


def probe(path: Path) -> AudioProperties:
    """Read a file's header.

    Raises:
        InputError: The file is missing, empty, unreadable or no audio.
    """
    _check_file(path)
    import soundfile

    try:
        with path.open("rb") as file, soundfile.SoundFile(file) as sound:
            frames = sound.frames if 0 < sound.frames < 2**62 else None
            return AudioProperties(sound.samplerate, sound.channels, frames, "soundfile")
    except soundfile.LibsndfileError as error:
        return _probe_sphn(path, error)


def read(path: Path, properties: AudioProperties) -> Iterator[npt.NDArray[np.float32]]:
    """Yield a file's audio in order, float32 ``[C, N]`` pieces of half a second or so.

    Raises:
        InputError: Decoding fails, or nothing comes out.
    """
    pieces = _read_soundfile if properties.decoder == "soundfile" else _read_sphn
    num_samples = 0
    for piece_CN in pieces(path, properties):
        num_samples += piece_CN.shape[1]
        yield piece_CN
    if not num_samples:
        raise InputError(f"{path} holds no audio", got="0 samples", wanted="at least one")


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(
            f"cannot read {path}",
            got=error.strerror or str(error),
            fix="check the path and its permissions",
        ) from error
    if not head:
        raise InputError(f"cannot read {path}", got="an empty file", wanted=_WANTED)


def _read_soundfile(path: Path, properties: AudioProperties) -> Iterator[npt.NDArray[np.float32]]:
    import soundfile

    block = max(1, int(properties.sample_rate * _PIECE_S))
    try:
        with path.open("rb") as file, soundfile.SoundFile(file) as sound:
            while True:
                piece_NC = sound.read(block, dtype="float32", always_2d=True)
                if not len(piece_NC):
                    return
                yield np.ascontiguousarray(piece_NC.T)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{path} is damaged", got=str(error), fix="repair it, or convert it with ffmpeg"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error


def _probe_sphn(path: Path, first_error: Exception) -> AudioProperties:
    reader = _open_sphn(path, first_error)
    rate, duration_s = int(reader.sample_rate), reader.duration_sec
    num_samples = round(duration_s * rate) if duration_s else None
    return AudioProperties(rate, int(reader.channels), num_samples, "sphn")


def _open_sphn(path: Path, first_error: Exception | None) -> Any:
    """Open a file with sphn; explain with both decoders' words if neither can."""
    try:
        import sphn
    except ImportError:
        raise InputError(
            f"cannot read {path}",
            got=f"libsndfile: {first_error}",
            wanted=_WANTED,
            fix="convert it with ffmpeg; the package sphn, which reads more, is not installed",
        ) from None
    try:
        return sphn.FileReader(str(path))
    except ValueError as error:
        raise InputError(
            f"cannot read {path}",
            got=_describe(path) + f" (libsndfile: {first_error}; sphn: {_last_words(error)})",
            wanted=_WANTED,
            fix="convert it first, for instance: ffmpeg -i IN OUT.wav",
        ) from error


def _read_sphn(path: Path, properties: AudioProperties) -> Iterator[npt.NDArray[np.float32]]:
    reader = _open_sphn(path, None)
    start_s = 0.0
    while True:
        try:
            piece_CN = reader.decode(start_s, _SPHN_PIECE_S)
        except ValueError as error:
            if start_s:
                return  # past the end
            raise InputError(f"{path} is damaged", got=_last_words(error)) from error
        if not piece_CN.shape[1]:
            return
        yield np.ascontiguousarray(piece_CN, dtype=np.float32)
        if piece_CN.shape[1] < _SPHN_PIECE_S * properties.sample_rate:
            return
        start_s += _SPHN_PIECE_S


def _describe(path: Path) -> str:
    """What a file that is no audio looks like."""
    head = path.read_bytes()[:512] if path.stat().st_size < 2**20 else path.open("rb").read(512)
    try:
        head.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes that no decoder knows"
    return "a text file"


def _last_words(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1]
