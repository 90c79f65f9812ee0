"""What makes two runs the same run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moshi_pipe.identity import input_places, reads_one_file, run_identity, swept_aside

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """\
output_dir: moshi-out
resume: true
seed: 1
device: auto
sampling: {temperature: 0.8}
engine: {slots: 1, late: null}
model: {name: local, path: null, lm_file: null}
source: {node: file, path: in, glob: null}
sink: {file: {node: file, path: "{stem}", format: wav}}
"""


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("output_dir: moshi-out", "output_dir: elsewhere"),
        ("resume: true", "resume: false"),
        ("device: auto", "device: cuda:1"),
        ("late: null", "late: fail"),
        ("path: in", "path: /data/in"),
        ('path: "{stem}"', 'path: "{id}"'),
    ],
)
def test_places_and_pace_do_not_make_another_run(was: str, becomes: str) -> None:
    assert was in CONFIG
    assert run_identity(CONFIG.replace(was, becomes)) == run_identity(CONFIG)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("seed: 1", "seed: 2"),
        ("temperature: 0.8", "temperature: 0.7"),
        ("slots: 1", "slots: 4"),
        ("lm_file: null", "lm_file: model.q8.gguf"),
        ("format: wav", "format: flac"),
        ("name: local", "name: moshiko"),
    ],
)
def test_all_else_does(was: str, becomes: str) -> None:
    assert was in CONFIG
    assert run_identity(CONFIG.replace(was, becomes)) != run_identity(CONFIG)


def test_the_order_of_keys_does_not_matter() -> None:
    lines = CONFIG.splitlines(keepends=True)

    assert run_identity("".join(reversed(lines))) == run_identity(CONFIG)


def test_inputs_are_known_by_their_place_and_files_by_their_time(tmp_path: Path) -> None:
    talk = tmp_path / "talk.wav"
    talk.write_bytes(b"one")
    config = CONFIG.replace("path: in", f"path: {talk}")

    before = input_places(config)
    talk.write_bytes(b"other")

    assert [key for key, _, _ in before] == ["source.path"]
    assert input_places(config) != before


@pytest.mark.parametrize(
    ("swept", "keys"),
    [
        ("seed", []),
        ("sampling", []),
        ("output_dir", []),
        ("engine.late", ["engine.late"]),
        ("engine", ["engine.late"]),
        ("device", ["device"]),
        ("sink.file.path", ["sink.file.path"]),
        ("experiment", ["device", "engine.late", "sink.file.path"]),
    ],
)
def test_what_a_signature_leaves_aside_counts_where_it_is_swept(
    swept: str, keys: list[str]
) -> None:
    assert [key for key, _ in swept_aside(CONFIG, ["seed", swept])] == keys


@pytest.mark.parametrize(
    ("path", "one"),
    [("talk.wav", True), ("list.jsonl", False), (".", False), ("*.wav", False)],
)
def test_one_file_is_told_from_many(tmp_path: Path, path: str, one: bool) -> None:
    for name in ("talk.wav", "list.jsonl"):
        (tmp_path / name).touch()

    assert reads_one_file(CONFIG.replace("path: in", f'path: "{tmp_path / path}"')) is one


def test_what_has_no_path_or_an_address_is_told_from_a_file() -> None:
    assert reads_one_file(CONFIG.replace("path: in", "duration_s: 1"))
    assert not reads_one_file(CONFIG.replace("path: in", "path: s3://bucket/a.wav"))


def test_a_model_is_known_by_the_files_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"one")
    config = CONFIG.replace("path: null", f"path: {tmp_path}")

    before = input_places(config)
    (tmp_path / "model.safetensors").write_bytes(b"other")

    assert input_places(config) != before
