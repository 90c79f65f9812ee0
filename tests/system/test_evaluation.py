"""The page on evaluation: its commands run, its table is complete; a trained model is measured."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
from support.duplex_bench import make_bench
from support.speech import needs_espeak

from moshi_pipe.metrics.conversation import (
    Conversation,
    turn_events,
    turn_metrics,
    word_metrics,
)
from moshi_pipe.metrics.duplex_bench import Answer, score

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]

pytestmark = pytest.mark.system


def run(line: str, folder: Path) -> None:
    words = shlex.split(line)
    assert words[0] == "moshi-pipe"
    done = subprocess.run(
        [sys.executable, "-m", "moshi_pipe", *words[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def record(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def values(path: Path) -> dict[str, Any]:
    return {name: one["value"] for name, one in record(path)["metrics"].items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the page's commands find where they run: a recording, and a little of the benchmark."""
    shutil.copy(ROOT / "examples" / "three_plus_four.wav", tmp_path)
    if shutil.which("espeak-ng"):
        bench = make_bench(tmp_path / "all")
        for task in ("candor_turn_taking", "user_interruption"):
            shutil.copytree(bench.root / task, tmp_path / "DATA" / task)
    return tmp_path


def test_the_page_has_its_commands() -> None:
    assert len(COMMANDS) == 4
    assert all(line.startswith("moshi-pipe model=nano ") for line in COMMANDS)


def test_a_trained_model_answers_after_the_question(folder: Path) -> None:
    run(COMMANDS[0], folder)

    found = values(folder / "moshi-out" / "three_plus_four.metrics.json")
    assert found["user_turns"] == 1
    assert found["model_turns"] == 1
    assert 0.1 < found["response_latency_s"] < 1.5
    assert found["take_over_rate"] == 1
    assert found["overlaps"] == 0
    assert 1 < found["user_speech_s"] < 2.5
    assert 1 < found["model_speech_s"] < 3
    assert found["model_words"] == 5
    assert 100 < found["model_articulation_rate_wpm"] < 300
    assert 0.5 < found["text_padding_rate"] < 1
    assert 0 < found["text_entropy_bits"] < found["semantic_code_entropy_bits"] < 11
    assert 6 < found["duration_s"] < 9  # it ended when the answer had
    said = record(folder / "moshi-out" / "three_plus_four.metrics.json")["words"]["model"]
    assert [word for _, _, word in said] == ["three", "plus", "four", "is", "seven"]


def test_its_codec_is_measured(folder: Path) -> None:
    run(COMMANDS[1], folder)

    found = values(folder / "moshi-out" / "three_plus_four.metrics.json")
    assert 1 < found["log_mel_distance_db"] < 20
    assert found["stoi"] is None or 0.6 < found["stoi"] < 1
    assert found["pesq"] is None or 1 <= found["pesq"] < 4.64


@needs_espeak
def test_the_benchmark_is_run(folder: Path) -> None:
    run(COMMANDS[2], folder)

    answers = folder / "answers"
    for task, names in (
        ("candor_turn_taking", ("input.wav",)),
        ("user_interruption", ("input.wav", "clean_input.wav")),
    ):
        for name in names:
            given = soundfile.info(folder / "DATA" / task / "1" / name)
            made_name = name.replace("input.wav", "output.wav")
            made = soundfile.info(answers / task / "1" / made_name)
            assert (made.samplerate, made.frames) == (given.samplerate, given.frames)
            chunks = record(answers / task / "1" / made_name.replace(".wav", ".json"))["chunks"]
            assert all(len(chunk["timestamp"]) == 2 and chunk["text"] for chunk in chunks)
    found = values(answers / "candor_turn_taking-1.metrics.json")
    assert found["fdb_take_over"] in (0, 1)
    assert (found["fdb_latency_s"] is None) == (found["fdb_take_over"] == 0)


def test_silence_comes_before_and_after(folder: Path) -> None:
    run(COMMANDS[3], folder)

    session = record(folder / "moshi-out" / "three_plus_four.session.json")
    found = record(folder / "moshi-out" / "three_plus_four.metrics.json")
    assert session["greeting_s"] == 0  # this model waits to be asked
    assert session["audio_s"] == pytest.approx(found["duration_s"] + 2, abs=1e-3)
    assert 0.3 < found["turns"]["user"][0][0] < 0.7
    assert found["metrics"]["response_latency_s"]["value"] > 0


def test_every_metric_is_defined_on_the_page_and_nothing_else() -> None:
    table = PAGE.partition("## Definitions")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    defined = {name for row in rows for name in re.findall(r"`(\w+)`", row)}

    heard = Conversation(9.0, [], [], [], [])
    made = {*turn_metrics(heard, turn_events(heard)), *word_metrics(heard)}
    for kind in ("pause_handling", "smooth_turn_taking", "backchannel", "overlap"):
        for event_s in ((1.0, 2.0), None):
            made |= set(score(Answer(kind, event_s, 9.0, [], [], [], [1.0, 1.0])))
    made |= {"text_padding_rate", "text_entropy_bits", "semantic_code_entropy_bits"}
    made |= {"code_entropy_bits", "code_usage", "log_mel_distance_db", "si_sdr_db", "stoi", "pesq"}
    assert defined == made
