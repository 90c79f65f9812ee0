"""Numbers of the report against answers known beforehand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from support.runs import RATE, voice, write_run

from moshi_pipe.report_page.collect import RunPart, Sound, collect
from moshi_pipe.report_page.compare import (
    Spread,
    differing_keys,
    format_number,
    group_runs,
    shown_name,
    spread,
)
from moshi_pipe.report_page.conversation import hear
from moshi_pipe.report_page.sound import (
    FORMATS,
    encode,
    load,
    loudness,
    overlap_s,
    responses,
    turns_by_loudness,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_loudness_of_a_sine_is_three_decibels_below_its_peak() -> None:
    level_T = loudness(voice([(0.0, 0.8)], 0.8, level=1.0), RATE)

    np.testing.assert_allclose(level_T, -3.0103, atol=0.05)


def test_silence_is_at_the_floor() -> None:
    assert set(loudness(np.zeros(RATE, dtype=np.float32), RATE)) == {-60.0}


def test_turns_bridge_pauses_and_leave_clicks_out() -> None:
    spans = [(0.4, 1.2), (1.44, 2.0), (3.2, 3.28), (4.0, 4.8)]

    turns = turns_by_loudness(loudness(voice(spans, 5.6), RATE))

    np.testing.assert_allclose(turns, [(0.4, 2.0), (4.0, 4.8)], atol=1e-6)


def test_overlap_is_when_both_speak() -> None:
    assert overlap_s([(0, 2), (3, 4)], [(1.5, 3.5)]) == pytest.approx(1.0)


def test_a_response_is_the_next_begin_after_the_user_ends() -> None:
    user = [(0.0, 1.0), (2.0, 3.0), (5.0, 6.0), (8.0, 9.0)]
    model = [(1.3, 1.6), (2.8, 4.0), (6.5, 7.0)]

    # The second turn is ended while the model speaks; the last has no answer.
    assert responses(user, model) == pytest.approx([0.3, 0.5])


def test_a_run_without_metrics_is_measured_by_loudness(tmp_path: Path) -> None:
    write_run(
        tmp_path / "a", user=[(0.0, 2.0)], model=[(0.8, 1.2), (2.4, 4.0)], words=[(2.4, 3.0, "hi")]
    )
    (run,) = collect([tmp_path / "a"])

    heard = hear(run.sessions[0])

    assert heard.by_loudness
    assert heard.measures["user speaks, by loudness"] == pytest.approx(2.0)
    assert heard.measures["model speaks, by loudness"] == pytest.approx(2.0)
    assert heard.measures["overlap, by loudness"] == pytest.approx(0.4)
    assert heard.measures["response, by loudness"] == pytest.approx(0.4)
    assert heard.measures["model level"] == pytest.approx(
        20 * math.log10(0.3 / math.sqrt(2)), abs=0.1
    )
    assert heard.measures["words"] == 1


def test_measured_turns_are_taken_as_they_are(tmp_path: Path) -> None:
    turns = {"user": [[0.0, 1.0]], "model": [[1.5, 2.0]]}
    write_run(tmp_path / "a", metrics={"metrics": {}, "vad": {}, "turns": turns})
    (run,) = collect([tmp_path / "a"])

    heard = hear(run.sessions[0])

    assert not heard.by_loudness
    assert heard.turns == {"user": [(0.0, 1.0)], "model": [(1.5, 2.0)]}
    assert heard.responses == [0.5]
    assert set(heard.measures) == {"model level", "words"}


def test_turns_that_nobody_listened_for_are_measured_by_loudness(tmp_path: Path) -> None:
    metrics = {"metrics": {"text_entropy_bits": 1}, "turns": {"user": [], "model": []}}
    write_run(tmp_path / "a", user=[(0.0, 2.0)], model=[(2.4, 4.0)], metrics=metrics)
    (run,) = collect([tmp_path / "a"])

    heard = hear(run.sessions[0])

    assert heard.by_loudness
    assert heard.responses == pytest.approx([0.4])


def test_seeds_are_spread_and_all_else_is_a_configuration(tmp_path: Path) -> None:
    for temperature in (0.5, 0.8):
        for seed in (1, 2, 3):
            value = temperature + seed
            write_run(
                tmp_path / "s" / f"{temperature}-{seed}",
                seed=seed,
                temperature=temperature,
                metrics={"metrics": {"score": value}},
            )

    runs = collect([tmp_path / "s"])
    keys = differing_keys(runs)
    groups = group_runs(runs, keys)

    assert keys == ["sampling.temperature"]
    assert [(group.letter, group.values[keys[0]], len(group.runs)) for group in groups] == [
        ("A", "0.5", 3),
        ("B", "0.8", 3),
    ]
    assert spread(groups[0].runs, "score").mean == pytest.approx(2.5)
    assert spread(groups[0].runs, "score").sd == pytest.approx(1.0)  # of 1.5, 2.5, 3.5: n - 1
    assert str(spread(groups[0].runs, "score")) == "2.5 ± 1.0"


@pytest.mark.parametrize(
    ("word", "keys"),
    [
        ("engine.late", ["engine.late"]),
        ("engine", ["engine.late"]),
        ("engine.admit_ms", []),
        ("seed", []),
    ],
)
def test_pace_is_a_configuration_where_a_sweep_names_it(
    tmp_path: Path, word: str, keys: list[str]
) -> None:
    runs = [
        RunPart(
            tmp_path,
            late,
            {},
            {"seed": seed, "engine.late": late},
            {"overrides": [f"seed={seed}", f"{word}=x"]},
        )
        for seed, late in ((1, "fail"), (2, "drop"))
    ]

    assert differing_keys(runs) == keys


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((), "\N{EN DASH}"),
        ((0.12345,), "0.123"),
        ((-22.0, -22.2), "\N{MINUS SIGN}22.10 ± 0.14"),
        ((1000.0, 1020.0), "1010 ± 14"),
        ((2.0, 2.0), "2.00 ± 0.00"),
        ((0.0,), "0"),
    ],
)
def test_a_spread_shows_two_digits_of_its_deviation(values: tuple[float, ...], shown: str) -> None:
    assert str(Spread(values)) == shown


@pytest.mark.parametrize(
    ("metric", "unit", "shown"),
    [
        ("response_latency_s", "s", ("response latency", "s")),
        ("model_speaking_rate_wpm", "words/min", ("model speaking rate", "words/min")),
        ("user_turns", "turns", ("user turns", "")),
        ("words", "", ("words", "")),
        ("_s", "s", ("_s", "")),
        ("log_s", "dB", ("log s", "dB")),
        ("overlap, by loudness", "s", ("overlap, by loudness", "s")),
    ],
)
def test_a_name_does_not_say_its_unit_twice(metric: str, unit: str, shown: tuple[str, str]) -> None:
    assert shown_name(metric, unit) == shown


def test_numbers_show_three_digits() -> None:
    numbers = [0.00001, 0.0123, 1.5, 12.34, 123.4, 12345.6, 80.0]
    shown = ["0.0000", "0.0123", "1.50", "12.3", "123", "12346", "80"]
    assert [format_number(number) for number in numbers] == shown


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rate", [24_000, 11_025])
def test_what_is_embedded_plays_for_as_long(form: str, rate: int, tmp_path: Path) -> None:
    samples = np.interp(
        np.arange(2 * rate) / rate, np.arange(2 * RATE) / RATE, voice([(0, 2)], 2.0)
    )
    path = tmp_path / "embedded"

    path.write_bytes(encode(samples.astype(np.float32), rate, form))

    assert soundfile.info(path).duration == pytest.approx(2.0, abs=0.1)


def test_a_part_of_a_channel_is_cut_out(tmp_path: Path) -> None:
    both = np.stack([voice([(0, 4)], 4.0), voice([(1, 2)], 4.0)], axis=1)
    soundfile.write(tmp_path / "both.wav", both, RATE)

    samples, rate = load(Sound(tmp_path / "both.wav", channel=1, start_s=1.5, duration_s=1.0), 60)

    assert (len(samples), rate) == (RATE, RATE)
    assert np.abs(samples[: RATE // 2]).max() > 0.25
    assert not samples[RATE // 2 :].any()
