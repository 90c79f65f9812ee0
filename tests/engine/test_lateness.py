"""What an engine says of its lateness: four causes, told apart by numbers alone."""

from __future__ import annotations

import pytest

from moshi_pipe.engine.lateness import Lateness, TickTimes, Trend

MS = 1_000_000
FRAME = 80 * MS


def run(durations_ms: list[float], gaps_ms: list[float] | None = None) -> Lateness:
    """One session; a frame is delivered every 80 ms or as ``gaps_ms`` says, and taken at once."""
    lateness = Lateness(FRAME, FRAME)
    now_ns = 0
    for frame, duration_ms in enumerate(durations_ms):
        now_ns += round((gaps_ms[frame] if gaps_ms else 80) * MS)
        end_ns = now_ns + round(duration_ms * MS)
        nodes = ((now_ns, end_ns),)
        lateness.add(TickTimes(now_ns, end_ns, nodes, (("s", frame, now_ns),)))
    return lateness


def test_in_time_is_steady() -> None:
    verdict = run([30] * 500).verdict()

    assert (verdict.cause, verdict.in_time) == ("steady", True)
    assert verdict.text == "in time: half of all ticks took 30 ms or less, a frame lasts 80 ms"


@pytest.mark.parametrize(
    ("durations_ms", "cause"),
    [
        ([90] * 500, "steady"),
        ([20 + i * 0.2 for i in range(500)], "growing"),
        (([30] * 19 + [95]) * 25, "contended"),
    ],
)
def test_late_ticks_have_a_cause(durations_ms: list[float], cause: str) -> None:
    verdict = run(durations_ms).verdict(dropped=3)

    assert (verdict.cause, verdict.in_time) == (cause, False)
    assert "3 dropped" in verdict.text


def test_ticks_in_time_leave_the_device() -> None:
    lateness = run([20] * 300, ([80.0] * 9 + [200.0]) * 30)

    verdict = lateness.verdict(underruns=2)

    assert verdict.cause == "device"
    assert verdict.text == (
        "2 underruns; ticks were in time; 30 frames came from the device half a frame late or more"
    )


def test_every_late_frame_is_told_with_its_excess() -> None:
    lateness = Lateness(FRAME, 50 * MS)
    times = TickTimes(
        100 * MS, 160 * MS, ((100 * MS, 160 * MS),), (("a", 4, 90 * MS), ("b", 7, 120 * MS))
    )

    assert lateness.add(times) == [("a", 4, 20 * MS)]
    assert lateness.num_late == 1
    assert times.model_ns == 60 * MS


def test_a_trend_keeps_its_ends_and_its_size() -> None:
    trend = Trend()
    assert trend.ends() is None
    for value in range(100_000):
        trend.add(value)

    ends = trend.ends()

    assert ends is not None
    assert ends[0] == pytest.approx(12_500, rel=0.15)
    assert ends[1] == pytest.approx(87_500, rel=0.15)
    assert len(trend._means) < 64
