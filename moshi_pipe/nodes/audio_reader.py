"""Reading audio files of any kind in pieces.

libsndfile reads what it can; the rest, such as AAC, goes to sphn by segments.

Shape letters: C channel, N sample.
"""

from __future__ import annotations

import codecs
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

SUFFIXES: Final = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"),
    *(".au", ".caf", ".w64", ".rf64", ".aac"),
)
"""Endings that are taken from a folder."""

_PIECE_S: Final = 0.5
_TOLERANCE_S: Final = 0.1  # lossy formats are padded, and their headers are not always exact
_UNKNOWN: Final = 2**62  # libsndfile's length of a stream that does not say
_UNKNOWN_BYTES: Final = 2**31 - 2**12
_MATROSKA: Final = b"\x1a\x45\xdf\xa3"
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
        with _open_soundfile(path) as sound:
            known = sound.frames < _UNKNOWN
            num_samples = _promised_samples(path, sound.frames) if known else None
            return AudioProperties(sound.samplerate, sound.channels, num_samples, "soundfile")
    except soundfile.LibsndfileError as error:
        return _probe_sphn(path, error)


def read(
    path: Path, properties: AudioProperties, warn: Callable[[str], None] | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield a file's audio in order, float32 ``[C, N]`` pieces of half a second or so.

    Of a file that is damaged or cut off, what decodes is given, up to the first fault.

    Args:
        path: File to read.
        properties: From :func:`probe`.
        warn: Told in a sentence what is wrong with a file that does not give all it should.

    Raises:
        InputError: Nothing can be decoded.
    """
    pieces = _read_soundfile if properties.decoder == "soundfile" else _read_sphn
    rate, num_samples, fault = properties.sample_rate, 0, None
    try:
        for piece_CN in pieces(path, properties):
            num_samples += piece_CN.shape[1]
            yield piece_CN
    except _DecodingStoppedError as error:
        fault = str(error)
    missing_s = ((properties.num_samples or 0) - num_samples) / rate
    if not num_samples:
        raise InputError(
            f"{path} holds no audio that can be decoded",
            got=fault or ("0 samples" if missing_s <= 0 else f"none of {missing_s:.1f} s"),
            wanted="at least one sample",
            fix="repair it, or record it again" if fault or missing_s > 0 else None,
        )
    if warn is not None and (fault or missing_s > _TOLERANCE_S):
        reason = f"is damaged ({fault})" if fault else "is cut off"
        promised = f" of {num_samples / rate + missing_s:.1f} s" if missing_s > 0 else ""
        warn(f"{path} {reason}: only the first {num_samples / rate:.1f} s{promised} were read")


def _promised_samples(path: Path, num_samples: int) -> int:
    """Samples that a RIFF WAV promises, of which ``num_samples`` are there.

    libsndfile silently takes a file that was cut off for a shorter one; this is what the header
    said. Sizes of 0 and from almost 2 GiB up are what programs write that do not know the length.
    """
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.read(8)[4:] != b"WAVE":
            return num_samples
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                there = path.stat().st_size - file.tell()
                cut = 0 < there < size < _UNKNOWN_BYTES
                return round(num_samples * size / there) if cut else num_samples
            file.seek(size + size % 2, 1)
    return num_samples


class _DecodingStoppedError(Exception):
    """A decoder met a fault; what came before is good."""


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


@contextmanager
def _open_soundfile(path: Path) -> Iterator[Any]:
    """Open by descriptor: libsndfile then judges a file by what it holds, not by its name."""
    import soundfile

    with (
        path.open("rb", buffering=0) as file,
        soundfile.SoundFile(file.fileno(), closefd=False) as sound,
    ):
        yield sound


def _read_soundfile(path: Path, properties: AudioProperties) -> Iterator[npt.NDArray[np.float32]]:
    import soundfile

    size = max(1, int(properties.sample_rate * _PIECE_S)), properties.channels
    try:
        with _open_soundfile(path) as sound:
            while True:
                buffer_NC = np.full(size, np.nan, dtype=np.float32)
                try:
                    piece_NC = sound.read(out=buffer_NC)
                except soundfile.LibsndfileError as error:
                    left_NC = np.isnan(buffer_NC[:, 0])  # what the decoder did not reach
                    good = int(left_NC.argmax()) if left_NC.any() else len(buffer_NC)
                    yield np.ascontiguousarray(buffer_NC[:good].T)
                    raise _DecodingStoppedError(_last_words(error)) from error
                if not len(piece_NC):
                    return
                yield np.ascontiguousarray(piece_NC.T)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror or str(error)) from error


def _probe_sphn(path: Path, first_error: Exception) -> AudioProperties:
    with path.open("rb") as file:
        if file.read(4) == _MATROSKA:  # sphn 0.2 takes its segments for 1 / 24 of their length
            raise InputError(
                f"cannot read {path}",
                got="a Matroska or WebM file",
                wanted=_WANTED,
                fix="take the audio out first, for instance: ffmpeg -i IN OUT.flac",
            )
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
            raise _DecodingStoppedError(_last_words(error)) from error
        if not piece_CN.shape[1]:
            return
        yield np.ascontiguousarray(piece_CN, dtype=np.float32)
        if piece_CN.shape[1] < _SPHN_PIECE_S * properties.sample_rate:
            return
        start_s += _SPHN_PIECE_S


def _describe(path: Path) -> str:
    """What a file that is no audio looks like."""
    with path.open("rb") as file:
        head = file.read(512)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return "bytes that no decoder knows"
    return "bytes that no decoder knows" if b"\0" in head else "a text file"


def _last_words(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1]
