"""The speaker's buffer on simulated clocks: drift, jitter, gaps, bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from moshi_pipe.errors import ConfigError
from moshi_pipe.nodes.playout import Playout, Reserve

RATE = 24_000
FRAME = 1920
FRAME_S = FRAME / RATE


@dataclass
class Room:
    """A speaker that pulls 20 ms at a time by its own clock, and frames every 80 ms by another."""

    playout: Playout
    ppm: float = 0.0
    rate: int = RATE
    heard: list[np.ndarray] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)
    keep: bool = True
    _pulls: int = 0
    _frame: int = 0

    def frame(self, late_s: float = 0.0, samples: npt.NDArray[np.float32] | None = None) -> None:
        """Let the speaker play until the next frame comes, then push that."""
        at_s = (self._frame + 1) * FRAME_S + 0.0013 + late_s
        self.play_until(at_s)
        tone = np.sin(2 * np.pi * 200 * (self._frame * FRAME + np.arange(FRAME)) / RATE)
        pushed = (tone / 2).astype(np.float32) if samples is None else samples
        self.playout.push(self._frame, pushed, round(at_s * 1e9))
        last_pull_s = (self._pulls - 1) * self._period_s + 0.0077
        self.levels.append(self.playout.level_s - (at_s - last_pull_s))
        self._frame += 1

    @property
    def _period_s(self) -> float:
        return self.rate // 50 / (self.rate * (1 + self.ppm * 1e-6))

    def play_until(self, at_s: float) -> None:
        block = self.rate // 50
        while (now_s := self._pulls * self._period_s + 0.0077) < at_s:
            pulled = self.playout.pull(block, round(now_s * 1e9))
            if self.keep:
                self.heard.append(pulled)
            self._pulls += 1


def test_what_comes_in_time_is_played_as_it_is() -> None:
    room = Room(Playout(RATE, RATE, Reserve(min_s=0.08)))
    for _ in range(50):
        room.frame()

    heard = np.concatenate(room.heard)
    begin = int(np.argmax(np.abs(heard) > 0.02)) - 1
    want = np.sin(2 * np.pi * 200 * np.arange(40 * FRAME) / RATE) / 2
    np.testing.assert_allclose(heard[begin + 50 :][: want.size - 100], want[50:-50], atol=2e-3)
    assert room.playout.counters.underruns == 0
    assert room.playout.drift_ppm == 0


@pytest.mark.parametrize(("ppm", "minutes"), [(200, 60), (-200, 10), (37, 10)])
def test_drift_leaves_the_latency_where_it_is(ppm: float, minutes: int) -> None:
    frames = round(minutes * 60 / FRAME_S)
    room = Room(Playout(RATE, RATE, Reserve(min_s=0.08)), ppm=ppm, keep=False)
    for _ in range(frames):
        room.frame(samples=SILENCE)

    levels = np.array(room.levels[frames // 4 :])
    assert levels.max() - levels.min() < 0.080
    means = levels[: levels.size // 20 * 20].reshape(20, -1).mean(axis=1)
    assert means.max() - means.min() < 0.005
    assert room.playout.drift_ppm == pytest.approx(ppm, abs=3)
    assert room.playout.counters.underruns == 0
    assert room.playout.counters.dropped_samples == 0


SILENCE = np.zeros(FRAME, np.float32)


def test_the_reserve_shrinks_while_frames_come_in_time() -> None:
    room = Room(Playout(RATE, RATE), keep=False)
    for _ in range(2000):
        room.frame(samples=SILENCE)

    assert room.playout.target_s == pytest.approx(0.02)
    assert room.levels[-1] < room.levels[10] - 0.035
    assert room.playout.counters.underruns == 0


def test_late_frames_make_it_grow_within_bounds() -> None:
    room = Room(Playout(RATE, RATE, Reserve(0.02, 0.02, 0.06)), keep=False)
    for i in range(400):
        room.frame(late_s=0.1 + i / 2000 if i % 40 == 39 else 0.0, samples=SILENCE)

    assert 1 <= room.playout.counters.underruns <= 10
    assert room.playout.target_s == pytest.approx(0.06)


def test_a_gap_is_a_fade_not_a_click() -> None:
    room = Room(Playout(RATE, RATE, Reserve(0.02, 0.02)))
    for i in range(30):
        room.frame(late_s=0.5 if i == 15 else 0.0)

    heard = np.concatenate(room.heard)
    steepest = 2 * np.pi * 200 / RATE / 2
    assert np.abs(np.diff(heard)).max() < steepest + 0.5 / (0.005 * RATE) + 1e-3
    assert room.playout.counters.underruns == 1
    assert 0.3 < room.playout.counters.gap_samples / RATE < 0.6


def test_running_dry_at_the_end_is_no_underrun() -> None:
    room = Room(Playout(RATE, RATE))
    for _ in range(10):
        room.frame()
    room.playout.finish()
    room.play_until(3.0)

    assert room.playout.is_empty
    assert room.playout.counters.underruns == 0


def test_nothing_is_played_and_nothing_counted_before_the_first_frame() -> None:
    playout = Playout(RATE, RATE)

    assert not playout.pull(480, 0).any()
    assert playout.counters.underruns == 0


def test_a_burst_is_bounded_and_counted() -> None:
    playout = Playout(RATE, RATE, Reserve(max_s=0.4))
    for frame in range(100):
        playout.push(frame, SILENCE, 0)

    assert playout.level_s <= 1.4
    assert playout.counters.dropped_samples > 0
    kept = round(playout.level_s * RATE)
    pushed = 100 * FRAME + round(0.08 * RATE)
    assert abs(kept + playout.counters.dropped_samples - pushed) < 0.01 * pushed


def test_frames_are_told_when_they_become_audible() -> None:
    told: list[tuple[int, int]] = []
    playout = Playout(RATE, 48_000, on_audible=lambda frame, ns: told.append((frame, ns)))
    room = Room(playout, rate=48_000)
    for _ in range(6):
        room.frame()

    assert [frame for frame, _ in told] == list(range(len(told)))
    assert len(told) >= 4
    gaps_ms = np.diff([ns / 1e6 for _, ns in told])
    assert ((gaps_ms > 59) & (gaps_ms < 101)).all()


@pytest.mark.parametrize("bounds", [(0.08, 0.1, 0.4), (0.5, 0.1, 0.4), (0.08, -0.1, 0.4)])
def test_impossible_bounds_are_refused(bounds: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError) as error:
        Reserve(*bounds)

    assert "0 <= buffer_min_ms <= buffer_ms <= buffer_max_ms" in str(error.value)
