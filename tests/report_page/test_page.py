"""The page and the table that ``moshi-pipe report`` writes."""

from __future__ import annotations

import csv
import json
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
    ],
)
def test_wrong_words_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    write_run(tmp_path / "a")

    assert main(["report", *words]) == 2

    assert said in capsys.readouterr().err


def test_a_folder_without_runs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "."]) == 3

    assert "no run is in ." in capsys.readouterr().err
