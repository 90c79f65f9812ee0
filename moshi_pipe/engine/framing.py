"""From chunks as a source gives them to whole frames as the engine takes them.

Shape letters: C audio channel, N PCM sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moshi_pipe.engine.live_resampler import LiveResampler
from moshi_pipe.errors import InputError
from moshi_pipe.units import seconds_to_samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt


class _Resampler(Protocol):
    def push(self, samples_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...


class _WholeResampler:
    """soxr's stream: exact in length, and in no hurry."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        import soxr

        self._stream: Any = soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32", quality="HQ")

    def push(self, samples_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        resampled_N: npt.NDArray[np.float32] = self._stream.resample_chunk(samples_N)
        return resampled_N

    def finish(self) -> npt.NDArray[np.float32]:
        rest_N: npt.NDArray[np.float32] = self._stream.resample_chunk(
            np.zeros(0, dtype=np.float32), last=True
        )
        return rest_N


class Reframer:
    """Mixes channels down, resamples and cuts into frames; any chunking gives the same frames.

    Silence may be put before and after the audio. A last partial frame is filled with silence.

    Args:
        sample_rate_in: Hz of the chunks.
        sample_rate: Hz of the frames.
        frame_size: Samples per frame.
        lead_s: Silence before the audio, in seconds.
        tail_s: Silence after it, in seconds.
        live: Resample with little delay, and without the end of what is resampled; otherwise with
            the best quality, and exactly as long as the input.
        what: What errors call the audio.

    Attributes:
        padding: Samples that fill the last frame, once it was given.
    """

    def __init__(
        self,
        sample_rate_in: int,
        sample_rate: int,
        frame_size: int,
        *,
        lead_s: float = 0.0,
        tail_s: float = 0.0,
        live: bool = False,
        what: str = "the audio",
    ) -> None:
        self.padding = 0
        self._what = what
        self._resampler: _Resampler | None = None
        if sample_rate_in != sample_rate:
            kind = LiveResampler if live else _WholeResampler
            self._resampler = kind(sample_rate_in, sample_rate)
        self._frame_size = frame_size
        self._tail = seconds_to_samples(tail_s, sample_rate)
        self._rest = np.zeros(seconds_to_samples(lead_s, sample_rate), dtype=np.float32)

    def push(self, chunk_CN: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        """Take a chunk and give the frames that are now whole, float32 ``[1, frame_size]``.

        Raises:
            InputError: A sample is NaN or infinite.
        """
        if chunk_CN.shape[-1] == 0:
            return
        mono_N = chunk_CN[0] if chunk_CN.shape[0] == 1 else chunk_CN.mean(axis=0, dtype=np.float32)
        if not np.isfinite(mono_N).all():
            raise InputError(f"{self._what} has samples that are NaN or infinite")
        if self._resampler is not None:
            mono_N = self._resampler.push(np.ascontiguousarray(mono_N, dtype=np.float32))
        yield from self._cut(mono_N)

    def finish(self) -> Iterator[npt.NDArray[np.float32]]:
        """Give what is left, the tail included."""
        if isinstance(self._resampler, _WholeResampler):
            yield from self._cut(self._resampler.finish())
        yield from self._cut(np.zeros(self._tail, dtype=np.float32))
        if self._rest.size:
            self.padding = self._frame_size - self._rest.size
            yield from self._cut(np.zeros(self.padding, dtype=np.float32))

    def _cut(self, samples_N: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
        joined_N = np.concatenate([self._rest, samples_N]) if self._rest.size else samples_N
        whole = joined_N.size // self._frame_size * self._frame_size
        self._rest = joined_N[whole:].copy()  # the chunk is its giver's, who may fill it anew
        for start in range(0, whole, self._frame_size):
            yield joined_N[None, start : start + self._frame_size]
