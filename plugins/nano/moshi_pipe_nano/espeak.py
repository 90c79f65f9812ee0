"""espeak-ng as a function: a sentence in a voice to samples, words and phonemes with their times.

The shared library is called directly, because the program writes no times for its own voices.

Source of the structures and constants: espeak-ng/espeak-ng@1.51 src/include/espeak-ng/speak_lib.h.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import ConfigError

if TYPE_CHECKING:
    import numpy.typing as npt

SAMPLE_RATE: Final = 24_000
_NATIVE_RATE: Final = 22_050
_UP, _DOWN = 160, 147  # 24 000 / 22 050
_RETRIEVAL_SYNCHRONOUS: Final = 2  # AUDIO_OUTPUT_SYNCHRONOUS
_PHONEME_EVENTS_IPA: Final = 1 | 2
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_WORD, _PHONEME = 1, 7  # espeak_EVENT_TYPE
_CHARS_UTF8: Final = 1
_POSITION_CHARACTER: Final = 1
_TAIL_S: Final = 0.03


@dataclass(frozen=True, slots=True)
class Span:
    """A word or a phoneme and when it is heard, in seconds from the first sample."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Speech:
    """One spoken sentence.

    Attributes:
        samples: float32 ``[N]`` at 24 kHz.
        words: As written, in order.
        phones: IPA symbols, in order.
    """

    samples: npt.NDArray[np.float32]
    words: tuple[Span, ...]
    phones: tuple[Span, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


class _Id(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Synthesizer:
    """The library, opened once per process; it is not for several threads.

    Raises:
        ConfigError: espeak-ng is not installed.
    """

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise ConfigError(
                "the training data needs espeak-ng's library",
                got=str(error),
                fix="install the package espeak-ng (apt-get install espeak-ng)",
            ) from error
        rate = self._library.espeak_Initialize(_RETRIEVAL_SYNCHRONOUS, 0, None, _PHONEME_EVENTS_IPA)
        if rate != _NATIVE_RATE:
            raise ConfigError(
                "espeak-ng cannot be started", got=f"rate {rate}", wanted=f"{_NATIVE_RATE}"
            )
        self._libc = ctypes.CDLL(None)
        self._chunks: list[bytes] = []
        self._events: list[tuple[int, int, int, str]] = []
        self._callback = _Callback(self._collect)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, *, voice: str, speed: int = 150, pitch: int = 50) -> Speech:
        """Speak a sentence of plain words.

        Args:
            text: Words of ASCII letters with single spaces.
            voice: Such as ``en-us+f2``.
            speed: Words a minute.
            pitch: 0 to 99.

        Raises:
            ConfigError: There is no such voice.
        """
        library = self._library
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ConfigError(
                "espeak-ng has no such voice", got=voice, wanted="one of `espeak-ng --voices`"
            )
        library.espeak_SetParameter(_RATE, speed, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        self._chunks.clear()
        self._events.clear()
        self._libc.srand(0)  # breath noise: a sentence depends on the arguments alone
        data = text.encode()
        library.espeak_Synth(
            data,
            ctypes.c_size_t(len(data) + 1),
            0,
            _POSITION_CHARACTER,
            0,
            _CHARS_UTF8,
            None,
            None,
        )
        library.espeak_Synchronize()
        native = np.frombuffer(b"".join(self._chunks), dtype="<i2").astype(np.float32) / np.float32(
            32_768
        )
        words, phones = _spans(text, self._events, len(native) / _NATIVE_RATE)
        samples = resample(native)
        end = min(len(samples), round((phones[-1].end_s + _TAIL_S) * SAMPLE_RATE))
        return Speech(samples[:end], words, phones)

    def _collect(self, samples: Any, num_samples: int, events: Any) -> int:
        if samples and num_samples:
            self._chunks.append(ctypes.string_at(samples, 2 * num_samples))
        i = 0
        while events[i].type:
            event = events[i]
            label = event.id.string.decode() if event.type == _PHONEME else ""
            self._events.append((event.type, event.text_position - 1, event.sample, label))
            i += 1
        return 0


@lru_cache(maxsize=1)
def synthesizer() -> Synthesizer:
    """The process's synthesizer, opened at the first call."""
    return Synthesizer()


def resample(native: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Bring 22.05 kHz to 24 kHz by its spectrum; what is beyond the end is silence."""
    blocks = -(-len(native) // _DOWN) + 2
    spectrum = np.fft.rfft(native, blocks * _DOWN)
    whole = np.fft.irfft(spectrum, blocks * _UP) * (_UP / _DOWN)
    return whole[: len(native) * _UP // _DOWN].astype(np.float32)


def _spans(
    text: str, events: list[tuple[int, int, int, str]], end_s: float
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Words and phonemes with ends: each lasts until the next begins; a nameless one is a pause."""
    sounds = [
        (sample / _NATIVE_RATE, label) for kind, _, sample, label in events if kind == _PHONEME
    ]
    starts = [start for start, _ in sounds[1:]] + [end_s]
    phones = tuple(
        Span(label, start, end) for (start, label), end in zip(sounds, starts, strict=True) if label
    )
    # A word may have several events (espeak splits some); the first one inside it counts.
    begun: list[tuple[float, str]] = []
    at = 0
    for word in text.split(" "):
        inside = [
            sample / _NATIVE_RATE
            for kind, position, sample, _ in events
            if kind == _WORD and at <= position < at + len(word)
        ]
        begun.append((inside[0] if inside else begun[-1][0] if begun else 0.0, word))
        at += len(word) + 1
    words = []
    for i, (start, word) in enumerate(begun):
        limit = begun[i + 1][0] if i + 1 < len(begun) else phones[-1].end_s + 1e-3
        spoken = [phone.end_s for phone in phones if start <= phone.start_s < limit]
        words.append(Span(word, start, max(spoken, default=limit)))
    return tuple(words), phones
