"""Sweeps: cells, what is done once, and what a person is told."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.audio import write_babble

from moshi_pipe.cli import main
from moshi_pipe.sweep import CellTask, Sweep, Watcher
from moshi_pipe.sweep_cells import Cell, claim, read_cells

if TYPE_CHECKING:
    from support.build import FakeBuild

SWEEP = ["-m", "source.path=a.wav", "model=embedded", "sink=[file]"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def written() -> dict[str, int]:
    """When each cell's audio was written."""
    return {str(path): path.stat().st_mtime_ns for path in Path("moshi-out").glob("*/*.wav")}


def test_a_finished_cell_is_never_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert main([*SWEEP, "seed=1,2"]) == 0
    before = written()

    assert main([*SWEEP, "seed=0,1,2,3", "device=cpu"]) == 0  # cells have other numbers now

    assert before.items() <= written().items()
    assert [read_json(f"moshi-out/{i}/run.json")["seed"] for i in range(4)] == [1, 2, 0, 3]
    told = capsys.readouterr().err
    assert "[2/4] seed=1: was done before (0/)" in told
    assert "cell 4 of 4: seed=3" in told
    assert "sweep: 4 of 4 cells done, 2 of them before" in told


def test_the_index_names_every_cell(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)

    assert main([*SWEEP, "seed=1,2"]) == 0

    index = read_json("moshi-out/sweep.json")
    assert (index["num_cells"], index["finished"]) == (2, True)
    assert [(cell["folder"], cell["state"]) for cell in index["cells"]] == [
        ("0", "done"),
        ("1", "done"),
    ]
    signatures = [cell["signature"] for cell in index["cells"]]
    assert signatures == [read_json(f"moshi-out/{i}/run.json")["signature"] for i in range(2)]
    assert len(set(signatures)) == 2


@pytest.mark.parametrize("lost", ["run.json", "a.wav"])
def test_a_cell_that_was_cut_is_run_again_in_its_folder(tmp_path: Path, lost: str) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert main([*SWEEP, "seed=1,2"]) == 0
    before = written()
    Path("moshi-out/1", lost).unlink()

    assert main([*SWEEP, "seed=2,1"]) == 0

    assert Path("moshi-out/1/a.wav").is_file()
    assert Path("moshi-out/1/run.json").is_file()
    assert written()["moshi-out/0/a.wav"] == before["moshi-out/0/a.wav"]
    assert not Path("moshi-out/2").exists()


def test_a_cell_that_was_killed_while_it_was_made_anew_is_no_finished_one(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert main([*SWEEP, "seed=1,2"]) == 0
    before = written()
    whole = Path("moshi-out/0/a.wav").read_bytes()
    kill = (
        "import os, sys\n"
        "from moshi_pipe.cli import main\n"
        "from moshi_pipe.nodes.file_sink import FileSink\n"
        "FileSink.open = lambda *given: os.kill(os.getpid(), 9)\n"
        "main(sys.argv[1:])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", kill, *SWEEP, "seed=1,2", "resume=false"], check=False
    )
    assert killed.returncode == -9
    Path("moshi-out/0/a.wav").write_bytes(whole[:50])

    assert main([*SWEEP, "seed=1,2"]) == 0

    assert Path("moshi-out/0/a.wav").read_bytes() == whole
    assert written()["moshi-out/1/a.wav"] == before["moshi-out/1/a.wav"]


def test_a_cell_is_finished_only_if_it_says_so(tmp_path: Path) -> None:
    report = {"signature": "a", "exit_code": 0, "interrupted": False, "output_dir": str(tmp_path)}
    (tmp_path / "run.json").write_text(json.dumps(report), encoding="utf-8")
    cell = Cell(tmp_path, key="a", signature="a", number=1, state="done")
    assert cell.is_finished

    cell.begin()  # as a run does that is killed then

    again = Cell(tmp_path, key="a", signature="a", number=1)
    again.recall()
    assert not again.is_finished


def test_sweeps_of_one_folder_at_once_know_all_their_cells(tmp_path: Path) -> None:
    def cell(launch: str) -> Cell:
        wanted = Cell(tmp_path / "0", key="a", signature="a", number=1, launches={launch: False})
        return claim(wanted)

    first, second = cell("one"), cell("two")
    first.recall()
    first.state = "done"
    first.write()
    second.recall()
    second.launches["two"] = True
    second.write()

    watchers = [Watcher(Sweep(tmp_path, total=1, launch=launch)) for launch in ("one", "two")]

    assert [watcher.summary().split("; ")[0] for watcher in watchers] == [
        "sweep: 1 of 1 cell done",
        "sweep: 1 of 1 cell done, 1 of them before",
    ]


