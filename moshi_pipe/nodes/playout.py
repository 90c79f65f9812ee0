"""What a speaker plays next: a jitter buffer that follows the speaker's clock.

Frames come in at the pace of the microphone's clock, samples go out at that of the speaker. The
buffer keeps a reserve for frames that come late. Its level is steered by resampling a little more
or less than the nominal ratio, so that the latency stays where it is although the clocks differ.

Times are readings of a monotonic clock in nanoseconds. What waits has the rate of the frames; it is
resampled as the speaker takes it, on the speaker's thread.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from moshi_pipe.engine.live_resampler import LiveResampler
from moshi_pipe.errors import ConfigError
from moshi_pipe.units import NS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

_MAX_CORRECTION: Final = 0.005  # of the rate: what nobody hears
_SETTLE_S: Final = 20.0  # an error of the level is worked off over this time
_LEAVE_S: Final = 0.010  # an error up to this is left as it is: then nothing is resampled
_SMOOTH_S: Final = 2.0  # over which the level is averaged
_DRIFT_S: Final = 60.0  # over which the correction is averaged: the drift of the clocks
_WINDOW_S: Final = 10.0  # the reserve shrinks at most once in this time
_FADE_S: Final = 0.005
_MARGIN_S: Final = 0.010  # kept above the latest frame of the last windows
_WINDOWS: Final = 3  # without trouble before the reserve shrinks; as many more per underrun
_MAX_WINDOWS: Final = 30


@dataclass(frozen=True, slots=True)
class Reserve:
    """Bounds of the reserve, in seconds: how late a frame may come and still be played in time.

    Attributes:
        start_s: At first.
        min_s: Least.
        max_s: Most.
        step_s: It grows by this after an underrun.

    Raises:
        ConfigError: Not 0 <= min <= start <= max.
    """

    start_s: float = 0.08
    min_s: float = 0.02
    max_s: float = 0.4
    step_s: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.min_s <= self.start_s <= self.max_s:
            raise ConfigError(
                "the speaker's buffer has impossible bounds",
                got=f"min {self.min_s * 1000:g}, start {self.start_s * 1000:g}, "
                f"max {self.max_s * 1000:g} ms",
                wanted="0 <= buffer_min_ms <= buffer_ms <= buffer_max_ms",
            )


@dataclass(slots=True)
class PlayoutCounters:
    """What happened so far.

    Attributes:
        underruns: Gaps: times that nothing was there to play after it had begun.
        gap_samples: Samples of silence in them.
        dropped_samples: Samples that did not fit.
        played_samples: Samples that came from frames.
    """

    underruns: int = 0
    gap_samples: int = 0
    dropped_samples: int = 0
    played_samples: int = 0


class Playout:
    """A buffer between frames and a speaker. ``push`` and ``pull`` may run on different threads.

    Args:
        rate_in: Hz of the frames.
        rate_out: Hz of the speaker.
        reserve: Bounds of the reserve.
        on_audible: Called with a frame's number and when it leaves the buffer, on the thread that
            pulls.
    """

    def __init__(
        self,
        rate_in: int,
        rate_out: int,
        reserve: Reserve | None = None,
        on_audible: Callable[[int, int], None] | None = None,
    ) -> None:
        self.counters = PlayoutCounters()
        self._reserve = reserve or Reserve()
        self._target_s = self._reserve.start_s
        self._rate_in, self._rate_out = rate_in, rate_out
        self._resampler = LiveResampler(rate_in, rate_out)
        self._samples = np.zeros(round((self._reserve.max_s + 1.0) * rate_in), np.float32)
        self._ready_N: npt.NDArray[np.float32] = np.zeros(0, np.float32)  # resampled, a few
        self._first = self._level = 0
        self._started = self._finished = self._gap = False
        self._gap_samples = 0
        self._fade_in = 0
        self._last = 0.0  # sample that was played last
        self._pulled_ns = 0
        self._pull_s = 0.0  # what a pull takes
        self._error_s = 0.0
        self._correction = self._drift = 0.0
        self._lows: deque[float] = deque(maxlen=_MAX_WINDOWS)
        self._low_s, self._window_ns = float("inf"), 0
        self._num_in = self._num_out = 0
        self._marks: deque[tuple[int, int]] = deque(maxlen=1024)
        self._on_audible = on_audible
        self._lock = threading.Lock()

    @property
    def target_s(self) -> float:
        """The reserve that is kept now, in seconds."""
        return self._target_s

    @property
    def level_s(self) -> float:
        """What the buffer holds, in seconds."""
        return self._level / self._rate_in + self._ready_N.size / self._rate_out

    @property
    def drift_ppm(self) -> float:
        """How much faster the speaker's clock is, in parts per million, averaged over a minute."""
        return self._drift * 1e6

    @property
    def is_empty(self) -> bool:
        """Whether everything was played."""
        return not self._level  # what is resampled already is gone with the next pull

    def push(self, frame: int, samples_N: npt.NDArray[np.float32], now_ns: int) -> None:
        """Append a frame.

        Args:
            frame: Its number, for ``on_audible``.
            samples_N: Samples in [-1, 1], float32 ``[N]`` at ``rate_in``.
            now_ns: The clock.
        """
        with self._lock:
            if not self._started:
                self._prefill(self._target_s + self._held_back_s(now_ns))
            elif self._gap:
                self._resume(now_ns)
            else:
                self._steer(now_ns, len(samples_N) / self._rate_in)
            self._started = True
            self._marks.append((self._num_in, frame))
            self._append(samples_N)

    def pull(self, num_samples: int, now_ns: int) -> npt.NDArray[np.float32]:
        """Take what is played next, float32 ``[num_samples]``; silence where nothing is there."""
        out_N = np.zeros(num_samples, np.float32)
        with self._lock:
            self._pulled_ns, self._pull_s = now_ns, num_samples / self._rate_out
            num = self._fill(out_N)
            audible = self._pass_marks()
            if num:
                self._soften_start(out_N[:num])
                self._last = float(out_N[num - 1])
            if num < num_samples:
                self._run_dry(out_N[num:])
        if self._on_audible is not None:
            for frame in audible:
                self._on_audible(frame, now_ns)
        return out_N

    def finish(self) -> None:
        """Say that no further frame will come: running dry is no underrun any more."""
        with self._lock:
            self._finished = True

    # ---- with the lock held

    def _steer(self, now_ns: int, frame_s: float) -> None:
        """Measure the reserve as a frame comes; choose the ratio that brings it to its target."""
        reserve_s = self.level_s - self._held_back_s(now_ns)
        self._low_s = min(self._low_s, reserve_s)
        self._shrink(now_ns)
        error_s = reserve_s - self._target_s
        self._error_s += (error_s - self._error_s) * min(1.0, frame_s / _SMOOTH_S)
        wanted = np.sign(self._error_s) * max(0.0, abs(self._error_s) - _LEAVE_S) / _SETTLE_S
        self._correction = min(_MAX_CORRECTION, max(-_MAX_CORRECTION, wanted))
        self._drift += (-self._correction - self._drift) * min(1.0, frame_s / _DRIFT_S)
        self._resampler.correct(self._correction)

    def _held_back_s(self, now_ns: int) -> float:
        """What of the level is no reserve: time since the last pull, as played, and the next pull.

        Without this the level would show the phase between frames and pulls.
        """
        since_pull_s = (now_ns - self._pulled_ns) / NS_PER_SECOND
        return self._pull_s + min(since_pull_s, self._pull_s)

    def _shrink(self, now_ns: int) -> None:
        """Give up reserve that the last windows did not need."""
        if not self._window_ns:
            self._window_ns = now_ns
        if now_ns - self._window_ns < _WINDOW_S * NS_PER_SECOND:
            return
        self._lows.append(self._low_s - self._target_s)
        self._low_s, self._window_ns = float("inf"), now_ns
        if len(self._lows) < min(_MAX_WINDOWS, _WINDOWS * (1 + self.counters.underruns)):
            return
        needed_s = max(-min(self._lows), 0.0) + _MARGIN_S
        if needed_s < self._target_s:
            self._target_s = max(self._reserve.min_s, (self._target_s + needed_s) / 2)

    def _resume(self, now_ns: int) -> None:
        """After a gap: fill up what the late frame left of the reserve with silence."""
        waited_s = self._gap_samples / self._rate_out
        self._target_s = min(self._reserve.max_s, self._target_s + self._reserve.step_s)
        self._prefill(max(0.0, self._target_s + self._held_back_s(now_ns) - waited_s))
        self._gap = False
        self._fade_in = round(_FADE_S * self._rate_out)
        self._lows.clear()
        self._low_s, self._window_ns, self._error_s = float("inf"), 0, 0.0

    def _prefill(self, seconds: float) -> None:
        self._append(np.zeros(round(seconds * self._rate_in), np.float32))

    def _append(self, samples_N: npt.NDArray[np.float32]) -> None:
        size = self._samples.size
        fits = min(samples_N.size, size - self._level)
        self.counters.dropped_samples += samples_N.size - fits
        start = (self._first + self._level) % size
        before_end = min(fits, size - start)
        self._samples[start : start + before_end] = samples_N[:before_end]
        self._samples[: fits - before_end] = samples_N[before_end:fits]
        self._level += fits
        self._num_in += fits

    def _fill(self, out_N: npt.NDArray[np.float32]) -> int:
        """Resample as much as is wanted and there; returns how many samples were."""
        while self._ready_N.size < out_N.size and self._level:
            missing = out_N.size - self._ready_N.size
            taken_N = self._take(math.ceil(missing * self._resampler.step))
            self._ready_N = np.concatenate([self._ready_N, self._resampler.push(taken_N)])
        num = min(out_N.size, self._ready_N.size)
        out_N[:num] = self._ready_N[:num]
        self._ready_N = self._ready_N[num:]
        self.counters.played_samples += num
        return num

    def _take(self, wanted: int) -> npt.NDArray[np.float32]:
        """The oldest samples, at the rate of the frames."""
        num = min(wanted, self._level)
        before_end = min(num, self._samples.size - self._first)
        taken_N = np.empty(num, np.float32)
        taken_N[:before_end] = self._samples[self._first : self._first + before_end]
        taken_N[before_end:] = self._samples[: num - before_end]
        self._first = (self._first + num) % self._samples.size
        self._level -= num
        self._num_out += num
        return taken_N

    def _pass_marks(self) -> list[int]:
        """Frames whose first sample was taken just now."""
        passed = []
        while self._marks and self._marks[0][0] < self._num_out:
            passed.append(self._marks.popleft()[1])
        return passed

    def _soften_start(self, out_N: npt.NDArray[np.float32]) -> None:
        """Fade in after a gap."""
        num = min(self._fade_in, out_N.size)
        if num:
            length = round(_FADE_S * self._rate_out)
            done = length - self._fade_in
            out_N[:num] *= (done + np.arange(num, dtype=np.float32)) / length
            self._fade_in -= num

    def _run_dry(self, out_N: npt.NDArray[np.float32]) -> None:
        """Nothing is left: let the last sample fade instead of a click, and count."""
        if self._last:
            length = min(out_N.size, max(1, round(_FADE_S * self._rate_out)))
            out_N[:length] = self._last * (1 - (np.arange(length, dtype=np.float32) + 1) / length)
            self._last = 0.0
        if not self._started or self._finished:
            return
        if not self._gap:
            self._gap = True
            self._gap_samples = 0
            self.counters.underruns += 1
        self._gap_samples += out_N.size
        self.counters.gap_samples += out_N.size
