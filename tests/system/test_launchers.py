"""Sweeps with every launcher: killed, continued, and equal to those in one process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.audio import write_babble

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

COMMAND = [sys.executable, "-m", "moshi_pipe", "-m"]
GRID = ["seed=1,2,3", "sampling.temperature=0.4,0.8", "sampling.top_k=20,250"]
NUM_CELLS = 12
KILL_AFTER = 4  # finished cells

LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=3"],
    "ray": [
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.address=local",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ],
}
PACKAGES = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "submitit": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}


def is_installed(launcher: str) -> bool:
    try:
        return launcher not in PACKAGES or importlib.util.find_spec(PACKAGES[launcher]) is not None
    except ModuleNotFoundError:
        return False


def words(folder: Path, launcher: str, ray_dir: str = "") -> list[str]:
    chosen = ["model=embedded", "sink=[file,transcript]", f"source.path={folder.parent}/a.wav"]
    more = [f"+hydra.launcher.ray.init._temp_dir={ray_dir}"] if launcher == "ray" else []
    return [*COMMAND, *chosen, f"output_dir={folder}", *GRID, *LAUNCHERS[launcher], *more]


def environment() -> dict[str, str]:
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    return {**os.environ, "OMP_NUM_THREADS": "1", **quiet}


def finished(folder: Path) -> dict[str, int]:
    """When each finished cell's report was written, by folder."""
    reports = [path for path in folder.glob("*/run.json") if read(path).get("exit_code") == 0]
    return {path.parent.name: path.stat().st_mtime_ns for path in reports}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def results(folder: Path) -> dict[tuple[Any, ...], tuple[bytes, bytes]]:
    """Audio and transcript of every cell, by what makes it differ."""
    found = {}
    for cell in read(folder / "sweep.json")["cells"]:
        run = folder / cell["folder"]
        settings = read(run / "a.session.json")["settings"]
        key = (settings["seed"], settings["temperature"], settings["top_k"])
        found[key] = ((run / "a.wav").read_bytes(), (run / "a.jsonl").read_bytes())
    return found


def wait_for_cells(process: subprocess.Popen[str], number: int) -> None:
    """Read what a sweep tells until so many cells are done."""
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        number -= ": done in " in line
        if not number:
            return
    raise AssertionError(f"it ended before it could be killed:\n{''.join(told)}")


def kill(process: subprocess.Popen[str]) -> None:
    """End it and all that it started in its session, without a chance to tidy up."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("launchers")
    write_babble(made / "a.wav", 1.6)
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[tuple[Any, ...], tuple[bytes, bytes]]:
    """Results of the sweep in one process, in one go."""
    command = words(folder / "whole", "basic")
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    return results(folder / "whole")


@pytest.fixture
def ray_dir() -> Iterator[str]:
    """Where Ray keeps its sockets, whose paths must be short; what runs there is ended."""
    with tempfile.TemporaryDirectory(prefix="mp", dir="/tmp", ignore_cleanup_errors=True) as made:
        yield made
        end_daemons(made)


@pytest.fixture
def started(folder: Path, launcher: str, ray_dir: str) -> Iterator[subprocess.Popen[str]]:
    command = words(folder / launcher, launcher, ray_dir)
    process = subprocess.Popen(
        command, env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    yield process
    if process.poll() is None:
        kill(process)
    if process.stderr is not None:
        process.stderr.close()


def end_daemons(ray_dir: str) -> None:
    """End what Ray started there: its daemons outlive a driver that was killed."""
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (place / "cmdline").read_bytes().decode(errors="replace")
            if ray_dir in command and int(place.name) != os.getpid():
                os.kill(int(place.name), signal.SIGKILL)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(name, marks=pytest.mark.skipif(not is_installed(name), reason="not installed"))
        for name in LAUNCHERS
    ],
)
def test_a_sweep_that_was_killed_goes_on_and_equals_one_that_was_not(
    folder: Path,
    launcher: str,
    ray_dir: str,
    started: subprocess.Popen[str],
    whole: dict[tuple[Any, ...], tuple[bytes, bytes]],
) -> None:
    place = folder / launcher
    wait_for_cells(started, KILL_AFTER)
    kill(started)
    end_daemons(ray_dir)
    before = finished(place)
    assert KILL_AFTER <= len(before) < NUM_CELLS

    command = words(place, launcher, ray_dir)
    done = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    after = finished(place)
    assert len(after) == NUM_CELLS
    assert before.items() <= after.items()  # not written again
    assert f"sweep: {NUM_CELLS} of {NUM_CELLS} cells done" in done.stderr
    assert read(place / "sweep.json")["finished"] is True
    assert len(whole) == NUM_CELLS
    assert results(place) == whole