def test_a_cell_whose_input_was_missing_keeps_its_folder(tmp_path: Path) -> None:
    assert main([*SWEEP, "seed=1,2"]) == 3
    write_babble(tmp_path / "a.wav", 0.4)

    assert main([*SWEEP, "seed=1,2"]) == 0

    index = read_json("moshi-out/sweep.json")
    assert [(cell["folder"], cell["state"]) for cell in index["cells"]] == [
        ("0", "done"),
        ("1", "done"),
    ]
    assert index["finished"] is True


def test_another_input_of_the_same_name_is_another_cell(tmp_path: Path) -> None:
    for folder, seconds in (("en", 0.4), ("fr", 0.8)):
        write_babble(tmp_path / folder / "a.wav", seconds)
    words = ["-m", "source.path=en,fr", "model=embedded", "sink=[file]", "seed=1"]

    assert main(words) == 0

    frames = [read_json(f"moshi-out/{i}/run.json")["frames"] for i in range(2)]
    assert frames == [5, 10]


def test_a_changed_input_makes_its_cells_again(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert main([*SWEEP, "seed=1"]) == 0
    write_babble(tmp_path / "a.wav", 0.8)

    assert main([*SWEEP, "seed=1"]) == 0

    assert read_json("moshi-out/1/run.json")["frames"] == 10


def test_a_folder_is_looked_at_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_babble(tmp_path / "in" / f"{name}.wav", 0.4)
    words = ["-m", "source.path=in", "model=embedded", "sink=[file]", "seed=1"]
    assert main(words) == 0
    before, report = written(), read_json("moshi-out/0/run.json")
    capsys.readouterr()

    assert main(words) == 0

    assert (written(), read_json("moshi-out/0/run.json")) == (before, report)
    assert "was done before (0/)" in capsys.readouterr().err

    write_babble(tmp_path / "in" / "b.wav", 0.8)
    write_babble(tmp_path / "in" / "c.wav", 0.4)
    assert main(words) == 0

    assert written()["moshi-out/0/a.wav"] == before["moshi-out/0/a.wav"]
    assert "was done before" not in capsys.readouterr().err
    sessions = read_json("moshi-out/0/run.json")["sessions"]
    assert [(one["id"], one["status"], one["frames"]) for one in sessions] == [
        ("a", "skipped", 0),
        ("b", "done", 10),
        ("c", "done", 5),
    ]
    assert not Path("moshi-out/1").exists()


def test_devices_that_are_swept_are_cells(build: FakeBuild) -> None:
    assert main(["-m", "source=silence", "device=cpu,cuda:1"]) == 0

    assert [config.backend.device for config in build.configs] == ["cpu", "cuda:1"]
    assert len({config.output_dir for config in build.configs}) == 2


def test_a_pace_that_is_swept_is_cells_and_one_that_is_not_is_none(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert main([*SWEEP, "seed=1", "engine.inbox_frames=8,16"]) == 0
    before = written()
    assert len(before) == 2

    assert main([*SWEEP, "seed=1", "engine.inbox_frames=16,8"]) == 0
    assert written() == before
    assert main([*SWEEP, "seed=1,2"]) == 0
    assert main([*SWEEP, "seed=1,2", "engine.inbox_frames=16", "device=cpu"]) == 0

    assert len(written()) == 4


def test_names_of_results_that_are_swept_are_cells(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)

    assert main([*SWEEP, "seed=1", "sink.file.path=x,y"]) == 0

    assert set(written()) == {"moshi-out/0/x.wav", "moshi-out/1/y.wav"}


def test_resume_false_runs_all_again(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert main([*SWEEP, "seed=1"]) == 0
    before = written()

    assert main([*SWEEP, "seed=1", "resume=false"]) == 0

    assert written().keys() == before.keys()
    assert written() != before


def test_an_interrupted_cell_ends_the_sweep_and_is_no_finished_one(build: FakeBuild) -> None:
    build.exit_code = 130

    assert main(["-m", "source=silence", "seed=1,2"]) == 130

    assert len(build.configs) == 1
    assert [cell.state for cell in read_cells(Path("moshi-out"))] == ["interrupted"]
    assert read_json("moshi-out/sweep.json")["finished"] is False


def test_an_error_that_should_not_happen_fails_its_cell_alone(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    build.error = ZeroDivisionError("by zero")

    assert main(["-m", "source=silence", "seed=1,2"]) == 1

    assert len(build.configs) == 2
    assert "[1/2] seed=1: failed: ZeroDivisionError: by zero (0/)" in capsys.readouterr().err


def test_a_value_that_cannot_be_fails_its_cell_alone(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "source=silence", "sampling.temperature=0.5,-1"]) == 2

    assert len(build.configs) == 1
    assert "failed: sampling.temperature cannot be -1.0" in capsys.readouterr().err


def test_parameters_of_the_sweeper_are_counted(
    build: FakeBuild, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine" / "experiment"
    mine.mkdir(parents=True)
    grid = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: range(1,4)\n"
    (mine / "grid.yaml").write_text(grid, encoding="utf-8")
    words = ["--config-dir", "mine", "-m", "experiment=grid", "source=silence"]

    assert main([*words, "sampling.temperature=0.5,0.8"]) == 0

    assert [config.seed for config in build.configs] == [1, 1, 2, 2, 3, 3]
    assert "cell 6 of 6: seed=3 sampling.temperature=0.8" in capsys.readouterr().err


def test_choices_of_a_group_may_be_a_pattern(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "source=silence", "model=glob(moshi*)"]) == 0

    assert [config.model.name for config in build.configs] == ["moshika", "moshiko"]
    assert "cell 2 of 2: model=moshiko" in capsys.readouterr().err


def test_the_folder_of_a_sweep_is_one(build: FakeBuild, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "source=silence", "output_dir=a,b"]) == 2

    assert build.configs == []
    assert "output_dir is the folder of all cells" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["s3://bucket/sweep", "file:///tmp/sweep"])
def test_a_sweep_writes_to_no_address(
    build: FakeBuild, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    assert main(["-m", "source=silence", "seed=1,2", f"output_dir={place}"]) == 2

    told = capsys.readouterr().err
    assert "a sweep cannot write to an address" in told
    assert f"output_dir={place}" in told
    assert (build.configs, list(Path().iterdir())) == ([], [])


@pytest.mark.parametrize("flag", [["-m"], []])
@pytest.mark.parametrize(
    ("place", "code", "what"),
    [
        ("", 2, "output_dir is empty\n  wanted: name a folder"),
        ("file", 4, "cannot make the output folder"),
        ("/dev/null/x", 4, "cannot make the output folder /dev/null/x"),
    ],
)
def test_a_folder_that_cannot_be_made_is_told_as_without_a_sweep(
    capsys: pytest.CaptureFixture[str], flag: list[str], place: str, code: int, what: str
) -> None:
    Path("file").touch()

    assert main([*flag, "source=silence", "model=embedded", f"output_dir={place}"]) == code

    assert what in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_a_sweep_of_nothing_is_refused(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "source=silence", "seed=range(3,1)"]) == 2

    told = capsys.readouterr().err
    assert "there is nothing to run: seed has no value" in told
    assert "seed=range(3,1)" in told
    assert build.configs == []


def test_a_wrong_key_is_told_before_anything_runs(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "source=silence", "sampling.temprature=0.5,0.8"]) == 2

    assert build.configs == []
    assert "did you mean 'sampling.temperature'?" in capsys.readouterr().err


