"""Recordings over two nodes, one of which is lost, as is an actor of the other."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("ray")

from moshi_pipe.build import run_config
from moshi_pipe.compose import load_run
from moshi_pipe.overrides import prepare
from moshi_pipe.plugins import load_plugins
from moshi_pipe.progress import SilentUI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from moshi_pipe.report import RunReport, SessionReport

# Ray opens sockets and files that it leaves to the garbage collector.
pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),
]

NUM_FILES = 200
NUM_FEWER = 60
STORE_BYTES = 80 * 2**20
PATIENCE_S = 120
PAGE = Path(__file__).resolve().parents[3] / "docs" / "scale.md"


class Watcher(SilentUI):
    """Calls something when so many sessions have ended."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.ended: list[SessionReport] = []
        self.warnings: list[str] = []
        self._at = at or {}

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def session_ends(self, report: SessionReport) -> None:
        self.ended.append(report)
        call = self._at.get(len(self.ended))
        if call is not None:
            threading.Thread(target=call).start()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of short recordings of noise, of 0.1 to 0.3 s."""
    import soundfile

    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for i in range(NUM_FILES):
        samples = 0.1 * rng.standard_normal(2_400 + 200 * (i % 25))
        soundfile.write(folder / f"{i:03d}.wav", samples.astype(np.float32), 24_000)
    lines = [json.dumps({"path": f"{i:03d}.wav"}) + "\n" for i in range(NUM_FILES)]
    (folder / "talks.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "talks.jsonl"


def run(recordings: Path, out: Path | str, ui: SilentUI, *words: str) -> RunReport:
    plugins = load_plugins()
    common = ["model=embedded", f"source.path={recordings}", f"output_dir={out}", "seed=7"]
    config = load_run(prepare([*common, "engine.slots=4", *words]), plugins.nodes)
    return run_config(config, ui, plugins)


def results(folder: Path) -> dict[str, bytes]:
    """What the sinks wrote, by name; every other file is one of the run's."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    own = {"run.json", "config.yaml", "sessions.jsonl", "ray.log"}
    return {
        name: data
        for name, data in found.items()
        if name not in own and not name.endswith(".session.json")
    }


@pytest.fixture(scope="module")
def by_one(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the recordings."""
    out = tmp_path_factory.mktemp("one")
    assert run(recordings, out, SilentUI()).count("done") == NUM_FILES
    return results(out)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of one node, this process part of it."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def test_each_recording_is_done_once_though_an_actor_and_a_node_are_lost(
    recordings: Path, by_one: dict[str, bytes], cluster: Any, tmp_path: Path
) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes()
    killed: list[int] = []

    def kill() -> None:
        log = (tmp_path / "ray.log").read_text(encoding="utf-8")
        killed.extend(int(found) for found in re.findall(r"process (\d+)", log)[:1])
        os.kill(killed[0], signal.SIGKILL)

    ui = Watcher({40: kill, 90: lambda: cluster.remove_node(second, allow_graceful=False)})

    report = run(recordings, tmp_path, ui, "engine=ray", "engine.actors=2")

    assert len(killed) == 1
    lost = [text for text in ui.warnings if "was lost" in text]
    assert len(lost) >= 2
    assert Counter(one.status for one in ui.ended) == {"done": NUM_FILES}
    assert len({one.id for one in ui.ended}) == NUM_FILES
    assert [report.count("done"), report.exit_code] == [NUM_FILES, 0]
    lines = (tmp_path / "sessions.jsonl").read_text(encoding="utf-8").splitlines()
    told = Counter(json.loads(line)["id"] for line in lines)
    assert set(told.values()) == {1}
    assert results(tmp_path) == by_one
    records = list(tmp_path.glob("*.session.json"))
    assert len(records) == NUM_FILES


def commands_of_the_page() -> list[list[str]]:
    """What docs/scale.md tells to type, as words."""
    text = PAGE.read_text(encoding="utf-8")
    fenced = [part for i, part in enumerate(text.split("```")) if i % 2]
    lines = [line for part in fenced for line in part.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("moshi-pipe ")]


def test_the_commands_of_the_page_can_be_read() -> None:
    plugins = load_plugins()
    commands = commands_of_the_page()

    assert len(commands) >= 5
    for words in commands:
        if words[0] == "serve-cluster":
            words = ["source=websocket", "sink=websocket", "engine=ray", *words[1:]]
        config = load_run(prepare(words), plugins.nodes)
        assert config.source.entry.name in ("file", "websocket")


def test_the_command_of_the_page_goes_on_where_ctrl_c_stopped_it(
    recordings: Path, by_one: dict[str, bytes], tmp_path: Path
) -> None:
    names = [f"{number:03d}" for number in range(NUM_FEWER)]
    rows = [json.dumps({"path": str(recordings.with_name(f"{name}.wav"))}) for name in names]
    (tmp_path / "talks.jsonl").write_text("\n".join(rows), encoding="utf-8")
    wanted = {name: data for name, data in by_one.items() if name.partition(".")[0] in names}
    words = next(words for words in commands_of_the_page() if "source.path=talks.jsonl" in words)
    command = [sys.executable, "-m", "moshi_pipe", *words, "model=embedded"]
    out = tmp_path / "out"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + PATIENCE_S
    while num_lines(out / "sessions.jsonl") < 8:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)

    process.send_signal(signal.SIGINT)

    said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130, said
    found = results(out)
    assert 0 < len(found) < len(wanted)
    assert found == {name: wanted[name] for name in found}
    done = subprocess.run(command, cwd=tmp_path, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0
    assert results(out) == wanted
    report = json.loads((out / "run.json").read_text(encoding="utf-8"))
    counted = Counter(one["status"] for one in report["sessions"])
    assert counted["skipped"] >= 8
    assert counted["skipped"] + counted["done"] == NUM_FEWER


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
