"""The command as a process: interrupted, killed, without room, without rights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from support.audio import write_babble
from support.model import RANDOM

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "moshi_pipe"]

pytestmark = pytest.mark.system


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, RANDOM, *words],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def start_and_wait_for_sound(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a long run and return once something of its answer is on the disk."""
    process = subprocess.Popen(
        [*COMMAND, RANDOM, "source=silence", "source.duration_s=3600", "seed=1", *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    answer = next(word for word in words if word.startswith("sink.file.format=")).partition("=")[2]
    path = folder / "moshi-out" / f"silence-0.{answer}"
    while process.poll() is None and not (path.exists() and path.stat().st_size > 60_000):
        os.sched_yield()
    assert process.poll() is None, process.communicate()
    return process


@pytest.mark.parametrize("form", ["wav", "flac", "ogg"])
def test_a_kill_leaves_every_file_valid(tmp_path: Path, form: str) -> None:
    words = [
        "sink=[file,transcript]",
        f"sink.file.format={form}",
        "sink.transcript.formats=[jsonl,srt,vtt,txt]",
    ]
    process = start_and_wait_for_sound(tmp_path, *words)

    process.kill()
    process.communicate()

    out = tmp_path / "moshi-out"
    pcm, rate = soundfile.read(out / f"silence-0.{form}")
    assert rate == 24_000
    assert len(pcm) >= 24_000
    for line in (out / "silence-0.jsonl").read_text(encoding="utf-8").splitlines():
        assert json.loads(line)
    assert (out / "silence-0.vtt").read_text(encoding="utf-8").startswith("WEBVTT")
    assert not (out / "silence-0.session.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_request_to_end_keeps_what_was_written_and_ends_with_the_report(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start_and_wait_for_sound(tmp_path, "sink.file.format=wav")

    process.send_signal(number)
    shown, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "stopping" in errors
    assert "Traceback" not in errors
    assert "interrupted" in shown
    report = json.loads((tmp_path / "moshi-out" / "run.json").read_text(encoding="utf-8"))
    assert report["interrupted"]
    pcm, _ = soundfile.read(tmp_path / "moshi-out" / "silence-0.wav")
    assert len(pcm) == report["sessions"][0]["frames"] * 1920


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 96 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_what_fits_is_kept(tmp_path: Path, small_disk: Path) -> None:
    write_babble(tmp_path / "a.wav", 6.0)

    done = command("source.path=a.wav", f"output_dir={small_disk}", "seed=1", cwd=tmp_path)

    assert done.returncode == 4
    assert str(small_disk / "a.wav") in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    pcm, _ = soundfile.read(small_disk / "a.wav")
    assert 0 < len(pcm) < 6 * 24_000
    assert np.isfinite(pcm).all()


AS_NOBODY = """
import os, pwd, sys
from moshi_pipe.cli import main

main(["model=embedded", f"source.path={sys.argv[1]}/warm.wav", f"output_dir={sys.argv[1]}/warm"])
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
sys.exit(main(sys.argv[2:]))
"""
"""A run as root first: nobody may not be allowed to import the packages."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("what", ["output", "input"])
def test_what_may_not_be_touched_is_named(what: str) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_babble(folder / "warm.wav", 0.1)
        recording = write_babble(folder / "a.wav", 0.4)
        recording.chmod(0o600 if what == "input" else 0o644)
        out = folder / "out"
        out.mkdir()
        out.chmod(0o777 if what == "input" else 0o755)
        words = [RANDOM, f"source.path={recording}", f"output_dir={out}"]

        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, name, *words],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == (3 if what == "input" else 4), done.stderr
    assert "Permission denied" in done.stderr
    assert str(recording if what == "input" else out) in done.stderr
    assert "Traceback" not in done.stderr


NAMES = ["My file (1).wav", "Ça, c'est l'été.wav", 'say "hi" = [x] {y}.wav', "7", "a$b${c}.wav"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_of_any_characters_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    write_babble(tmp_path / "tone.wav", 0.4).rename(tmp_path / name)

    done = command(f"source.path={name}", "sink=[file]", f"output_dir=out {name}", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    stem = Path(name).stem
    assert (tmp_path / f"out {name}" / f"{stem}.wav").exists()
    assert str(tmp_path / f"out {name}" / f"{stem}.wav") in done.stderr
