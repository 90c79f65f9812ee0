"""Keeping what the speaker plays out of what the microphone hears.

``cancel`` subtracts it (WebRTC's echo canceller, AEC3, by the package ``pywebrtc-audio``);
``duck`` turns the microphone down while the speaker is loud, so only one side is heard at a time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from moshi_pipe.errors import BackendError, ConfigError, closest

if TYPE_CHECKING:
    import numpy.typing as npt

MODES: Final = ("cancel", "duck", "off")
_RATES: Final = (16_000, 24_000, 32_000, 48_000)  # what the canceller takes, in Hz
_DUCK_GAIN: Final = 0.03  # -30 dB
_DUCK_LEVEL: Final = 0.005  # of the speaker, -46 dBFS
_DUCK_HOLD_S: Final = 0.3  # the room rings on
_MAX_AHEAD_S: Final = 0.5


class EchoFilter(Protocol):
    """Cleans what the microphone heard."""

    def process(
        self, heard_N: npt.NDArray[np.float32], played_N: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the microphone without the speaker, float32 ``[N]``; N is a multiple of 10 ms.

        Args:
            heard_N: Samples of the microphone.
            played_N: As many samples that the speaker played at the time or a little before.
        """


def make_filter(mode: str, sample_rate: int) -> EchoFilter:
    """Make the filter of a mode.

    Raises:
        ConfigError: There is no such mode, or it cannot run at this rate.
        BackendError: The canceller is not installed.
    """
    if mode == "off":
        return _Off()
    if mode == "duck":
        return Ducker(sample_rate)
    if mode == "cancel":
        return Canceller(sample_rate)
    raise ConfigError(f"echo cannot be '{mode}'", wanted=closest(mode, MODES))


class _Off:
    def process(
        self, heard_N: npt.NDArray[np.float32], played_N: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        return heard_N


class Ducker:
    """Turns the microphone down by 30 dB while the speaker plays, and 0.3 s longer."""

    def __init__(self, sample_rate: int) -> None:
        self._hold = round(_DUCK_HOLD_S * sample_rate)
        self._left = 0
        self._gain = 1.0

    def process(
        self, heard_N: npt.NDArray[np.float32], played_N: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Apply the gain, with a ramp where it changes."""
        loud = bool(played_N.size) and float(np.abs(played_N).max()) > _DUCK_LEVEL
        self._left = self._hold if loud else max(0, self._left - heard_N.size)
        wanted = _DUCK_GAIN if self._left else 1.0
        ramp_N = np.linspace(self._gain, wanted, heard_N.size, dtype=np.float32)
        self._gain = wanted
        return heard_N * ramp_N


class Canceller:
    """WebRTC's echo canceller; it finds the delay between speaker and microphone itself.

    Args:
        sample_rate: 16, 24, 32 or 48 kHz.

    Raises:
        ConfigError: Another rate.
        BackendError: ``pywebrtc-audio`` is not installed.
    """

    def __init__(self, sample_rate: int) -> None:
        if sample_rate not in _RATES:
            raise ConfigError(
                "the echo canceller cannot run at this rate",
                got=f"{sample_rate} Hz",
                wanted=", ".join(map(str, _RATES)),
            )
        try:
            from pywebrtc_audio import AudioProcessor
        except ImportError as error:
            raise BackendError(
                "echo=cancel needs the package pywebrtc-audio",
                got=str(error),
                fix="pip install 'moshi-pipe[echo]', or set source.echo=duck",
            ) from error
        self._processor: Any = AudioProcessor(sample_rate=sample_rate, echo_cancellation=True)
        self._block = sample_rate // 100

    def process(
        self, heard_N: npt.NDArray[np.float32], played_N: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Cancel, 10 ms at a time."""
        out_N = np.empty_like(heard_N)
        for start in range(0, heard_N.size, self._block):
            part = slice(start, start + self._block)
            near = np.ascontiguousarray(heard_N[part])
            far = np.ascontiguousarray(played_N[part])
            out_N[part] = self._processor.process(near, far)
        return out_N


class PlayedAudio:
    """What the speaker was given, until the microphone's side asks for as much.

    ``put`` and ``take`` may run on different threads. When the clocks drift apart, the oldest is
    forgotten beyond half a second; where nothing is there, silence is given.
    """

    def __init__(self, sample_rate: int) -> None:
        self._most = round(_MAX_AHEAD_S * sample_rate)
        self._kept_N: npt.NDArray[np.float32] = np.zeros(0, np.float32)
        self._lock = threading.Lock()

    def put(self, samples_N: npt.NDArray[np.float32]) -> None:
        """Append what was played."""
        with self._lock:
            self._kept_N = np.concatenate([self._kept_N, samples_N])[-self._most :]

    def take(self, num_samples: int) -> npt.NDArray[np.float32]:
        """The oldest samples, filled up with silence, float32 ``[num_samples]``."""
        out_N = np.zeros(num_samples, np.float32)
        with self._lock:
            given_N = self._kept_N[:num_samples]
            self._kept_N = self._kept_N[given_N.size :]
        out_N[: given_N.size] = given_N
        return out_N
