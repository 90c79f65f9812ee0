"""One direction of a sound device: opened, watched, and opened again when it vanished.

PortAudio calls back on a thread of its own. What is called back must not raise: an exception there
would surface somewhere in the main thread, or end the stream without a word.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.errors import BackendError, ConfigError, MoshiPipeError
from moshi_pipe.nodes.portaudio import (
    Device,
    find_device,
    import_pyaudio,
    list_devices,
    portaudio,
    quiet,
)
from moshi_pipe.units import NS_PER_SECOND, format_count

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from moshi_pipe.engine.clock import Clock

_LOGGER: Final = logging.getLogger(__name__)
_LOST_AFTER_S: Final = 1.0  # without a call
_CLOSE_WITHIN_S: Final = 2.0  # some drivers never return from closing a device that is gone
_FIRST_RETRY_S: Final = 0.25
_LAST_RETRY_S: Final = 8.0
_OTHER_RATE: Final = 48_000
# PortAudio's numbers, portaudio.h: paDeviceUnavailable, paInvalidSampleRate ...
_BUSY: Final = -9985


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a device is opened.

    Attributes:
        direction: ``input`` or ``output``.
        device: Index or part of a name; None is the default.
        sample_rate: Hz; None tries ``preferred_rate``, then the device's own.
        channels: None tries one, then all of the device.
        block_ms: Length of a block in ms.
        preferred_rate: The model's rate, in Hz.

    Raises:
        ConfigError: A number is out of bounds.
    """

    direction: str
    device: str | None = None
    sample_rate: int | None = None
    channels: int | None = None
    block_ms: int = 20
    preferred_rate: int = 24_000

    def __post_init__(self) -> None:
        bounds = {
            "block_ms": (self.block_ms, 1, 1000),
            "sample_rate": (self.sample_rate, 1, 768_000),
            "channels": (self.channels, 1, 64),
        }
        for name, (number, least, most) in bounds.items():
            if number is not None and not least <= number <= most:
                raise ConfigError(
                    f"{name} of the {self.what} cannot be {number}", wanted=f"{least} to {most}"
                )

    @property
    def what(self) -> str:
        """What errors call it."""
        return "microphone" if self.direction == "input" else "speaker"


