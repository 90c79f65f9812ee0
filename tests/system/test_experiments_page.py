"""The commands of docs/experiments.md, as they stand there, one after the other."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if line.startswith("moshi-pipe ")
]
SECONDS = 0.8  # of the question, so that 30 runs do not take long


def launcher_is_there(command: str) -> bool:
    match = re.search(r"hydra/launcher=([a-z]+)", command)
    if match is None:
        return True
    try:
        return importlib.util.find_spec(f"hydra_plugins.hydra_{match[1]}_launcher") is not None
    except ModuleNotFoundError:
        return False


def test_every_command_works(tmp_path: Path) -> None:
    samples, rate = soundfile.read(ROOT / "examples" / "question.wav")
    soundfile.write(tmp_path / "question.wav", samples[: round(SECONDS * rate)], rate)
    own = next(block for language, block in BLOCKS if language == "yaml")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "candidates.yaml").write_text(own, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)  # a cluster of its own

    assert len(COMMANDS) >= 7
    for command in filter(launcher_is_there, COMMANDS):
        words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", "moshi_pipe", *words[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"

    for page in ("report.html", "report.csv", "both.html"):
        assert (tmp_path / page).is_file()
    assert len(list((tmp_path / "candidates").glob("*/run.json"))) == 20
