"""Source ``mic``: a microphone, as one session that lasts until it is stopped."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.errors import ConfigError, MoshiPipeError
from moshi_pipe.graph.node import Key, SessionInput, Source
from moshi_pipe.nodes.sound_stream import SoundStream, StreamOptions
from moshi_pipe.units import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    import numpy.typing as npt

    from moshi_pipe.nodes.options import MicOptions

_MAX_WAITING_S: Final = 2.0  # blocks that the event loop has not taken yet
_WATCH_NS: Final = 500 * NS_PER_MS


class MicSource(Source):
    """One session of what a microphone hears.

    Raises:
        ConfigError: An option is out of bounds.
    """

    live = True

    def __init__(self, options: MicOptions, clock: Clock | None = None) -> None:
        check_duration(options.duration_s)
        self._options = options
        self._stream = StreamOptions(
            "input", options.device, options.sample_rate, options.channels, options.block_ms
        )
        self._clock = clock or SystemClock()
        self._input: MicInput | None = None

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Open the microphone and give its session.

        Raises:
            BackendError: There is no such device, or it cannot be opened.
        """
        duration_s = self._options.duration_s
        self._input = MicInput(self._stream, self._clock, duration_s=duration_s)
        await self._input.open()
        yield self._input

    def num_sessions(self) -> int | None:
        """One."""
        return 1

    def stop(self) -> None:
        """End the session's input."""
        if self._input is not None:
            self._input.stop()

    def keys(self) -> Mapping[str, Key]:
        """Mute."""
        return {"m": Key("mute", self._mute)}

    def _mute(self) -> str:
        if self._input is None:
            return ""
        self._input.muted = not self._input.muted
        return "muted" if self._input.muted else ""


class MicInput(SessionInput):
    """What one microphone hears.

    Args:
        options: How it is opened.
        clock: Stamps blocks.
        duration_s: Ends after so many seconds; None until :meth:`stop`.
        treat: Applied to each block, float32 ``[C, N]``, such as an echo canceller; on the event
            loop.

    Attributes:
        muted: Whether silence is given instead.
    """

    def __init__(
        self,
        options: StreamOptions,
        clock: Clock,
        *,
        duration_s: float | None = None,
        treat: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None,
    ) -> None:
        name = time.strftime("mic-%Y%m%d-%H%M%S")
        self.id = name
        self.meta: Mapping[str, Any] = {"stem": name}
        self.muted = False
        self._clock = clock
        self._stream = SoundStream(options, self._heard, clock)
        self._treat = treat
        self._duration_s = duration_s
        self._blocks: deque[tuple[npt.NDArray[np.float32], int]] = deque(
            maxlen=max(1, round(_MAX_WAITING_S * 1000 / options.block_ms))
        )
        self._num_missed = 0
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        self._failure: MoshiPipeError | None = None
        self.warnings: list[str] = []

    async def open(self) -> None:
        """Open the microphone."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._stream.open)
        self.sample_rate = self._stream.sample_rate
        self._blocks.clear()
        if self._duration_s is not None:
            self.num_samples = round(self._duration_s * self.sample_rate)

    def stop(self) -> None:
        """End the input after what was heard so far."""
        self._stopped = True
        self._news.set()

    async def chunks(self) -> AsyncIterator[npt.NDArray[np.float32]]:
        """Yield blocks as they come; opens the device again when it vanishes."""
        left = self.num_samples
        watcher = asyncio.create_task(self._watch())
        try:
            while not self._stopped and left != 0:
                self._news.clear()
                if not self._blocks:
                    await self._news.wait()
                while self._blocks and left != 0:
                    block_CN, self.delivered_ns = self._blocks.popleft()
                    if left is not None:
                        block_CN = block_CN[:, :left]
                        left -= block_CN.shape[1]
                    heard_CN = np.zeros_like(block_CN) if self.muted else block_CN
                    yield heard_CN if self._treat is None else self._treat(heard_CN)
            if self._failure is not None:
                raise self._failure
        finally:
            watcher.cancel()
            self._close_warnings()
            await asyncio.to_thread(self._stream.close)

    def report(self) -> Mapping[str, Any]:
        """The device and what it lost."""
        stream = self._stream
        return {
            "device": stream.name,
            "sample_rate": stream.sample_rate,
            "channels": stream.channels,
            "latency_ms": round(1000 * stream.latency_s, 2),
            "overflows": stream.num_glitches,
            "missed_blocks": self._num_missed,
            "reopened": stream.num_reopened,
            "lost_s": round(stream.lost_s, 2),
        }

    async def _watch(self) -> None:
        """Open the device again when it vanishes."""
        while not self._stopped:
            await self._clock.sleep_until(self._clock.now_ns() + _WATCH_NS)
            if self._stream.alive:
                continue
            try:
                await self._stream.reopen(lambda: self._stopped)
            except MoshiPipeError as error:
                self._failure = error
                self.stop()

    def _heard(self, block_CN: npt.NDArray[np.float32], now_ns: int) -> None:
        """Keep a block; on PortAudio's thread."""
        if len(self._blocks) == self._blocks.maxlen:
            self._num_missed += 1
        self._blocks.append((block_CN, now_ns))
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    def _close_warnings(self) -> None:
        stream = self._stream
        if stream.num_reopened:
            self.warnings.append(
                f"the microphone was gone {stream.num_reopened} times, {stream.lost_s:.1f} s in "
                "all; results leave that time out"
            )
        if self._num_missed:
            self.warnings.append(f"{self._num_missed} blocks of the microphone were not taken")


def check_duration(duration_s: float | None) -> None:
    """Refuse a session without length.

    Raises:
        ConfigError: Not above 0.
    """
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise ConfigError(
            f"source.duration_s cannot be {duration_s}", wanted="above 0, or null for no end"
        )
