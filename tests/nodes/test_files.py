"""Finding input files and naming them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from moshi_pipe.errors import InputError
from moshi_pipe.nodes.files import find_files, natural_key, unique_names

SUFFIXES = (".wav", ".flac")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("name", ["a[1].wav", "what?.wav", "*.wav", "a b, 'c' = (d).wav", "é.wav"])
def test_an_existing_file_is_literal_whatever_its_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "a1.wav", "whatx.wav")
    assert find_files(str(tmp_path / name), suffixes=SUFFIXES) == [tmp_path / name]


def test_an_existing_file_need_not_have_a_known_ending(tmp_path: Path) -> None:
    touch(tmp_path, "speech.raw-ish")
    assert names(find_files(str(tmp_path / "speech.raw-ish"), suffixes=SUFFIXES))


def test_a_folder_gives_its_audio_files_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "a10.wav", "a2.WAV", "B1.flac", "notes.txt", "sub/c.wav", ".hidden.wav")
    (tmp_path / "folder.wav").mkdir()
    assert names(find_files(str(tmp_path), suffixes=SUFFIXES)) == ["a2.WAV", "a10.wav", "B1.flac"]


def test_sub_folders_are_read_when_asked(tmp_path: Path) -> None:
    touch(tmp_path, "b.wav", "a/2.wav", "a/10.wav", ".git/x.wav")
    found = find_files(str(tmp_path), suffixes=SUFFIXES, recursive=True)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/2.wav", "a/10.wav", "b.wav"]


def test_a_glob_gives_files_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "t10.wav", "t9.wav", "other.wav", "deep/t1.wav")
    (tmp_path / "t.d").mkdir()
    assert names(find_files(str(tmp_path / "t*"), suffixes=SUFFIXES)) == ["t9.wav", "t10.wav"]
    deep = find_files(str(tmp_path / "**" / "t1.wav"), suffixes=SUFFIXES)
    assert deep == [tmp_path / "deep" / "t1.wav"]


def test_a_relative_path_and_the_home_folder_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.wav")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_files("a.wav", suffixes=SUFFIXES) == [tmp_path / "a.wav"]
    assert find_files("~/a.wav", suffixes=SUFFIXES) == [tmp_path / "a.wav"]


@pytest.mark.parametrize("others", [0, 100])
def test_a_missing_file_gives_the_closest_name(tmp_path: Path, others: int) -> None:
    touch(tmp_path, "question.wav", *(f"{i:04d}.flac" for i in range(others)))
    with pytest.raises(InputError) as caught:
        find_files(str(tmp_path / "qestion.wav"), suffixes=SUFFIXES)
    assert str(caught.value) == (
        f"there is no file {tmp_path / 'qestion.wav'}\n"
        f"  wanted: did you mean '{tmp_path / 'question.wav'}'?\n"
        "  do:     check the path; it is relative to where you are"
    )


def test_a_missing_file_that_is_like_no_other_is_only_missing(tmp_path: Path) -> None:
    touch(tmp_path, "zzzzzz.txt")
    with pytest.raises(InputError) as caught:
        find_files(str(tmp_path / "question.wav"), suffixes=SUFFIXES)
    assert caught.value.wanted is None


def test_a_pipe_is_called_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(InputError, match=r"^cannot read .*a\.wav\n  got:    a pipe"):
        find_files(str(tmp_path / "a.wav"), suffixes=SUFFIXES)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_files(str(tmp_path / "nowhere" / "a.wav"), suffixes=SUFFIXES)
    assert caught.value.got == f"folder {tmp_path / 'nowhere'} does not exist either"


def test_an_empty_folder_says_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no files to read") as caught:
        find_files(str(tmp_path), suffixes=SUFFIXES)
    assert caught.value.got == "an empty folder"
    assert caught.value.wanted == (
        "files ending in .wav, .flac; sub-folders are read with source.recursive=true"
    )


def test_a_folder_without_audio_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "b.txt", "a.txt")
    with pytest.raises(InputError) as caught:
        find_files(str(tmp_path), suffixes=SUFFIXES, recursive=True)
    assert caught.value.got == "2 entries, such as a.txt"
    assert caught.value.wanted == "files ending in .wav, .flac"


def test_a_glob_without_a_match_reminds_of_quotes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file matches") as caught:
        find_files(str(tmp_path / "*.wav"), suffixes=SUFFIXES)
    assert "quoted" in str(caught.value)


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot look at") as caught:
        find_files(str(tmp_path / ("x" * 300)), suffixes=SUFFIXES)
    assert caught.value.got == "File name too long"


def test_natural_order_takes_numbers_as_numbers_and_odd_digits_as_letters() -> None:
    given = [Path(p) for p in ["a10", "a²", "a2", "A1", "a02", "1²", "٣"]]
    for seed in range(5):
        random.Random(seed).shuffle(given)
        ordered = [str(path) for path in sorted(given, key=natural_key)]
        assert ordered == ["1²", "٣", "A1", "a02", "a2", "a10", "a²"]


def test_a_name_is_the_stem_where_that_is_enough() -> None:
    assert unique_names([Path("/x/a.wav"), Path("/y/b.flac")]) == ["a", "b"]


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["/m/a.wav", "/t/a.wav", "/t/b.wav"], ["m-a", "t-a", "b"]),
        (["/t/a.wav", "/t/a.flac"], ["a-wav", "a-flac"]),
        (["/1/x/a.wav", "/2/x/a.wav"], ["1-x-a", "2-x-a"]),
        (["/m/a.wav", "/t/a.wav", "/t/m-a.wav"], ["m-a-wav", "t-a", "t-m-a"]),
        (["/t/a.wav", "/t/a.wav"], ["a-1", "a-2"]),
        (["/t/a.wav", "/t/a.wav", "/t/a-1.wav"], ["a-2", "a-3", "a-1"]),
    ],
)
def test_equal_stems_are_told_apart_by_what_differs(paths: list[str], wanted: list[str]) -> None:
    assert sorted(unique_names([Path(p) for p in paths])) == sorted(wanted)


def test_names_do_not_depend_on_the_order_of_files() -> None:
    paths = [
        Path(p)
        for p in ["/1/x/a.wav", "/2/x/a.wav", "/2/x/a.flac", "/x/a.wav", "/b.wav", "/y/x-a.wav"]
    ]
    wanted = dict(zip(paths, unique_names(paths), strict=True))
    assert len(set(wanted.values())) == len(paths)
    for seed in range(10):
        random.Random(seed).shuffle(paths)
        assert dict(zip(paths, unique_names(paths), strict=True)) == wanted
