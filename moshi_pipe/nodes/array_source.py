"""Sources without files: arrays given in Python, and silence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.errors import ConfigError, InputError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.units import seconds_to_samples

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import numpy.typing as npt

    from moshi_pipe.nodes.options import SilenceSourceOptions

_PIECE = 24_000
_MOST_CHANNELS = 64  # more are samples, in an array that lies the other way


class ArrayInput(SessionInput):
    """Audio that is in memory.

    Args:
        name: The session's id.
        pcm: Samples in [-1, 1], ``[N]`` or ``[C, N]``, any float type.
        sample_rate: Hz.
        seed: Of the session, None to derive one.

    Raises:
        InputError: The array is empty, of another shape or not of floats, or the rate is not
            positive.
    """

    def __init__(
        self,
        name: str,
        pcm: npt.ArrayLike,
        sample_rate: int,
        *,
        index: int = 0,
        seed: int | None = None,
    ) -> None:
        given = np.asarray(pcm)
        pcm_CN = given[None] if given.ndim == 1 else given
        if pcm_CN.ndim != 2 or not pcm_CN.size or pcm_CN.dtype.kind != "f":
            raise InputError(
                f"the audio of session {name} cannot be used",
                got=f"an array {list(given.shape)} of {given.dtype}",
                wanted="floats in [-1, 1], [samples] or [channels, samples], at least one sample",
            )
        if pcm_CN.shape[0] > _MOST_CHANNELS:
            raise InputError(
                f"the audio of session {name} cannot be used",
                got=f"{pcm_CN.shape[0]} channels of {pcm_CN.shape[1]} samples",
                wanted=f"[channels, samples], {_MOST_CHANNELS} channels at most",
                fix="transpose it",
            )
        if sample_rate <= 0:
            raise InputError(
                f"the audio of session {name} has no sample rate",
                got=str(sample_rate),
                wanted="Hz, above 0",
            )
        self.id = name
        self.meta: Mapping[str, Any] = {"stem": name, "index": index}
        self.sample_rate = sample_rate
        self.num_samples = pcm_CN.shape[1]
        self.seed = seed
        self._pcm_CN: npt.NDArray[np.float32] = pcm_CN.astype(np.float32, copy=False)

    async def chunks(self) -> AsyncIterator[npt.NDArray[np.float32]]:
        """Yield pieces of a second or so."""
        for start in range(0, self._pcm_CN.shape[1], _PIECE):
            yield self._pcm_CN[:, start : start + _PIECE]


class ArraySource(Source):
    """One session per array.

    Args:
        arrays: Samples by session id, ``[N]`` or ``[C, N]``.
        sample_rate: Hz of all of them.
    """

    def __init__(self, arrays: Mapping[str, npt.ArrayLike], sample_rate: int) -> None:
        self._inputs = [
            ArrayInput(name, pcm, sample_rate, index=i)
            for i, (name, pcm) in enumerate(arrays.items())
        ]

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield the arrays in order."""
        for item in self._inputs:
            yield item

    def num_sessions(self) -> int:
        """Arrays that were given."""
        return len(self._inputs)


class SilenceSource(Source):
    """Sessions in which nobody says anything: what a model does when left alone, and for tests.

    Raises:
        ConfigError: A number is not positive.
    """

    def __init__(self, options: SilenceSourceOptions) -> None:
        for name in ("duration_s", "count", "sample_rate"):
            if not 0 < getattr(options, name) < math.inf:
                raise ConfigError(
                    f"source.{name} must be above zero", got=str(getattr(options, name))
                )
        self.options = options

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield them."""
        for index in range(self.options.count):
            yield _Silence(self.options, index)

    def num_sessions(self) -> int:
        """As configured."""
        return self.options.count


class _Silence(SessionInput):
    def __init__(self, options: SilenceSourceOptions, index: int) -> None:
        self.id = f"silence-{index}"
        self.meta: Mapping[str, Any] = {"stem": self.id, "index": index}
        self.sample_rate = options.sample_rate
        self.num_samples = seconds_to_samples(options.duration_s, options.sample_rate)

    async def chunks(self) -> AsyncIterator[npt.NDArray[np.float32]]:
        left = self.num_samples or 0
        while left > 0:
            size = min(left, _PIECE)
            left -= size
            yield np.zeros((1, size), dtype=np.float32)
