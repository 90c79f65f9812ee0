"""When somebody speaks: speech and silence in audio that comes in pieces.

A detector keeps one number per 10 or 32 ms, so that an hour takes little memory. What counts as a
stretch of speech is decided the same way for all of them: silence shorter than
``ActivityOptions.min_silence_s`` belongs to the speech around it.

Shape letters: N PCM sample, T step of a detector.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.metrics.spans import Span, joined, long_enough

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

DETECTORS: Final = ("auto", "energy", "silero")

_HOP_S: Final = 0.01
_SILENT_DB: Final = -120.0
_QUIETEST_DB: Final = -50.0
_ABOVE_FLOOR_DB: Final = 12.0
_BELOW_LOUD_DB: Final = 20.0

# Source: snakers4/silero-vad src/silero_vad/utils_vad.py: OnnxWrapper.__call__ (512 samples at
# 16 kHz), VADIterator.__call__ (speech ends below the threshold less 0.15).
_SILERO_RATE: Final = 16_000
_SILERO_WINDOW: Final = 512
_SILERO_RELEASE: Final = 0.15


@dataclass(frozen=True, slots=True)
class ActivityOptions:
    """What counts as speech.

    Attributes:
        min_silence_s: Shorter silence ends no stretch of speech; 0.2 s parts inter-pausal units in
            Nguyen et al. 2023 (arXiv:2203.16502).
        min_speech_s: Shorter sounds are none.
        pad_s: By how much each stretch is widened at both ends.
    """

    min_silence_s: float = 0.2
    min_speech_s: float = 0.09
    pad_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Activity:
    """What a detector heard.

    Attributes:
        active_T: Whether each step is speech.
        hop_s: Seconds per step.
        end_s: End of the audio, which the last step may go beyond.
    """

    active_T: npt.NDArray[np.bool_]
    hop_s: float
    end_s: float

    def spans(self, options: ActivityOptions | None = None) -> list[Span]:
        """Stretches of speech: short silences bridged, then short sounds left out, then widened."""
        options = options or ActivityOptions()
        bounded_T = np.concatenate([[False], self.active_T, [False]]).astype(np.int8)
        edges = np.flatnonzero(np.diff(bounded_T))
        raw = [
            (float(start * self.hop_s), min(float(end * self.hop_s), self.end_s))
            for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]
        tiny = self.hop_s * 1e-6  # so that silence of exactly the limit is not short
        speech = joined(raw, options.min_silence_s - tiny)
        speech = long_enough(speech, options.min_speech_s - tiny)
        if not options.pad_s:
            return speech
        pad = options.pad_s
        return joined((max(0.0, start - pad), min(self.end_s, end + pad)) for start, end in speech)


class Detector(Protocol):
    """Finds speech in one speaker's audio; any chunking finds the same."""

    def push(self, samples_N: npt.NDArray[np.float32]) -> None:
        """Take samples."""

    def finish(self) -> Activity:
        """What was heard in all that was pushed; called once."""


def choose_detector(name: str) -> str:
    """The detector that a name stands for: ``auto`` is silero where it is installed.

    Raises:
        ConfigError: No such name, or silero is asked for and not installed.
    """
    if name not in DETECTORS:
        raise ConfigError(
            "sink.metrics.vad has no such value", got=name, wanted=closest(name, DETECTORS)
        )
    there = find_spec("silero_vad") is not None
    if name == "auto":
        return "silero" if there else "energy"
    if name == "silero" and not there:
        raise ConfigError(
            "sink.metrics.vad=silero needs a package that is not installed",
            got="no silero-vad",
            fix="pip install 'moshi-pipe[eval]', or set sink.metrics.vad=energy",
        )
    return name


def make_detector(name: str, sample_rate: int, threshold: float = 0.5) -> Detector:
    """Make a detector.

    Args:
        name: As :func:`choose_detector` gives it.
        sample_rate: Hz of what is pushed.
        threshold: Silero's probability from which a window is speech.
    """
    if name == "silero":
        return SileroDetector(sample_rate, threshold)
    return EnergyDetector(sample_rate)


