"""Sink ``metrics`` over conversations that are drawn by hand."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.speech import RATE, tone
from support.tokens import PAD, START, WordTokenizer, ids

from moshi_pipe.errors import ConfigError, OutputError
from moshi_pipe.graph.format import Audio, Codes, Format, Text
from moshi_pipe.graph.node import SessionEnd, SessionInfo
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.metrics_sink import MetricsSink
from moshi_pipe.nodes.options import MetricsSinkOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FRAME = 1920
FORMATS: dict[str, Format] = {
    "user_audio": Audio(RATE, FRAME),
    "audio": Audio(RATE, FRAME),
    "text": Text(300, Fraction(25, 2)),
    "codes": Codes(2, 8, Fraction(25, 2)),
}
STEP_S = 0.011


def session(folder: Path, *outputs: str, **changes: Any) -> SessionInfo:
    formats = {name: FORMATS[name] for name in outputs or FORMATS}
    info = SessionInfo(
        "talk", {"stem": "talk"}, folder, formats, FRAME / RATE, 5, tokenizer=WordTokenizer()
    )
    return replace(info, **changes)


def play(
    info: SessionInfo,
    streams: Mapping[str, Any],
    *,
    lost: frozenset[int] = frozenset(),
    end: SessionEnd | None = None,
    **options: Any,
) -> Mapping[str, Any]:
    """Write all streams frame by frame, without those frames that are lost, and close."""
    sink = MetricsSink(MetricsSinkOptions(**{"vad": "energy", **options}))

    async def go() -> Mapping[str, Any]:
        await sink.open(info)
        frames = 0
        for frame in range(10_000):
            at = slice(frame * FRAME, (frame + 1) * FRAME)
            row = {}
            for name, stream in streams.items():
                audio = name in ("audio", "user_audio")
                if len(stream) >= (at.stop if audio else frame + 1):
                    row[name] = stream[None, at] if audio else stream[frame]
            if not row:
                break
            frames += 1
            for name, value in row.items():
                if frame not in lost and name in sink.optional:
                    await sink.write(Packet(name, frame, frame * 80_000_000, value))
        return await sink.close(end or SessionEnd(frames))

    return asyncio.run(go())


def written(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "talk.metrics.json").read_text("utf-8"))
    return record


def values(folder: Path) -> dict[str, float | None]:
    return {name: one["value"] for name, one in written(folder)["metrics"].items()}


def near(*spans: tuple[float, float]) -> list[Any]:
    return [pytest.approx(list(span), abs=STEP_S) for span in spans]


def test_both_sides_are_measured(tmp_path: Path) -> None:
    sides = {"user_audio": tone(8, (1, 2), (5, 6)), "audio": tone(8, (2.5, 4), (5.5, 7))}

    report = play(session(tmp_path), sides, turns=True)

    record = written(tmp_path)
    assert report == {
        "sink": "metrics",
        "files": [str(tmp_path / "talk.metrics.json")],
        "metrics": len(record["metrics"]),
    }
    assert (record["session"], record["seed"], record["duration_s"]) == ("talk", 5, 8)
    assert record["turns"]["user"] == record["speech"]["user"] == near((1, 2), (5, 6))
    assert record["turns"]["model"] == near((2.5, 4), (5.5, 7))
    assert record["events"]["responses"] == near((2, 2.5))
    assert record["events"]["overlaps"] == near((5.5, 6))
    found = values(tmp_path)
    assert found["response_latency_s"] == pytest.approx(0.5, abs=2 * STEP_S)
    assert found["take_over_rate"] == 1
    assert found["overlap_s"] == pytest.approx(0.5, abs=2 * STEP_S)
    assert record["metrics"]["response_latency_s"]["unit"] == "s"
    assert record["vad"]["detector"] == "energy"


def test_words_and_their_rates(tmp_path: Path) -> None:
    spoken = ids(*[PAD] * 25, START, "▁Hello", PAD, START, "▁New", "▁day", *[PAD] * 30)
    voice_N = tone(4.8, (2, 3))

    play(session(tmp_path), {"text": spoken, "audio": voice_N}, words=True)

    assert written(tmp_path)["words"]["model"] == [
        [2.08, 2.16, "Hello"],
        [2.32, 2.4, "New"],
        [2.4, 2.48, "day"],
    ]
    assert values(tmp_path) == {
        "model_words": 3,
        "model_speaking_rate_wpm": pytest.approx(450),
        "model_articulation_rate_wpm": pytest.approx(180, abs=3),
    }


def test_tokens_and_codes_are_counted(tmp_path: Path) -> None:
    codes = [np.array([i % 4, 7]) for i in range(8)]

    streams = {"text": ids(*[PAD] * 6, START, "▁Hello"), "codes": codes}
    play(session(tmp_path), streams, tokens=True)

    assert values(tmp_path) == {
        "text_padding_rate": 0.75,
        "text_entropy_bits": pytest.approx(1.061278),
        "semantic_code_entropy_bits": 2,
        "code_entropy_bits": 1,
        "code_usage": 5 / 16,
    }
    assert not {"turns", "speech", "events", "vad"} & set(written(tmp_path))  # nobody listened


def test_a_round_trip_is_measured(tmp_path: Path) -> None:
    given_N = tone(2, (0, 2))
    made_N = 0.5 * given_N + 0.05 * np.roll(given_N, 20)

    play(
        session(tmp_path, "user_audio", "audio"),
        {"user_audio": given_N, "audio": made_N},
        codec=True,
    )

    found = values(tmp_path)
    assert found["si_sdr_db"] == pytest.approx(20, abs=0.1)
    assert found["log_mel_distance_db"] is not None
    assert found["log_mel_distance_db"] > 0.5
    assert {"stoi", "pesq"} < set(found)


def test_frames_of_a_round_trip_that_were_lost_are_left_out(tmp_path: Path) -> None:
    given_N = tone(2, (0, 2))

    sides = {"user_audio": given_N, "audio": given_N}
    info = session(tmp_path, "user_audio", "audio")
    play(info, sides, codec=True, lost=frozenset(range(5, 9)))

    assert values(tmp_path)["log_mel_distance_db"] == 0


@pytest.mark.parametrize("outputs", [("user_audio",), ("user_audio", "audio", "text")])
def test_what_is_no_round_trip_is_refused(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^metric=codec compares"):
        play(session(tmp_path, *outputs), {}, codec=True)


def test_frames_that_were_dropped_are_silence_and_times_stay_right(tmp_path: Path) -> None:
    sides = {"user_audio": tone(6, (0, 3), (4.5, 5.5)), "audio": tone(6)}

    play(session(tmp_path), sides, turns=True, lost=frozenset(range(13, 38)))

    assert written(tmp_path)["speech"]["user"] == near((0, 1.04), (4.5, 5.5))


def test_times_are_those_of_the_input_without_lead_and_padding(tmp_path: Path) -> None:
    sides = {"user_audio": tone(4, (0.5, 0.9), (1.5, 4)), "audio": tone(4)}
    info = session(tmp_path, lead_s=1.0)

    play(info, sides, turns=True, end=SessionEnd(50, padding_s=0.05))

    record = written(tmp_path)
    assert (record["duration_s"], record["lead_s"]) == (2.95, 1.0)
    assert record["speech"]["user"] == near((0.5, 2.95))


def test_a_graph_without_a_voice_gives_the_user_alone(tmp_path: Path) -> None:
    play(session(tmp_path, "user_audio"), {"user_audio": tone(2, (0.5, 1))}, turns=True, words=True)

    found = values(tmp_path)
    assert found["user_turns"] == 1
    assert "take_over_rate" not in found
    assert written(tmp_path)["turns"] == written(tmp_path)["speech"] == {"user": near((0.5, 1))}


def test_a_metric_that_the_graph_has_nothing_for_is_told(tmp_path: Path) -> None:
    report = play(
        session(tmp_path, "user_audio", "codes"),
        {"user_audio": tone(2, (0.5, 1)), "codes": [np.array([0, 1])] * 25},
        turns=True,
        words=True,
        tokens=True,
    )

    assert report["warnings"] == [
        "metric=words measured nothing: the graph makes none of text, user_text"
    ]
    assert {"user_turns", "code_usage"} < set(values(tmp_path))


def test_pieces_of_a_remote_model_are_words_but_no_tokens(tmp_path: Path) -> None:
    play(session(tmp_path), {"text": [-1, -2, -3]}, tokens=True, words=True)

    found = values(tmp_path)
    assert found["text_padding_rate"] is None


def test_a_session_that_never_began_leaves_no_file(tmp_path: Path) -> None:
    report = play(session(tmp_path), {}, turns=True, end=SessionEnd(0, complete=False))

    assert report["files"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_was_cut_short_is_measured_as_far_as_it_went(tmp_path: Path) -> None:
    sides = {"user_audio": tone(2, (0.5, 2)), "audio": tone(2)}

    play(session(tmp_path), sides, turns=True, end=SessionEnd(25, complete=False))

    assert values(tmp_path)["user_speech_s"] == pytest.approx(1.5, abs=STEP_S)


def test_a_place_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "talk.metrics.json" / "a folder").mkdir(parents=True)

    with pytest.raises(OutputError, match="cannot write"):
        play(session(tmp_path), {"user_audio": tone(1)}, turns=True)

    assert [path.name for path in tmp_path.iterdir()] == ["talk.metrics.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vad": "loud"}, r"^sink\.metrics\.vad has no such value"),
        ({"threshold": 1.0}, r"^sink\.metrics\.threshold cannot be 1\.0"),
        ({"min_silence_ms": -1}, r"^sink\.metrics\.min_silence_ms cannot be -1"),
        ({"min_speech_ms": -1}, r"^sink\.metrics\.min_speech_ms cannot be -1"),
        ({"turns": False}, "^sink=metrics is to measure nothing"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MetricsSink(MetricsSinkOptions(**{"turns": True, **changes}))


def test_a_graph_with_nothing_to_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^sink=metrics has nothing to measure"):
        play(session(tmp_path, "user_audio"), {}, tokens=True)


def test_what_lists_the_sink_imports_nothing_heavy() -> None:
    code = (
        "import sys, moshi_pipe.nodes.metrics_sink\n"
        "print([m for m in ('numpy', 'torch', 'silero_vad') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
