"""The page and the table that ``moshi-pipe report`` writes."""

from __future__ import annotations

import csv
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.runs import write_run

from moshi_pipe.cli import main
from moshi_pipe.report_page.collect import collect
from moshi_pipe.report_page.page import study

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u0007=1"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class _Tags(HTMLParser):
    """Counts tags, collects attributes, and finds what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [str(v) for k, v in attrs if k in ("src", "href", "data", "action")]
        if tag not in ("meta", "link", "img", "br"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(path: str = "report.html") -> _Tags:
    tags = _Tags()
    tags.feed(Path(path).read_text(encoding="utf-8"))
    tags.close()
    return tags


def write_sweep(folder: Path) -> None:
    for temperature in (0.5, 0.8):
        for seed in (1, 2):
            write_run(
                folder / f"{temperature}-{seed}",
                seed=seed,
                temperature=temperature,
                words=[(2.4, 2.8, "hello"), (2.8, 3.2, "there")],
                metrics={"metrics": {"response": {"value": 0.1 * seed, "unit": "s"}}},
            )


def test_a_sweep_becomes_a_page_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "sweep")

    assert main(["report", "sweep", "title=Two temperatures"]) == 0

    page = read_page()
    text = " ".join(page.text)
    assert page.counts["h1"] == 1
    assert "Two temperatures" in text
    assert "4 runs, 2 configurations, 2 seeds, 4 sessions" in text
    assert "0.150 ± 0.071" in text
    assert page.counts["audio"] == 8
    assert all(
        address.startswith("data:audio/ogg;codecs=opus;base64,") for address in page.addresses
    )
    assert "report.html (4 runs, 2 configurations" in capsys.readouterr().out
    with Path("report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["sampling.temperature"], row["seed"], row["response (s)"]) for row in rows] == [
        ("0.5", "1", "0.1"),
        ("0.5", "2", "0.2"),
        ("0.8", "1", "0.1"),
        ("0.8", "2", "0.2"),
    ]


def test_a_run_alone_needs_no_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "a")

    assert main(["report", "a", "out=one.html", "csv=table.csv"]) == 0

    assert "All runs have the same configuration" in " ".join(read_page("one.html").text)
    assert Path("table.csv").is_file()


def test_many_configurations_are_rows(tmp_path: Path) -> None:
    for i in range(12):
        write_run(tmp_path / "s" / str(i), temperature=0.1 * (i + 1), metrics={"metrics": {"m": i}})

    assert main(["report", "s", "sessions=2", "audio=none"]) == 0

    page = read_page()
    assert "The first 8 of 12 configurations are drawn." in " ".join(page.text)
    assert "10 more sessions are in the table" in " ".join(page.text)
    assert page.counts.get("audio", 0) == 0


def test_a_metric_that_some_runs_lack_says_how_many_have_it(tmp_path: Path) -> None:
    for seed, value in ((1, 0.1), (2, 0.3), (3, None)):
        metrics = {"metrics": {"response": {"value": value, "unit": "s"}}}
        write_run(tmp_path / "s" / str(seed), seed=seed, metrics=metrics)

    assert main(["report", "s", "audio=none"]) == 0

    assert "0.20 ± 0.14 (n = 2)" in " ".join(read_page().text)


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_a_session_that_is_not_done_counts_in_no_mean(tmp_path: Path, status: str) -> None:
    for seed, value, ended in ((1, 0.1, "done"), (2, 0.3, "done"), (3, 9.0, status)):
        metrics = {
            "metrics": {"response": {"value": value, "unit": "s"}},
            "vad": {},
            "turns": {"user": [[0.0, 1.0]], "model": [[1.0 + value, 12.0]]},
        }
        write_run(tmp_path / "s" / str(seed), seed=seed, metrics=metrics, status=ended)
    found = study(collect([tmp_path / "s"]))

    assert main(["report", "s", "audio=none"]) == 0

    text = " ".join(read_page().text)
    assert "0.20 ± 0.14 (n = 2)" in text
    assert f"the session is {status}, not done: it counts in no mean" in text
    assert found.responses == {"A": [pytest.approx(0.1), pytest.approx(0.3)]}


def test_nothing_from_files_is_taken_for_markup(tmp_path: Path) -> None:
    name = EVIL.replace("/", "_")
    folder = write_run(
        tmp_path / "a",
        words=[(2.4, 2.8, EVIL)],
        metrics={"metrics": {EVIL: {"value": 1, "unit": EVIL}}},
    )
    run = json.loads((folder / "run.json").read_text())
    run |= {"model": EVIL, "device": EVIL, "signature": EVIL, "versions": {EVIL: EVIL}}
    run["sessions"][0] |= {"id": name, "status": EVIL, "error": EVIL}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    write_run(tmp_path / "b", temperature=0.1)
    config = (tmp_path / "b" / "config.yaml").read_text()
    quoted = json.dumps(EVIL)
    (tmp_path / "b" / "config.yaml").write_text(f"{config}model: {{name: {quoted}}}\n", "utf-8")

    assert main(["report", "a", "b", f"title={EVIL}"]) == 0

    page = read_page()  # also finds that all tags are closed
    assert page.counts["script"] == 1
    assert "img" not in page.counts
    assert not [name for name in page.attributes if name.startswith("on")]


def test_a_table_holds_no_formulas(tmp_path: Path) -> None:
    write_run(tmp_path / "a", session="=HYPERLINK(1)", temperature=-1.5)
    write_run(tmp_path / "b", temperature=0.5)

    assert main(["report", "a", "b", "audio=none"]) == 0

    with Path("report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["session"] == "'=HYPERLINK(1)"
    assert rows[0]["sampling.temperature"] == "-1.5"


def test_audio_that_does_not_fit_is_linked(tmp_path: Path) -> None:
    write_run(tmp_path / "a b")

    assert main(["report", "a b", "audio_mb=0"]) == 0

    page = read_page()
    assert page.addresses == ["in/talk.wav", "a%20b/talk.wav"]
    assert "the page is full" in " ".join(page.text)


def test_what_is_missing_is_at_the_end_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "talk.wav").write_bytes(b"RIFF")

    assert main(["report", "a"]) == 0

    assert "Missing or broken" in " ".join(read_page().text)
    assert "1 thing missing or broken" in capsys.readouterr().err


def test_a_run_without_anything_is_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text("{}", encoding="utf-8")

    assert main(["report", "a"]) == 0

    assert "config.yaml is not there" in " ".join(read_page().text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "report needs folders of runs or sweeps"),
        (["a", "tilte=x"], "did you mean 'title'?"),
        (["a", "audio=wav"], "audio has no such value"),
        (["a", "audio_mb=much"], "audio_mb has the wrong type"),
        (["a", "out="], "out names no file\n  got:    out= and nothing"),
        (["a", "csv="], "csv names no file\n  got:    csv= and nothing"),
        (["a", "out=a"], "a, a folder\n  wanted: a name such as out=report.html"),
        (["a", "out=report.csv"], "the table would be written over the page"),
        (["a", "out=x", "csv=a/../x"], "the table would be written over the page"),
        (["a", "out=file:///x/page.html"], "an address\n  got:    file:///x/page.html"),
        (["file:///x/a"], "report takes a path, not an address\n  got:    file:///x/a"),
    ],
)
def test_wrong_words_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    write_run(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))

    assert main(["report", *words]) == 2

    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_told_with_a_key_of_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a")

    assert main(["report", "a", "audio=none", "out=a/run.json/page.html"]) == 4

    said = capsys.readouterr().err
    assert "out=FOLDER/report.html" in said
    assert "output_dir" not in said


def test_the_folder_of_the_page_is_made(tmp_path: Path) -> None:
    write_run(tmp_path / "a")

    assert main(["report", "a", "audio=none", "out=new/page.html"]) == 0

    assert [path.name for path in sorted(Path("new").iterdir())] == ["page.csv", "page.html"]


def test_numbers_that_no_sum_can_hold_are_no_numbers(tmp_path: Path) -> None:
    for seed in (1, 2):
        metrics = {"metrics": {"huge": 1e308, "long": 10**400, "m": seed}}
        folder = write_run(tmp_path / "s" / str(seed), seed=seed, metrics=metrics)
        run = json.loads((folder / "run.json").read_text())
        run["sessions"][0]["audio_s"] = run["audio_s"] = run["peak_rss_bytes"] = 1e308
        run["nodes"] = [{"mean_ms": 1e308}] * 2
        run["timing"]["tick"].append([float("inf"), 3])
        run["timing"]["over_time"]["mean_ms"] += [1e308, 1e308]
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")

    assert main(["report", "s", "audio=none"]) == 0

    text = " ".join(read_page().text)
    assert "1.50 ± 0.71" in text
    assert "huge" not in text


def test_a_repeated_run_counts_once(tmp_path: Path) -> None:
    for place, seed, value, ended_s in (
        ("1", 1, 0.1, 100),
        ("2", 2, 9.0, 100),
        ("2/repeat", 2, 0.3, 200),  # newer than the one above
    ):
        metrics = {"metrics": {"response": {"value": value, "unit": "s"}}}
        folder = write_run(tmp_path / "s" / place, seed=seed, metrics=metrics)
        os.utime(folder / "run.json", (ended_s, ended_s))

    assert main(["report", "s", "audio=none"]) == 0

    text = " ".join(read_page().text)
    assert "2 runs, 1 configuration, 2 seeds, 2 sessions" in text
    assert "0.20 ± 0.14" in text
    assert "s/2 has the same signature and seed, and is left out" in text


def test_a_repeated_run_that_was_cut_does_not_count_for_a_whole_one(tmp_path: Path) -> None:
    write_run(tmp_path / "a", metrics={"metrics": {"m": 0.25}})
    write_run(tmp_path / "a" / "repeat", metrics={"metrics": {"m": 9}}, status="interrupted")
    os.utime(tmp_path / "a" / "run.json", (100, 100))

    assert main(["report", "a", "audio=none"]) == 0

    text = " ".join(read_page().text)
    assert "0.250" in text
    assert "a/repeat has the same signature and seed, and is left out" in text


def test_live_runs_with_one_seed_all_count(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = write_run(tmp_path / name)
        run = json.loads((folder / "run.json").read_text())
        run["live"] = {"late": 0}
        (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")

    assert main(["report", "a", "b", "audio=none"]) == 0

    assert "2 runs, 1 configuration, 1 seed" in " ".join(read_page().text)


def test_a_folder_without_runs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "."]) == 3

    assert "no run is in ." in capsys.readouterr().err
