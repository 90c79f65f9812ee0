"""The report of many actors' sessions."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from moshi_pipe_ray import summary
from moshi_pipe_ray.summary import Summary

from moshi_pipe.report import NodeReport, RunReport, SessionReport

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def make(folder: Path) -> Summary:
    config: Any = SimpleNamespace(
        model=SimpleNamespace(name="m"),
        graph={"name": "g"},
        backend=SimpleNamespace(device="cpu", dtype="float32"),
        engine=SimpleNamespace(slots=4),
        output_url=None,
        output_dir=folder,
    )
    return Summary(folder, config, 7)


def session(number: int, status: str = "done") -> SessionReport:
    code = 3 if status == "failed" else 0
    return SessionReport(str(number), status, frames=10, audio_s=0.8, exit_code=code)


def test_every_session_is_listed_and_has_a_line(tmp_path: Path) -> None:
    made = make(tmp_path)
    for number in range(3):
        made.add(0, session(number))

    report = made.report(interrupted=False)
    made.close(report, "seed: null\n")

    assert [report.count("done"), report.frames, report.exit_code] == [3, 30, 0]
    lines = (tmp_path / "sessions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "1", "2"]
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["seed"] == 7
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "seed: 7\n"


def test_of_very_many_those_that_failed_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "LISTED", 5)
    made = make(tmp_path)
    for number in range(20):
        made.add(number % 2, session(number, "failed" if number == 13 else "done"))

    report = made.report(interrupted=False)
    made.close(report, "")

    assert [one.id for one in report.sessions] == ["13"]
    assert [report.count("done"), report.count("failed"), report.exit_code] == [19, 1, 3]
    assert made.num_done(1) == 9
    assert len((tmp_path / "sessions.jsonl").read_text(encoding="utf-8").splitlines()) == 20


def test_times_of_several_engines_are_those_of_the_slowest(tmp_path: Path) -> None:
    made = make(tmp_path)
    for ticks, ms in ((10, 1.0), (30, 2.0)):
        nodes = [NodeReport("lm", ticks, ms, ms, 2 * ms, 3 * ms)]
        made.add_engine(RunReport("m", "g", "cpu", "float32", 7, "", ticks=ticks, nodes=nodes))

    report = made.report(interrupted=True)
    made.close(report, "")

    assert report.nodes == [NodeReport("lm", 40, 1.75, 2.0, 4.0, 6.0)]
    assert [report.ticks, report.exit_code] == [40, 130]


def test_the_same_warning_is_shown_once_and_always_logged(tmp_path: Path) -> None:
    made = make(tmp_path)
    shown = [made.log("WARNING", f"actor {i}", "random weights") for i in range(3)]
    shown.append(made.log("INFO", "actor 0", "ready"))
    made.close(made.report(interrupted=False), "")

    assert shown == [True, False, False, False]
    assert len((tmp_path / "ray.log").read_text(encoding="utf-8").splitlines()) == 4
