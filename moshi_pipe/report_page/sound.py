"""Audio for a page: both sides' samples, their loudness, and as something a browser plays.

Shape letters: C channel, N sample, T frame of 80 ms.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Final

import numpy as np

from moshi_pipe.errors import ConfigError, InputError, closest
from moshi_pipe.nodes.audio_reader import probe, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from moshi_pipe.report_page.collect import Sound

FRAME_S: Final = 0.08
SILENCE_DBFS: Final = -60.0
"""What counts as no sound, and the lower end of drawings."""

FORMATS: Final = {
    "opus": ("OGG", "OPUS", "audio/ogg; codecs=opus"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
}
"""Container, codec and type of what may be embedded."""

_OPUS_RATES: Final = (8000, 12000, 16000, 24000, 48000)
_MP3_RATES: Final = (16000, 22050, 24000, 32000, 44100, 48000)
_EMBEDDED_RATE: Final = 24000

_VOICE_DBFS: Final = -45.0  # quieter is no voice
_BELOW_LOUDEST_DB: Final = 30.0
_PAUSE_S: Final = 0.32  # shorter ones do not end a turn
_SHORTEST_S: Final = 0.16


def load(sound: Sound, longest_s: float) -> tuple[npt.NDArray[np.float32], int]:
    """One side's samples ``[N]`` and their rate in Hz.

    Args:
        sound: Where they are.
        longest_s: Seconds that are wanted at most.

    Raises:
        InputError: The file cannot be read.
    """
    properties = probe(sound.path)
    rate = properties.sample_rate
    begin = round(sound.start_s * rate)
    wanted_s = longest_s if sound.duration_s is None else min(sound.duration_s, longest_s)
    end = begin + round(wanted_s * rate)
    pieces, at = [], 0
    for piece_CN in read(sound.path, properties):
        row = piece_CN.mean(axis=0) if sound.channel is None else _channel(piece_CN, sound)
        pieces.append(row[max(0, begin - at) : max(0, end - at)])
        at += piece_CN.shape[1]
        if at >= end:
            break
    return np.concatenate(pieces).astype(np.float32), rate


def _channel(piece_CN: npt.NDArray[np.float32], sound: Sound) -> npt.NDArray[np.float32]:
    if sound.channel is None or not 0 <= sound.channel < len(piece_CN):
        raise InputError(f"{sound.path} has no channel {sound.channel}")
    row: npt.NDArray[np.float32] = piece_CN[sound.channel]
    return row


def loudness(samples_N: npt.NDArray[np.float32], rate: int) -> npt.NDArray[np.float64]:
    """Level of each 80 ms, RMS in dB of full scale, at least :data:`SILENCE_DBFS`."""
    size = max(1, round(FRAME_S * rate))
    padded = np.pad(samples_N.astype(np.float64), (0, -len(samples_N) % size))
    power_T = np.square(padded.reshape(-1, size)).mean(axis=1)
    floor = 10 ** (SILENCE_DBFS / 10)
    level_T: npt.NDArray[np.float64] = 10 * np.log10(np.maximum(power_T, floor))
    return level_T


def turns_by_loudness(level_T: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """When a side is loud enough to be a voice: begin and end in seconds.

    A frame counts from -45 dBFS on and at most 30 dB below the loudest. Pauses up to 0.32 s are
    bridged, then what lasts less than 0.16 s is left out. It is no detector of speech: music and
    noise count too.
    """
    if not len(level_T):
        return []
    loud_T = level_T >= max(_VOICE_DBFS, float(level_T.max()) - _BELOW_LOUDEST_DB)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loud_T.astype(np.int8), [0]))))
    turns: list[tuple[float, float]] = []
    for begin, end in edges.reshape(-1, 2) * FRAME_S:
        if turns and begin - turns[-1][1] <= _PAUSE_S + 1e-9:
            turns[-1] = (turns[-1][0], float(end))
        else:
            turns.append((float(begin), float(end)))
    return [(begin, end) for begin, end in turns if end - begin >= _SHORTEST_S - 1e-9]


def overlap_s(first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> float:
    """Seconds in which both speak."""
    return sum(end - begin for begin, end in overlaps(first, second))


def overlaps(
    first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]
) -> list[tuple[float, float]]:
    """When both speak."""
    pairs = ((max(a, c), min(b, d)) for a, b in first for c, d in second)
    return sorted((begin, end) for begin, end in pairs if begin < end)


def responses(
    user: Sequence[tuple[float, float]], model: Sequence[tuple[float, float]]
) -> list[float]:
    """Seconds from the end of each of the user's turns to the next begin of the model's.

    Only where the model begins before the user speaks again, and was silent at the end.
    """
    found = []
    for i, (_, end) in enumerate(user):
        again = user[i + 1][0] if i + 1 < len(user) else float("inf")
        speaking = any(begin <= end < stop for begin, stop in model)
        begins = [begin for begin, _ in model if end <= begin < again]
        if begins and not speaking:
            found.append(min(begins) - end)
    return found


def encode(samples_N: npt.NDArray[np.float32], rate: int, form: str) -> bytes:
    """Compress audio.

    Args:
        samples_N: The audio.
        rate: Hz.
        form: One of :data:`FORMATS`.

    Raises:
        ConfigError: There is no such form.
    """
    import soundfile

    if form not in FORMATS:
        raise ConfigError("audio has no such value", got=form, wanted=closest(form, FORMATS))
    rates = {"opus": _OPUS_RATES, "mp3": _MP3_RATES}.get(form, (rate,))
    if rate not in rates:
        import soxr

        samples_N = soxr.resample(samples_N, rate, _EMBEDDED_RATE)
        rate = _EMBEDDED_RATE
    container, codec, _ = FORMATS[form]
    file = io.BytesIO()
    samples_N = np.clip(samples_N, -1, 1)
    soundfile.write(file, samples_N, rate, format=container, subtype=codec)
    return file.getvalue()


def data_uri(data: bytes, form: str) -> str:
    """Audio as an address that holds it."""
    return f"data:{FORMATS[form][2].replace(' ', '')};base64,{base64.b64encode(data).decode()}"
