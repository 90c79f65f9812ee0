"""Segments of speech in audio that comes in pieces.

Shape letters: N PCM sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.metrics.activity import load_silero
from moshi_pipe_vad.turns import Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from moshi_pipe_vad.options import VadOptions

RATE: Final = 16_000
"""Hz that the model hears."""

WINDOW: Final = 512
"""Samples that the model takes at a time at 16 kHz: 32 ms.

Source: snakers4/silero-vad src/silero_vad/utils_vad.py, OnnxWrapper.__call__.
"""


class Detector:
    """Finds segments in one speaker's audio; any chunking gives the same ones.

    Args:
        options: What counts as speech.
        sample_rate: Hz of what is pushed.
        load: Gives a model with state of its own; see
            :func:`~moshi_pipe.metrics.activity.load_silero`.
    """

    def __init__(
        self, options: VadOptions, sample_rate: int, load: Callable[[], Any] = load_silero
    ) -> None:
        model = load()
        from silero_vad import VADIterator

        self._iterator: Any = VADIterator(
            model, options.threshold, RATE, options.min_silence_ms, options.pad_ms
        )
        self._resampler: Any = None
        if sample_rate != RATE:
            import soxr

            self._resampler = soxr.ResampleStream(sample_rate, RATE, 1, dtype="float32")
        self._rest_N: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self._min_samples = options.min_speech_ms * RATE // 1000
        self._pad = options.pad_ms * RATE // 1000
        self._heard = 0  # samples at 16 kHz that the model was given
        self._start: int | None = None  # of the open segment
        self._last_end = 0

    @property
    def settled_s(self) -> float:
        """No further segment begins before this time."""
        settled = self._heard - self._pad if self._start is None else self._start
        return max(0, settled, self._last_end if self._start is None else 0) / RATE

    def push(self, samples_N: npt.NDArray[np.float32]) -> list[Segment]:
        """Take samples, float32 ``[N]``; give the segments that are now known to have ended."""
        if self._resampler is not None:
            samples_N = self._resampler.resample_chunk(samples_N)
        return self._hear(samples_N)

    def finish(self) -> list[Segment]:
        """Give the segments that are left; one that is open ends with the audio."""
        segments: list[Segment] = []
        if self._resampler is not None:
            rest_N = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            segments += self._hear(rest_N)
        total = self._heard + self._rest_N.size
        if self._rest_N.size:
            segments += self._hear(np.zeros(WINDOW - self._rest_N.size, np.float32))
        if self._start is not None:
            quiet_since = int(self._iterator.temp_end)
            end = quiet_since - WINDOW + self._pad if quiet_since else total
            segments += self._close(min(end, total))
        return [Segment(s.start_s, min(s.end_s, total / RATE)) for s in segments]

    def _hear(self, samples_N: npt.NDArray[np.float32]) -> list[Segment]:
        import torch

        segments: list[Segment] = []
        joined_N = np.concatenate([self._rest_N, samples_N])
        whole = joined_N.size // WINDOW * WINDOW
        self._rest_N = joined_N[whole:]
        for at in range(0, whole, WINDOW):
            said = self._iterator(torch.from_numpy(joined_N[at : at + WINDOW])) or {}
            self._heard += WINDOW
            if "start" in said:
                self._start = max(said["start"], self._last_end)
            if "end" in said:
                segments += self._close(said["end"])
        return segments

    def _close(self, end: int) -> list[Segment]:
        start, self._start = self._start, None
        if start is None or end - start < self._min_samples:
            return []
        self._last_end = end
        return [Segment(start / RATE, end / RATE)]
