"""Reading folders of runs: what is whole, what is cut, what is broken."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support.runs import write_run

from moshi_pipe.errors import InputError
from moshi_pipe.report_page.collect import Word, collect
from moshi_pipe.report_page.conversation import hear

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_is_read_with_its_sides_words_and_metrics(tmp_path: Path) -> None:
    metrics = {
        "metrics": {
            "response": {"value": 0.4, "unit": "s"},
            "overlap": {"value": None},
            "wpm": 120,
        },
        "vad": {"detector": "energy"},
        "turns": {"user": [[0.0, 2.0]], "model": [[2.4, 4.0]]},
    }
    write_run(tmp_path / "a", words=[(2.4, 2.8, "hello")], metrics=metrics)

    (run,) = collect([tmp_path / "a"])

    (session,) = run.sessions
    assert session.words["model"] == [Word(2.4, 2.8, "hello")]
    assert session.metrics == {"response": 0.4, "overlap": None, "wpm": 120.0}
    assert session.turns == {"user": [(0.0, 2.0)], "model": [(2.4, 4.0)]}
    assert run.units == {"response": "s"}
    assert session.sounds["model"].path == tmp_path / "a" / "talk.wav"
    assert session.sounds["user"].path == tmp_path / "in" / "talk.wav"
    assert (run.problems, session.problems) == ([], [])


def test_metrics_are_found_where_their_sink_wrote_them_with_words_of_the_user(
    tmp_path: Path,
) -> None:
    folder = write_run(tmp_path / "a", words=[(2.4, 2.8, "hello")])
    elsewhere = folder / "measured" / "t.metrics.json"
    elsewhere.parent.mkdir()
    words = {"user": [[0.0, 0.4, "hi"], [1, 0, "no"], ["x"]], "model": [[9.0, 9.5, "later"]]}
    elsewhere.write_text(json.dumps({"metrics": {"m": 1}, "words": words}), encoding="utf-8")
    run = json.loads((folder / "run.json").read_text())
    run["sessions"][0]["sinks"]["metrics"] = {"sink": "metrics", "files": [str(elsewhere)]}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")

    (session,) = collect([tmp_path / "a"])[0].sessions

    assert session.metrics == {"m": 1.0}
    assert session.words == {"user": [Word(0.0, 0.4, "hi")], "model": [Word(2.4, 2.8, "hello")]}


def test_cells_of_a_sweep_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_run(tmp_path / "sweep" / str(number), seed=number)

    runs = collect([tmp_path / "sweep"])

    assert [run.name for run in runs] == ["sweep/1", "sweep/2", "sweep/10"]


def test_a_run_that_was_named_twice_is_read_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a")

    assert len(collect([tmp_path / "a", tmp_path])) == 1


def test_a_folder_that_was_moved_finds_its_own_files(tmp_path: Path) -> None:
    write_run(tmp_path / "a", words=[(0.0, 0.4, "hi")])
    shutil.move(tmp_path / "a", tmp_path / "b")

    (run,) = collect([tmp_path / "b"])

    assert run.sessions[0].sounds["model"].path == tmp_path / "b" / "talk.wav"
    assert run.sessions[0].words["model"][0].text == "hi"


def test_a_run_without_an_end_shows_what_its_sessions_left(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    session = json.loads((folder / "run.json").read_text())["sessions"][0]
    (folder / "talk.session.json").write_text(json.dumps(session), encoding="utf-8")
    (folder / "run.json").unlink()

    (run,) = collect([tmp_path])

    assert run.problems == ["the run has no end: no run.json"]
    assert [part.id for part in run.sessions] == ["talk"]


def test_a_cell_that_failed_says_why(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    cell = {"state": "failed", "error": "cannot read a.wav"}
    (tmp_path / "0" / "cell.json").write_text(json.dumps(cell), encoding="utf-8")

    (run,) = collect([tmp_path])

    assert run.problems == ["config.yaml is not there", "the run failed: cannot read a.wav"]
    assert run.sessions == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("talk.jsonl", '{"start_s": 0}\nnot\n', "talk.jsonl: 2 of 2 lines cannot be read"),
        ("talk.wav", "no audio", "the audio of the model cannot be read"),
        ("talk.metrics.json", "{", "talk.metrics.json cannot be read"),
        (
            "talk.metrics.json",
            '{"metrics": [1], "vad": 1, "turns": {"user": 3, "model": [[1], "x"]}}',
            "",
        ),
        ("config.yaml", "a: [", "config.yaml cannot be read"),
        ("config.yaml", "a: ${b}", ""),
        ("run.json", '{"sessions": {"a": 1}, "timing": [], "nodes": {}}', ""),
        ("run.json", '{"sessions": [1, {"id": "../../x", "sinks": 4, "input": 7}]}', ""),
        ("run.json", '{"sessions": [{"id": "t", "sinks": {"f": {"files": [1, null]}}}]}', ""),
    ],
)
def test_what_is_broken_is_named_and_not_fatal(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    folder = write_run(tmp_path / "a", metrics={})
    (folder / name).write_text(text, encoding="utf-8")

    (run,) = collect([tmp_path])
    for part in run.sessions:
        hear(part)

    problems = [*run.problems, *(said for part in run.sessions for said in part.problems)]
    assert any(problem.startswith(said) for problem in problems) or not said


def test_files_that_are_gone_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "talk.wav").unlink()
    (tmp_path / "in" / "talk.wav").unlink()

    (run,) = collect([folder])

    assert run.sessions[0].problems == [
        "talk.wav is not there",
        "the audio of the user is not here",
        "the audio of the model is not here",
    ]


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^no run is in .*\n  wanted: run.json"):
        collect([tmp_path])
    with pytest.raises(InputError, match=r"^there is no folder"):
        collect([tmp_path / "nowhere"])
