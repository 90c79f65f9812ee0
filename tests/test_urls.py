"""Inputs and results at addresses; a store in memory stands for those far away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support.audio import write_babble

from moshi_pipe import urls
from moshi_pipe.build import run_config
from moshi_pipe.compose import load_run
from moshi_pipe.errors import InputError, OutputError
from moshi_pipe.overrides import prepare
from moshi_pipe.plugins import load_plugins
from moshi_pipe.progress import SilentUI

fsspec = pytest.importorskip("fsspec")

if TYPE_CHECKING:
    from moshi_pipe.report import RunReport


@pytest.fixture
def far(tmp_path: Path) -> str:
    """An address with two recordings and a manifest of both."""
    url = f"memory://{uuid4().hex}"
    for name in ("a", "b"):
        urls.put(write_babble(tmp_path / f"{name}.wav", 0.3), f"{url}/{name}.wav")
    (tmp_path / "list.csv").write_text("path,id,duration_s\na.wav,,\nb.wav,second,0.1\n")
    urls.put(tmp_path / "list.csv", f"{url}/list.csv")
    return url


def run(source: str, out: str, *words: str) -> RunReport:
    plugins = load_plugins(installed=False)
    common = ["model=embedded", "graph=codec", "sink=[file]", "seed=1"]
    wanted = [*common, f"source.path={source}", f"output_dir={out}", *words]
    return run_config(load_run(prepare(wanted), plugins.nodes), SilentUI(), plugins)


def bytes_at(folder: str) -> dict[str, bytes]:
    filesystem, path = fsspec.core.url_to_fs(folder)
    return {Path(one).name: filesystem.cat_file(one) for one in filesystem.find(path)}


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("s3://bucket/a.wav", True),
        ("simplecache::s3://bucket/a.wav", True),
        ("/home/a.wav", False),
        ("C:\\a.wav", False),
        ("talks/what?://.wav", False),
        ("", False),
    ],
)
def test_an_address_is_told_from_a_path(text: str, is_one: bool) -> None:
    assert urls.is_url(text) is is_one


def test_recordings_far_away_give_what_they_give_here(far: str, tmp_path: Path) -> None:
    out = f"memory://{uuid4().hex}/results"

    there = run(far, out)
    here = run(str(tmp_path), str(tmp_path / "out"))

    assert [one.status for one in there.sessions] == ["done", "done"]
    results = bytes_at(out)
    for name in ("a.wav", "b.wav"):
        assert results[name] == (tmp_path / "out" / name).read_bytes()
    assert set(results) == {path.name for path in (tmp_path / "out").iterdir()}
    assert there.sessions[0].files == [f"{out}/a.wav"]
    assert there.output_dir == out
    assert here.count("done") == 2


def test_a_run_leaves_nothing_on_this_machine(
    far: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))

    run(far, f"memory://{uuid4().hex}")

    assert list(temporary.iterdir()) == []


def test_what_is_complete_far_away_is_skipped_and_the_rest_is_made(far: str) -> None:
    out = f"memory://{uuid4().hex}"
    run(f"{far}/list.csv", out)
    filesystem, path = fsspec.core.url_to_fs(out)
    filesystem.rm_file(f"{path}/second.wav")

    again = run(f"{far}/list.csv", out)

    assert {one.id: one.status for one in again.sessions} == {"a": "skipped", "second": "done"}
    assert "second.wav" in bytes_at(out)


def test_a_run_that_goes_on_far_away_keeps_its_seed(far: str) -> None:
    out = f"memory://{uuid4().hex}"
    first = run(far, out, "seed=null")

    again = run(far, out, "seed=null")

    assert again.seed == first.seed
    assert again.count("skipped") == 2


def test_a_recording_that_cannot_be_fetched_ends_its_session_alone(
    far: str, tmp_path: Path
) -> None:
    lines = [{"path": "gone.wav"}, {"path": f"{far}/a.wav"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    urls.put(tmp_path / "list.jsonl", f"{far}/list.jsonl")

    report = run(f"{far}/list.jsonl", str(tmp_path / "out"))

    assert {one.id: one.status for one in report.sessions} == {"gone": "failed", "a": "done"}
    assert report.exit_code == InputError.exit_code
    assert report.sessions[0].error == (
        f"cannot read {far}/gone.wav\n  got:    there is no such file or folder"
    )


def test_a_file_appears_whole_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_text("old, and longer")

    urls.put(tmp_path / "a", f"file://{tmp_path}/there/a")

    assert (tmp_path / "there" / "a").read_text() == "new"
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["a"]


def test_an_address_of_no_kind_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match="cannot read nowhere://a"):
        urls.read_text("nowhere://a")
    with pytest.raises(OutputError, match="cannot write nowhere://a"):
        urls.put(tmp_path / "a", "nowhere://a")


def test_an_empty_folder_far_away_is_refused() -> None:
    with pytest.raises(InputError, match="there is nothing to read at memory://"):
        run(f"memory://{uuid4().hex}", "memory://out")
