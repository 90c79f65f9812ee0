"""Sink ``speaker``: plays what the model says, at the pace of the speaker's clock."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.engine.statistics import Histogram
from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.nodes.playout import Playout, Reserve
from moshi_pipe.nodes.sound_stream import SoundStream, StreamOptions
from moshi_pipe.units import NS_PER_MS, NS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.nodes.options import SpeakerOptions

_WATCH_NS: Final = 500 * NS_PER_MS
_MAX_DRAIN_S: Final = 3.0
_KEEP_TIMES: Final = 1024


class SpeakerSink(Sink):
    """Plays one session.

    Args:
        options: Which device, and how much it holds.
        clock: That of the engine.
        on_played: Called with what is played, float32 ``[N]`` at :attr:`sample_rate`, on
            PortAudio's thread; an echo canceller listens here.
    """

    takes = ("audio",)
    realtime = True
    keeps = False
    keeps = False

    def __init__(
        self,
        options: SpeakerOptions,
        clock: Clock | None = None,
        on_played: Callable[[npt.NDArray[np.float32]], None] | None = None,
    ) -> None:
        self._options = options
        self._reserve = Reserve(
            options.buffer_ms / 1000, options.buffer_min_ms / 1000, options.buffer_max_ms / 1000
        )
        self._clock = clock or SystemClock()
        self._on_played = on_played
        self._stream: SoundStream | None = None
        self._playout: Playout | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopped = False
        self._delivered_ns: dict[int, int] = {}
        self._audible_ns: dict[int, int] = {}
        self._ours, self._heard = Histogram(), Histogram()

    @property
    def num_underruns(self) -> int:  # type: ignore[override]
        """Times that there was nothing to play."""
        return 0 if self._playout is None else self._playout.counters.underruns

    @property
    def audible_ns(self) -> Mapping[int, int]:  # type: ignore[override]
        """When the last frames left for the ear."""
        return self._audible_ns

    async def open(self, session: SessionInfo) -> None:
        """Open the speaker.

        Raises:
            BackendError: There is no such device, or it cannot be opened.
        """
        form = session.formats["audio"]
        if not isinstance(form, Audio):
            raise ConfigError("output 'audio' is no audio", got=str(form))
        options = self._options
        self._stream = SoundStream(
            StreamOptions(
                "output",
                options.device,
                options.sample_rate,
                options.channels,
                options.block_ms,
                form.sample_rate,
            ),
            self._play,
            self._clock,
        )
        await asyncio.to_thread(self._stream.open)
        self._playout = Playout(
            form.sample_rate, self._stream.sample_rate, self._reserve, self._on_audible
        )
        self._watcher = asyncio.create_task(self._watch())

    async def write(self, packet: Packet) -> None:
        """Queue one frame; waits for room, which live audio always has."""
        if self._playout is None:
            return
        times = packet.times
        if len(self._delivered_ns) < _KEEP_TIMES:
            self._delivered_ns[packet.frame] = times.delivered_ns
        await self._wait_for_room()
        samples_N = np.asarray(packet.payload, np.float32)[0]
        self._playout.push(packet.frame, samples_N, self._clock.now_ns())
        self._ours.add(max(0, self._clock.now_ns() - times.delivered_ns - times.model_ns))

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Play what is left, then close the speaker."""
        self._stopped = True
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
        if self._stream is None or self._playout is None:
            return {}
        self._playout.finish()
        if end.complete:
            await self._drain()
        await asyncio.to_thread(self._stream.close)
        return self._report(self._stream, self._playout)

    async def _wait_for_room(self) -> None:
        """Wait while the buffer holds more than it may: recordings come faster than they play."""
        stream, playout, clock = self._stream, self._playout, self._clock
        while stream is not None and playout is not None and stream.alive:
            over_s = playout.level_s - self._reserve.max_s
            if over_s <= 0:
                return
            await clock.sleep_until(clock.now_ns() + round(over_s * NS_PER_SECOND))

    async def _drain(self) -> None:
        """Wait until everything was played, and what the device holds too."""
        stream, playout, clock = self._stream, self._playout, self._clock
        if stream is None or playout is None:
            return
        until_ns = clock.now_ns() + round(_MAX_DRAIN_S * NS_PER_SECOND)
        while not playout.is_empty and stream.alive and clock.now_ns() < until_ns:
            await clock.sleep_until(clock.now_ns() + round(playout.level_s * NS_PER_SECOND) + 1)
        await clock.sleep_until(clock.now_ns() + round(stream.latency_s * NS_PER_SECOND))

    async def _watch(self) -> None:
        """Open the speaker again when it vanishes."""
        while self._stream is not None:
            await self._clock.sleep_until(self._clock.now_ns() + _WATCH_NS)
            if not self._stream.alive:
                await self._stream.reopen(lambda: self._stopped)

    def _play(self, asked: npt.NDArray[np.float32], now_ns: int) -> npt.NDArray[np.float32]:
        """Give a block; on PortAudio's thread."""
        num = asked.shape[1]
        if self._playout is None:
            samples_N = np.zeros(num, np.float32)
        else:
            samples_N = self._playout.pull(num, now_ns)
        if self._on_played is not None:
            self._on_played(samples_N)
        return np.clip(samples_N, -1, 1)

    def _on_audible(self, frame: int, now_ns: int) -> None:
        """A frame leaves for the device; on PortAudio's thread."""
        delivered_ns = self._delivered_ns.pop(frame, None)
        if delivered_ns is not None and self._stream is not None:
            at_ns = now_ns + round(self._stream.latency_s * NS_PER_SECOND)
            self._heard.add(max(0, at_ns - delivered_ns))
            self._audible_ns[frame] = at_ns
            if len(self._audible_ns) > _KEEP_TIMES:
                del self._audible_ns[next(iter(self._audible_ns))]

    def _report(self, stream: SoundStream, playout: Playout) -> dict[str, Any]:
        counters = playout.counters
        return {
            "sink": "speaker",
            "device": stream.name,
            "sample_rate": stream.sample_rate,
            "channels": stream.channels,
            "latency_ms": round(1000 * stream.latency_s, 2),
            "reserve_ms": round(1000 * playout.target_s, 1),
            "drift_ppm": round(playout.drift_ppm, 1),
            "underruns": counters.underruns,
            "gap_ms": round(1000 * counters.gap_samples / stream.sample_rate, 1),
            "dropped_samples": counters.dropped_samples,
            "glitches": stream.num_glitches,
            "reopened": stream.num_reopened,
            "ours": self._ours.to_dict(),  # from delivery to the queue, less the time inside nodes
            "audible": self._heard.to_dict(),  # from delivery to the ear
        }
