"""Source ``duplex``: microphone and speaker in one, so that the model does not hear itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.nodes.echo import MODES, PlayedAudio, make_filter
from moshi_pipe.nodes.microphone import MicInput, MicSource
from moshi_pipe.nodes.options import DuplexOptions, MicOptions, SpeakerOptions
from moshi_pipe.nodes.sound_stream import StreamOptions
from moshi_pipe.nodes.speaker import SpeakerSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy.typing as npt

    from moshi_pipe.graph.node import SessionInput

_BLOCK_MS = 10  # the canceller's


class DuplexSource(MicSource):
    """One session of a microphone, with the speaker as its own sink.

    Both are open at one rate, and what the speaker plays is taken out of what the microphone
    hears, as ``echo`` says.

    Raises:
        ConfigError: An option has no such value.
        BackendError: The echo canceller is not installed.
    """

    takes = ("audio",)

    def __init__(self, options: DuplexOptions, clock: Clock | None = None) -> None:
        super().__init__(MicOptions(duration_s=options.duration_s), clock)
        if options.echo not in MODES:
            raise ConfigError(
                "source.echo has no such value",
                got=options.echo,
                wanted=closest(options.echo, MODES),
            )
        if options.block_ms < _BLOCK_MS or options.block_ms % _BLOCK_MS:
            raise ConfigError(
                "source.block_ms has no such value",
                got=str(options.block_ms),
                wanted=f"a multiple of {_BLOCK_MS}",
            )
        self._duplex = options
        self._rate = options.sample_rate or 24_000
        self._filter = make_filter(options.echo, self._rate)
        self._played = PlayedAudio(self._rate)
        self._clock = clock or SystemClock()

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Open the microphone and give its session; the speaker is opened as a sink.

        Raises:
            BackendError: There is no such device, or it cannot be opened.
        """
        options = self._duplex
        stream = StreamOptions("input", options.input_device, self._rate, None, options.block_ms)
        self._input = MicInput(
            stream, self._clock, duration_s=options.duration_s, treat=self._clean
        )
        speaker = SpeakerOptions(
            device=options.output_device,
            sample_rate=self._rate,
            block_ms=options.block_ms,
            buffer_ms=options.buffer_ms,
            buffer_min_ms=options.buffer_min_ms,
            buffer_max_ms=options.buffer_max_ms,
        )
        self._input.sinks = [SpeakerSink(speaker, self._clock, self._played.put)]
        await self._input.open()
        yield self._input

    def _clean(self, heard_CN: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Mix down and take the echo out; whole tens of milliseconds, so the end stays as it is."""
        mono_N = heard_CN.mean(axis=0, dtype=np.float32)
        played_N = self._played.take(mono_N.size)
        whole = mono_N.size - mono_N.size % (self._rate // 1000 * _BLOCK_MS)
        clean_N = self._filter.process(mono_N[:whole], played_N[:whole])
        return np.concatenate([clean_N, mono_N[whole:]])[None]