def test_questions_are_about_one_run(build: FakeBuild, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "source=silence", "seed=1,2", "--cfg", "job"]) == 2

    assert build.configs == []
    assert "--cfg is about one run" in capsys.readouterr().err


def test_two_cells_that_want_one_folder_get_two(tmp_path: Path) -> None:
    first = claim(Cell(tmp_path / "0", key="a", signature="a", number=1))

    second = claim(Cell(tmp_path / "0", key="b", signature="b", number=1))
    again = claim(Cell(tmp_path / "7", key="a", signature="a", number=8))

    assert (first.folder.name, second.folder.name, again.folder.name) == ("0", "1", "0")


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "mine.txt").write_text("keep", encoding="utf-8")

    cell = claim(Cell(tmp_path / "0", key="a", signature="a", number=1))

    assert cell.folder.name == "1"
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["mine.txt"]


def test_a_damaged_cell_is_no_cell(tmp_path: Path) -> None:
    for name, text in (("0", "{"), ("1", "[1]"), ("2", '{"key": "a"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text(text, encoding="utf-8")

    assert read_cells(tmp_path) == []


def test_a_cell_that_another_process_took_meanwhile_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(Cell(tmp_path / "0", key="a", signature="a", number=1))
    monkeypatch.setattr("moshi_pipe.sweep_cells.read_cells", lambda _: [])  # as it looked before

    cell = claim(Cell(tmp_path / "0", key="a", signature="a", number=1))

    assert cell.folder.name == "0"


def test_a_cell_that_another_process_runs_is_waited_for(tmp_path: Path) -> None:
    cell = claim(Cell(tmp_path / "0", key="a", signature="a", number=1))
    code = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(cell.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        waited = []

        def let_go() -> None:
            waited.append(True)
            other.kill()

        with cell.held(let_go):
            assert waited == [True]


def test_the_task_of_a_launcher_can_be_pickled(tmp_path: Path) -> None:
    task = pickle.loads(pickle.dumps(CellTask(Sweep(tmp_path, ("-m", "seed=1,2"), 2, ("seed",)))))

    assert task.__name__ == "moshi_pipe"