class EnergyDetector:
    """Speech is what is loud: for clean recordings and synthetic speech; needs no package.

    The level of each 10 ms is compared with 12 dB above the recording's noise floor (its 10th
    percentile), at most 20 dB below its loud parts (its 95th percentile), at least -50 dBFS.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._hop = max(1, round(_HOP_S * sample_rate))
        self._rest_N = np.zeros(0, np.float32)
        self._levels: list[npt.NDArray[np.float32]] = []
        self._num_samples = 0

    def push(self, samples_N: npt.NDArray[np.float32]) -> None:
        """Take samples."""
        self._num_samples += samples_N.size
        joined_N = np.concatenate([self._rest_N, samples_N])
        whole = joined_N.size // self._hop * self._hop
        self._rest_N = joined_N[whole:].copy()
        if whole:
            self._levels.append(_levels_db(joined_N[:whole].reshape(-1, self._hop)))

    def finish(self) -> Activity:
        """What was heard."""
        if self._rest_N.size:
            self._levels.append(_levels_db(self._rest_N[None]))
        levels_T = np.concatenate([np.zeros(0, np.float32), *self._levels])
        threshold = _QUIETEST_DB
        if levels_T.size:
            floor, loud = np.percentile(levels_T, [10, 95])
            threshold = max(threshold, min(floor + _ABOVE_FLOOR_DB, loud - _BELOW_LOUD_DB))
        hop_s = self._hop / self._sample_rate
        return Activity(levels_T > threshold, hop_s, self._num_samples / self._sample_rate)


class SileroDetector:
    """Speech is what silero-VAD takes for it; its model comes inside its package.

    Args:
        sample_rate: Hz of what is pushed.
        threshold: Probability from which a window is speech.
        load: Gives a model with state of its own.
    """

    def __init__(
        self,
        sample_rate: int,
        threshold: float = 0.5,
        load: Callable[[], Any] | None = None,
    ) -> None:
        self._threshold = threshold
        self._sample_rate = sample_rate
        self._model = (load or load_silero)()
        self._resampler: Any = None
        if sample_rate != _SILERO_RATE:
            import soxr

            self._resampler = soxr.ResampleStream(sample_rate, _SILERO_RATE, 1, dtype="float32")
        self._rest_N = np.zeros(0, np.float32)
        self._probabilities: list[float] = []
        self._num_samples = 0

    def push(self, samples_N: npt.NDArray[np.float32]) -> None:
        """Take samples."""
        self._num_samples += samples_N.size
        if self._resampler is not None:
            samples_N = self._resampler.resample_chunk(np.ascontiguousarray(samples_N))
        self._hear(samples_N)

    def finish(self) -> Activity:
        """What was heard."""
        if self._resampler is not None:
            self._hear(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        if self._rest_N.size:
            self._hear(np.zeros(_SILERO_WINDOW - self._rest_N.size, np.float32))
        active_T = _with_release(self._probabilities, self._threshold)
        hop_s = _SILERO_WINDOW / _SILERO_RATE
        return Activity(active_T, hop_s, self._num_samples / self._sample_rate)

    def _hear(self, samples_N: npt.NDArray[np.float32]) -> None:
        import torch

        joined_N = np.concatenate([self._rest_N, samples_N])
        whole = joined_N.size // _SILERO_WINDOW * _SILERO_WINDOW
        self._rest_N = joined_N[whole:].copy()
        for at in range(0, whole, _SILERO_WINDOW):
            window_N = torch.from_numpy(joined_N[at : at + _SILERO_WINDOW])
            self._probabilities.append(float(self._model(window_N, _SILERO_RATE).item()))


def _levels_db(blocks_TN: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Level of each block, dB below full scale."""
    power_T = np.mean(np.square(blocks_TN, dtype=np.float64), axis=1)
    floor = 10.0 ** (_SILENT_DB / 10)
    levels_T: npt.NDArray[np.float32] = (10 * np.log10(np.maximum(power_T, floor))).astype(
        np.float32
    )
    return levels_T


def _with_release(probabilities: list[float], threshold: float) -> npt.NDArray[np.bool_]:
    """Speech begins at the threshold and ends a little below it."""
    active_T = np.zeros(len(probabilities), dtype=bool)
    speaking = False
    for step, probability in enumerate(probabilities):
        speaking = probability >= (threshold - _SILERO_RELEASE if speaking else threshold)
        active_T[step] = speaking
    return active_T


def load_silero() -> Any:
    """Load silero's model from its package; a fresh one each time, since it holds the state.

    Importing silero_vad sets torch to one thread for the whole process. That is the engine's to
    choose, so it is put back.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        from silero_vad import load_silero_vad
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
    return load_silero_vad(onnx=True)
