"""``convert``, ``inspect`` and ``check`` from the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.model import RANDOM

from moshi_pipe.cli import main
from moshi_pipe.model_check import clip_path, mel_distance_db
from moshi_pipe.models.make_checkpoint import make_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_convert_says_what_it_wrote_and_what_changed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["convert", "embedded", "q4", "--to", "mlx-q4"]) == 0
    said = capsys.readouterr().out
    assert "torch to mlx-q4, tensors: " in said
    assert "quantized" in said
    assert said.splitlines()[-2].endswith("numbers changed")
    assert f"model=local model.path={tmp_path / 'q4'}" in said

    assert main(["convert", "q4", "again", "--to=mlx-q4"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].endswith("as they were; no number changed")
    assert main(["inspect", "again"]) == 0
    assert "int4 in groups of 32" in capsys.readouterr().out


def test_convert_takes_a_model_and_its_keys(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["convert", "model=embedded", "model.overrides.context=11", "out", "to=candle"]
    assert main(words) == 0

    assert json.loads((tmp_path / "out" / "config.json").read_text())["context"] == 11
    assert "no number changed" in capsys.readouterr().out


def test_convert_replaces_what_it_wrote_and_no_other_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make = ["convert", "embedded", "out", "--to"]
    assert main([*make, "mlx-q4"]) == 0
    assert main([*make, "mlx-q4"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    assert main([*make, "candle"]) == 4

    assert "holds another model, which this one would replace" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "released").mkdir()
    (tmp_path / "released" / "model.safetensors").write_bytes(b"weights without a config")
    assert main(["convert", "embedded", "released", "--to", "candle"]) == 4


def test_quantize_prints_the_error_of_every_tensor(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["quantize", "embedded", "q8"]) == 0

    said = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in said if line.startswith("transformer.layers.0.")]
    assert {row[0].split(".", 3)[3] for row in rows} >= {"self_attn.in_projs.0.weight"}
    assert all(row[1] == "8" and 0 < float(row[-1].rstrip("%")) < 2 for row in rows)
    assert said[-2].startswith("all; largest error")
    assert said[-1].endswith(f"model=local model.path={tmp_path / 'q8'} quant=int8")
    assert json.loads((tmp_path / "q8" / "config.json").read_text())["quantize"]


def test_quantize_makes_int4_with_larger_errors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["quantize", "model=embedded", "q4", "quant=int4"]) == 0

    said = capsys.readouterr().out
    last = [line for line in said.splitlines() if line.startswith("all; largest error")]
    assert 3 < float(last[0].split()[-1].rstrip("%")) < 20


WRONG = [
    (["quantize", "embedded"], "quantize needs a source and a folder", "DST"),
    (["quantize", "embedded", "x", "quant=int5"], "quantize cannot make 'int5'", "int4"),
    (["convert"], "convert needs a source, a folder to write and a format", "--to FORMAT"),
    (["convert", "embedded", "--to", "torch"], "convert needs a source", "DST"),
    (["convert", "embedded", "x", "--to"], "--to needs a value", ""),
    (["convert", "embedded", "x", "--to", "onnx"], "there is no format 'onnx'", "mlx-q4"),
    (["convert", "embedded", "x", "--two", "torch"], "there is no flag '--two'", "--to"),
    (["convert", "embedded", "x", "--to=mlx-q4", "group=x"], "group has the wrong", "whole"),
    (["inspect"], "inspect needs one folder or file", "PATH [--json]"),
    (["check", "--json"], "--json needs a value", ""),
    (["inspect", "a", "--jsn"], "there is no flag '--jsn'", "--json"),
    (["convert", "embedded", "out", "--to"], "--to needs a value", "--to FORMAT"),
    (["convert", "embedded", "out"], "convert needs a source", "convert --help"),
    (["quantize", "embedded", "out", "quant=int4", "quant_group=7"], "format mlx-q4 has no", "32"),
    (["check", "--json"], "--json needs a value", "--json FILE"),
    (["-p", "vad", "source.path=a"], "-p leaves plugins out", "-p no:NAME"),
    *(
        ([*words, "model=remote", "model.url=ws://h"], "model 'remote' runs elsewhere", "ws://h")
        for words in (["check"], ["convert", "out", "--to", "mlx"], ["quantize", "out"])
    ),
]


@pytest.mark.parametrize(("words", "what", "help_text"), WRONG, ids=lambda v: str(v)[:40])
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], words: list[str], what: str, help_text: str
) -> None:
    assert main(words) == 2

    said = capsys.readouterr().err
    assert said.startswith(f"moshi-pipe: {what}")
    assert help_text in said


def test_a_source_that_is_not_there_is_an_error_of_the_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["convert", "nowhere", "x", "--to", "torch"]) == 5
    assert "there is no model folder" in capsys.readouterr().err
    assert main(["inspect", "nowhere"]) == 5
    assert "give a model's folder or one of its files" in capsys.readouterr().err


def test_a_file_in_place_of_a_folder_is_led_to_its_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "a", preset="tiny")

    assert main(["convert", "a/model.safetensors", "x", "--to", "torch"]) == 5

    assert f"give the folder that it is in: {tmp_path / 'a'}" in capsys.readouterr().err


def test_quantize_makes_groups_of_the_size_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["quantize", "embedded", "out", "quant=int4", "quant_group=64"]) == 0

    assert capsys.readouterr().out.splitlines()[-1].endswith("quant=int4 quant_group=64")
    assert main(["inspect", "out"]) == 0
    assert "int4 in groups of 64" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["convert", "quantize", "inspect", "check"])
def test_help_shows_the_usage(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"moshi-pipe {command} ")
    if command == "convert":
        assert "--to mlx-q4" in said

    assert main(["--help"]) == 0
    assert f"\n  {command} " in capsys.readouterr().out


def test_usages_are_written_once() -> None:
    from moshi_pipe import checkpoint_commands
    from moshi_pipe.commands import BUILTIN

    for name in ("convert", "quantize", "inspect", "check"):
        usage = getattr(checkpoint_commands, f"{name.upper()}_USAGE")
        assert BUILTIN[name].usage == usage


def test_inspect_gives_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", preset="tiny")

    assert main(["inspect", "a", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["family"] == "moshi"


def test_inspect_fails_on_what_is_damaged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "a", preset="tiny")
    (tmp_path / "a" / "tokenizer.model").unlink()

    assert main(["inspect", "a"]) == 5

    assert "the tokenizer is missing" in capsys.readouterr().out


def test_check_prints_a_verdict_and_writes_its_figures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["check", RANDOM, "device=cpu", "context=6", "--json", "figures.json"]) == 0

    said = capsys.readouterr().out
    assert "works, with random weights: what it says means nothing" in said
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["passed"]
    assert [r["status"] for r in found["results"]] == ["ok"] * 5
    assert len(found["figures"]["first_tokens"]) == 25
    assert found["figures"]["lm_format"] == "torch"
    assert len(found["figures"]["codec_codes_hash"]) == 16
    assert "torch" in found["versions"]

    assert main(["check", RANDOM, "device=cpu", "context=6", "--json", "again.json"]) == 0
    again = json.loads((tmp_path / "again.json").read_text())["figures"]
    hashes = [key for key in again if "hash" in key]
    assert len(hashes) == 6
    assert all(again[key] == found["figures"][key] for key in hashes)


def test_check_does_not_blame_the_model_for_a_clip_that_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "clip.wav").write_text("no sound")

    assert main(["check", RANDOM, "clip=clip.wav"]) == 3

    said = capsys.readouterr()
    assert "clip.wav" in said.err
    assert "does not work" not in said.out


@pytest.mark.parametrize("kind", ["stt", "hibiki"])
def test_check_chooses_the_graph_of_the_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    make_checkpoint(tmp_path / "a", preset="tiny", kind=kind)

    assert main(["check", "model=local", "model.path=a", "device=cpu"]) == 0

    assert "language model" in capsys.readouterr().out


def test_check_names_tensors_that_are_dead_or_not_finite(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "a", preset="tiny", dtype="float32")
    path = tmp_path / "a" / "model.safetensors"
    tensors = load_file(path)
    tensors["text_linear.weight"].zero_()
    save_file(tensors, path)

    assert main(["check", "model=local", "model.path=a", "device=cpu"]) == 0
    assert "one value only: text_linear.weight" in capsys.readouterr().out

    tensors["linears.2.weight"][3, 4] = float("nan")
    save_file(tensors, path)
    assert main(["check", "model=local", "model.path=a", "device=cpu"]) == 5
    said = capsys.readouterr().out
    assert "not finite: linears.2.weight" in said
    assert "does not work: lm tensors" in said


def test_the_mel_distance_is_in_db() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)

    assert mel_distance_db(noise, noise, 24_000) == 0.0
    assert mel_distance_db(noise, noise * np.float32(0.5), 24_000) == pytest.approx(6.02, abs=0.05)


def test_the_clip_comes_with_the_package() -> None:
    assert clip_path().is_file()
