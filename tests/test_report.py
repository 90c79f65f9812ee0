"""The report of a run, for people and for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from moshi_pipe import progress
from moshi_pipe.errors import OutputError
from moshi_pipe.progress import PlainUI, TerminalUI, report_text, session_line
from moshi_pipe.report import (
    NodeReport,
    RunReport,
    SessionReport,
    read_report,
    versions,
    write_report,
)

if TYPE_CHECKING:
    from pathlib import Path


def make_report(folder: Path, *sessions: SessionReport, interrupted: bool = False) -> RunReport:
    return RunReport(
        model="embedded",
        graph="dialogue",
        device="cpu",
        dtype="float32",
        seed=5,
        output_dir=str(folder),
        wall_s=2.0,
        audio_s=8.0,
        frames=100,
        ticks=100,
        peak_rss_bytes=500_000_000,
        interrupted=interrupted,
        nodes=[NodeReport("encode", 100, 1.0, 1.25, 2.5, 3.75)],
        sessions=list(sessions),
        warnings=["the weights are random"],
        versions=versions(),
    )


def failed(exit_code: int) -> SessionReport:
    return SessionReport("f", "failed", error="cannot read f", exit_code=exit_code)


def test_a_report_is_written_beside_the_configuration(tmp_path: Path) -> None:
    done = SessionReport("a", "done", frames=100, audio_s=8.0, wall_s=2.0, files=["/x/a.wav"])

    path = write_report(make_report(tmp_path / "out", done), "seed: null\nresume: true\n")

    written = json.loads(path.read_text())
    assert written["speed"] == 4.0
    assert written["exit_code"] == 0
    assert written["sessions"][0]["files"] == ["/x/a.wav"]
    assert written["versions"]["python"]
    assert (tmp_path / "out" / "config.yaml").read_text() == "seed: 5\nresume: true\n"
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.yaml", "run.json"]
    assert read_report(path.parent) == written


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").touch()

    with pytest.raises(OutputError, match=r"(?s)^cannot write .*config\.yaml.*output_dir=FOLDER"):
        write_report(make_report(tmp_path / "out"), "")


def test_a_folder_without_a_report_has_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{half")

    assert read_report(tmp_path) == {}


@pytest.mark.parametrize(
    ("codes", "exit_code"), [([], 0), ([3], 3), ([3, 3], 3), ([3, 4], 7), ([0], 7)], ids=str
)
def test_the_exit_code_is_what_failed_sessions_share(
    tmp_path: Path, codes: list[int], exit_code: int
) -> None:
    report = make_report(tmp_path, SessionReport("a", "done"), *map(failed, codes))

    assert report.exit_code == exit_code


def test_an_interrupted_run_says_so_whatever_failed(tmp_path: Path) -> None:
    assert make_report(tmp_path, failed(3), interrupted=True).exit_code == 130


def test_the_closing_text_has_speed_memory_nodes_and_folder(tmp_path: Path) -> None:
    text = report_text(make_report(tmp_path, SessionReport("a", "done"), failed(3)))

    assert "1 done, 1 failed" in text
    assert "4.00 x real time" in text
    assert "500 MB" in text
    assert "encode               1.25     2.50     3.75" in text
    assert "warning: the weights are random" in text
    assert f"results in {tmp_path}" in text


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (SessionReport("a", "skipped"), "a: skipped"),
        (failed(3), "f: failed after 0 frames\ncannot read f"),
        (
            SessionReport("a", "done", audio_s=4.0, wall_s=2.0, files=["/x/a.wav"]),
            "a: done, 4.0 s of audio in 2.0 s (2.00 x real time)\n  /x/a.wav",
        ),
    ],
    ids=["skipped", "failed", "done"],
)
def test_a_session_is_told_on_a_line(report: SessionReport, line: str) -> None:
    assert session_line(report).startswith(line)


def test_lines_say_how_far_a_long_session_is(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    ui = PlainUI(now=lambda: now[0])
    ui.begin(2)
    ui.session_begins("a", 60.0)

    for second in range(1, 12):
        now[0] = float(second)
        ui.session_at("a", second * 3.0)
    now[0] = 20.0
    ui.session_ends(SessionReport("a", "done", audio_s=60.0, wall_s=20.0))

    assert capsys.readouterr().err.splitlines() == [
        "a: 30.0 s of 1 min 00 s, 3.00 x real time",
        "[1/2, 3.00 x real time] a: done, 1 min 00 s of audio in 20.0 s (3.00 x real time)",
    ]


def test_bars_leave_the_report_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ui = TerminalUI()
    ui.loading("lm", 1, 2)
    ui.loading("lm", 2, 2)
    ui.begin(2)
    ui.session_begins("a", 4.0)
    ui.session_at("a", 2.0)
    ui.warn("careful")
    ui.session_ends(SessionReport("a", "done", audio_s=4.0, wall_s=2.0))
    ui.finish(make_report(tmp_path))

    shown = capsys.readouterr()
    assert "4.00 x real time" in shown.out
    assert "a: done" in shown.err


def test_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)

    assert type(progress.choose_ui()) is PlainUI
