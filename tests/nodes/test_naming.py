"""Names of result files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.nodes import session_info

from moshi_pipe.errors import ConfigError, OutputError
from moshi_pipe.nodes.naming import make_room, output_path, write_error

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.graph.node import SessionInfo


def session(folder: Path, **meta: Any) -> SessionInfo:
    info = session_info("talk", folder)
    info.meta.update({"index": 7, "parent": "monday", **meta})  # type: ignore[attr-defined]
    return info


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{stem}", "talk.wav"),
        ("{id}-{seed}", "talk-0.wav"),
        ("{index:03d}", "007.wav"),
        ("{parent}/{stem}", "monday/talk.wav"),
        ("{stem}.wav", "talk.wav"),
        ("answer to {stem}", "answer to talk.wav"),
        ("{{{stem}}}", "{talk}.wav"),
        ("a/../{stem}", "talk.wav"),
    ],
)
def test_a_template_is_filled_with_what_the_session_has(
    tmp_path: Path, template: str, name: str
) -> None:
    assert output_path(template, session(tmp_path), ".wav") == tmp_path / name


def test_an_unknown_field_gives_the_closest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        output_path("{stm}", session(tmp_path), ".wav")
    assert str(caught.value) == (
        "the output name '{stm}' asks for 'stm', which this session does not have\n"
        "  wanted: did you mean 'stem'? (there are: id, index, parent, seed, stem)"
    )


@pytest.mark.parametrize("template", ["../{stem}", "/tmp/{stem}", "a/../../{stem}", "{path}"])
def test_a_name_cannot_leave_the_output_folder(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match="leaves the output folder") as caught:
        output_path(template, session(tmp_path, path="/elsewhere/talk"), ".wav")
    assert f"a path under {tmp_path}" in str(caught.value)


def test_a_link_out_of_the_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "door").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="leaves the output folder"):
        output_path("door/{stem}", session(tmp_path / "out"), ".wav")


@pytest.mark.parametrize(
    "template",
    ["{stem", "stem}", "{}", "{stem:03d}", "{index:{width}}", "{stem.nothing}", "{stem!z}"],
)
def test_a_template_that_cannot_be_read_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match=r"^the output name '") as caught:
        output_path(template, session(tmp_path), ".wav")
    assert caught.value.wanted is not None


@pytest.mark.parametrize("template", ["", "folder/", "{empty}"])
def test_a_template_that_leaves_no_name_is_refused(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match="names no file"):
        output_path(template, session(tmp_path, empty=""), ".wav")


def test_room_is_made_for_folders_inside_a_name(tmp_path: Path) -> None:
    make_room(tmp_path / "a" / "b" / "talk.wav")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write") as caught:
        make_room(tmp_path / "a" / "b" / "talk.wav")
    assert str(tmp_path / "a" / "b" / "talk.wav") in str(caught.value)


def test_a_write_error_tells_the_reason_the_folder_and_the_free_space(tmp_path: Path) -> None:
    error = write_error(tmp_path / "new" / "talk.wav", OSError(28, "No space left on device"))
    assert error.what == f"cannot write {tmp_path / 'new' / 'talk.wav'}"
    assert error.got is not None
    assert error.got.startswith(f"No space left on device ({tmp_path}: writable, ")
    assert error.got.endswith(" free)")