class SoundStream:
    """A device in use.

    Args:
        options: How it is opened.
        on_block: Called on PortAudio's thread per block. For an input with samples float32
            ``[C, N]`` and the clock in ns, and its answer is not used; for an output with an empty
            array, and it answers with ``[N]`` samples for all channels.
        clock: Stamps blocks.

    Attributes:
        name: Of the device that is open.
        sample_rate: Hz that it is open at.
        channels: Channels that are open.
        latency_s: What the device says that it takes, in seconds.
        num_reopened: Times that it came back.
        num_glitches: Blocks that the driver says it lost or had to make up.
        lost_s: Seconds without the device.
    """

    def __init__(
        self,
        options: StreamOptions,
        on_block: Callable[[npt.NDArray[np.float32], int], npt.NDArray[np.float32] | None],
        clock: Clock,
    ) -> None:
        self.name = ""
        self.sample_rate = options.sample_rate or options.preferred_rate
        self.channels = options.channels or 1
        self.latency_s = 0.0
        self.num_reopened = self.num_glitches = 0
        self.lost_s = 0.0
        self._options = options
        self._on_block = on_block
        self._clock = clock
        self._called_ns = 0
        self._broken: Exception | None = None
        self._host: Any = None
        self._closing: Any = None
        self._stream: Any = None
        self._abort, self._continue, self._glitch_flags = 0, 0, 0

    def open(self) -> None:
        """Open the device; may take a while.

        Raises:
            BackendError: It is not there, busy, or takes no format of ours.
            ConfigError: No device is called so.
        """
        pyaudio = import_pyaudio()
        self._abort, self._continue = pyaudio.paAbort, pyaudio.paContinue
        # The binding names only some of PortAudio's flags: input overflow, output underflow.
        self._glitch_flags = 0x02 | 0x04
        context = portaudio()
        self._host, self._closing = context.__enter__(), context
        try:
            with quiet():
                devices = list_devices(self._host)
            device = find_device(devices, self._options.device, self._options.direction)
            self._open_device(pyaudio, device)
        except OSError as error:
            self._terminate()
            raise BackendError("PortAudio cannot list its devices", got=str(error)) from error
        except BaseException:
            self._terminate()
            raise
        if not self.name:
            _LOGGER.info(
                "%s: %s, %d Hz, %s, %.0f ms",
                *(self._options.what, device.name, self.sample_rate),
                *(format_count(self.channels, "channel"), 1000 * self.latency_s),
            )
        self.name = device.name
        self._called_ns = self._clock.now_ns()

    def close(self) -> None:
        """Close the device; gives up on a driver that does not return within two seconds."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        closer = threading.Thread(target=self._close_stream, args=(stream,), daemon=True)
        closer.start()
        closer.join(_CLOSE_WITHIN_S)

    @property
    def alive(self) -> bool:
        """Whether the device called in the last second."""
        since_ns = self._clock.now_ns() - self._called_ns
        return self._broken is None and since_ns < _LOST_AFTER_S * NS_PER_SECOND

    async def reopen(self, stopped: Callable[[], bool]) -> None:
        """Open the device again once it is back, waiting longer from try to try.

        Args:
            stopped: Asked before each try; True gives up.

        Raises:
            BackendError: What was called back raised; a device that comes back does not help.
        """
        if self._broken is not None:
            raise BackendError(
                f"the {self._options.what} {self.name} was stopped by an error",
                got=f"{type(self._broken).__name__}: {self._broken}",
            ) from self._broken
        _LOGGER.warning("the %s %s is gone; trying again", self._options.what, self.name)
        gone_ns = self._called_ns
        await asyncio.to_thread(self.close)
        wait_s = _FIRST_RETRY_S
        while not stopped():
            try:
                await asyncio.to_thread(self._reopen_same)
            except MoshiPipeError:
                await self._clock.sleep_until(self._clock.now_ns() + round(wait_s * NS_PER_SECOND))
                wait_s = min(_LAST_RETRY_S, 2 * wait_s)
                continue
            away_s = (self._clock.now_ns() - gone_ns) / NS_PER_SECOND
            self.num_reopened += 1
            self.lost_s += away_s
            _LOGGER.warning("the %s is back after %.1f s", self._options.what, away_s)
            return

    # ---- opening

    def _reopen_same(self) -> None:
        """Open with the format of the first time: what follows is built for it."""
        kept = self._options
        self._options = StreamOptions(
            kept.direction,
            kept.device,
            self.sample_rate,
            self.channels,
            kept.block_ms,
            kept.preferred_rate,
        )
        try:
            self.open()
        finally:
            self._options = kept

    def _open_device(self, pyaudio: Any, device: Device) -> None:
        """Try formats in order.

        Raises:
            BackendError: None is taken.
        """
        reason: Exception | None = None
        for rate, channels in self._formats(device):
            try:
                self._start(pyaudio, device, rate, channels)
            except (OSError, ValueError) as error:
                reason = error
                if error.args[:1] == (_BUSY,):
                    break
                continue
            self.sample_rate, self.channels = rate, channels
            return
        raise _open_error(self._options, device, reason)

    def _formats(self, device: Device) -> list[tuple[int, int]]:
        options = self._options
        rates = [options.preferred_rate, device.sample_rate, _OTHER_RATE]
        if options.sample_rate is not None:
            rates = [options.sample_rate]
        channels = [1, min(2, device.channels(options.direction))]
        if options.channels is not None:
            channels = [options.channels]
        return list(dict.fromkeys((rate, count) for rate in rates for count in channels))

    def _start(self, pyaudio: Any, device: Device, rate: int, channels: int) -> None:
        is_input = self._options.direction == "input"
        end = "input" if is_input else "output"
        with quiet():
            stream = self._host.open(
                rate=rate,
                channels=channels,
                format=pyaudio.paFloat32,
                frames_per_buffer=max(1, rate * self._options.block_ms // 1000),
                stream_callback=self._heard if is_input else self._asked,
                start=False,
                **{end: True, f"{end}_device_index": device.index},
            )
            self.channels = channels  # the callback needs it from the first block on
            stream.start_stream()
        self._stream = stream
        self.latency_s = float(getattr(stream, f"get_{end}_latency")())

    # ---- on PortAudio's thread

    def _heard(self, data: bytes, num: int, _: Any, flags: int) -> tuple[None, int]:
        now_ns = self._called(flags)
        try:
            samples_NC = np.frombuffer(data, dtype=np.float32).reshape(num, -1)
            self._on_block(samples_NC.T, now_ns)
        except Exception as error:  # see the top of this file
            self._broken = error
            return None, self._abort
        return None, self._continue

    def _asked(self, _: Any, num: int, __: Any, flags: int) -> tuple[bytes, int]:
        now_ns = self._called(flags)
        try:
            samples_N = self._on_block(np.zeros((0, num), np.float32), now_ns)
            if samples_N is None:
                samples_N = np.zeros(num, np.float32)
            data = np.repeat(samples_N, self.channels).astype(np.float32).tobytes()
        except Exception as error:  # see the top of this file
            self._broken = error
            return bytes(4 * num * self.channels), self._abort
        return data, self._continue

    def _called(self, flags: int) -> int:
        self._called_ns = self._clock.now_ns()
        if flags & self._glitch_flags:
            self.num_glitches += 1
        return self._called_ns

    # ---- closing

    def _close_stream(self, stream: Any) -> None:
        try:
            with quiet():
                stream.stop_stream()
                stream.close()
        except OSError as error:
            _LOGGER.debug("the %s did not close: %s", self._options.what, error)
        self._terminate()

    def _terminate(self) -> None:
        context, self._closing = self._closing, None
        if context is not None:
            context.__exit__(None, None, None)


def _open_error(options: StreamOptions, device: Device, reason: Exception | None) -> BackendError:
    """Why a device cannot be opened, and what to do."""
    got = str(reason.args[-1]) if reason is not None and reason.args else str(reason)
    if reason is not None and reason.args[:1] == (_BUSY,):
        return BackendError(
            f"the {options.what} {device.name} is busy",
            got=got,
            fix="close the program that uses it, or choose another: see `moshi-pipe devices`",
        )
    wanted = [f"{options.sample_rate} Hz"] if options.sample_rate is not None else []
    wanted += [f"{options.channels} channels"] if options.channels is not None else []
    return BackendError(
        f"the {options.what} {device.name} cannot be opened",
        got=got + (f", asked for {' and '.join(wanted)}" if wanted else ""),
        fix="choose another device, rate or number of channels: see `moshi-pipe devices`",
    )
