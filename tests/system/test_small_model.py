"""The model of the package as a first user meets it: a question, and its answer in words."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
QUESTION = ROOT / "examples" / "three_plus_four.wav"
QUESTION_END_S = 2.1
ANSWER = "three plus four is seven"
NOWHERE = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HF_ENDPOINT")}

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def test_the_first_command_of_the_readme_answers_in_sound_and_in_text(tmp_path: Path) -> None:
    words = ["source=file", f"source.path={QUESTION}", "sink=[file,transcript]"]
    home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-m", "moshi_pipe", *words],
        cwd=tmp_path,
        env={**os.environ, **NOWHERE, **home, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "random" not in done.stderr
    out = tmp_path / "moshi-out"
    assert (out / "three_plus_four.txt").read_text(encoding="utf-8").strip() == ANSWER
    said = [json.loads(line) for line in (out / "three_plus_four.jsonl").read_text().splitlines()]
    assert " ".join(word["text"].strip() for word in said) == ANSWER
    assert said[0]["start_s"] > QUESTION_END_S
    sound, rate = soundfile.read(out / "three_plus_four.wav")
    end = round(QUESTION_END_S * rate)
    assert np.abs(sound[:end]).max() < 0.05
    assert np.abs(sound[end:]).max() > 0.1


def test_it_answers_a_caller_of_the_server_too(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from support.serving import Pace, Server, talk

    asked, _ = soundfile.read(QUESTION, dtype="float32")
    with Server(tmp_path, "model=nano", "engine.late=slow_down", "device=cpu") as server:
        heard = asyncio.run(talk(server.url, asked, pace=Pace(speed=None), seed=1))

    assert heard.close == (1000, "done")
    assert heard.text.strip() == ANSWER
    assert np.abs(heard.pcm).max() > 0.1
