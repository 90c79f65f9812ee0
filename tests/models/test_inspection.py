"""What a checkpoint is, and what is wrong with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file
from support.formats import CONDITIONED, PACKABLE, STT, open_lm_at, write_lm

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.inspection import inspect_checkpoint, inspection_text
from moshi_pipe.nn.convert import convert

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.models.inspection import FileFinding, Inspection


def part(found: Inspection, name: str) -> FileFinding:
    return next(file for file in found.files if file.part == name)


def test_a_whole_folder_is_described(tiny: Path) -> None:
    found = inspect_checkpoint(tiny)

    assert (found.family, found.random, found.context) == ("moshi", True, 250)
    assert found.codebooks == "8 own, 8 heard"
    assert found.backends == ("torch", "mlx", "rust")
    assert found.problems == []
    assert [file.part for file in found.files] == ["config", "lm", "tokenizer", "codec", "config"]
    assert part(found, "lm").format == "torch"
    assert part(found, "lm").quantization == "none"
    assert part(found, "codec").num_tensors == 126
    assert "nothing is missing or damaged" in inspection_text(found)
    assert json.loads(json.dumps(found.to_dict()))["family"] == "moshi"


@pytest.mark.parametrize(
    ("to", "quantization"),
    [
        ("mlx-q4", "int4 in groups of 32"),
        ("gguf", "Q8_0"),
        ("torch-q8", "int8 per row"),
        ("candle", "none"),
    ],
)
def test_formats_are_told(tmp_path: Path, to: str, quantization: str) -> None:
    write_lm(tmp_path / "a", PACKABLE)
    made = convert(open_lm_at(tmp_path / "a"), tmp_path / "b", to=to)

    found = inspect_checkpoint(next(made.folder / n for n in made.files if n != "config.json"))

    assert part(found, "lm").format == to
    assert quantization in part(found, "lm").quantization
    assert found.backends == ("torch", "mlx", "rust")
    assert found.problems == []


@pytest.mark.parametrize(
    ("config", "family", "codebooks"),
    [
        (PACKABLE, "moshi", "4 own, 4 heard"),
        (STT, "stt", "0 own, 8 heard"),
        (CONDITIONED, "hibiki", "4 own, 4 heard"),
    ],
)
@pytest.mark.parametrize("to", ["torch", "mlx", "gguf"])
def test_a_file_alone_tells_its_family(
    tmp_path: Path, config: dict[str, object], family: str, codebooks: str, to: str
) -> None:
    write_lm(tmp_path / "a", config)
    made = convert(open_lm_at(tmp_path / "a"), tmp_path / "b", to=to)
    (tmp_path / "b" / "config.json").unlink()

    found = inspect_checkpoint(next(made.folder / n for n in made.files if n != "config.json"))

    assert (found.family, found.codebooks) == (family, codebooks)
    assert part(found, "lm").format == to
    assert found.problems == []


def test_missing_and_damaged_parts_are_listed_together(tiny_copy: Path) -> None:
    (tiny_copy / "tokenizer.model").unlink()
    codec = tiny_copy / "mimi.safetensors"
    codec.write_bytes(codec.read_bytes()[:-10])
    tensors = load_file(tiny_copy / "model.safetensors")
    del tensors["out_norm.alpha"]
    save_file(tensors, tiny_copy / "model.safetensors")

    found = inspect_checkpoint(tiny_copy)

    assert len(found.problems) == 3
    text = inspection_text(found)
    assert "the tokenizer is missing" in text
    assert "is truncated" in text
    assert "out_norm.alpha" in text
    assert "3 problems" in text


def test_a_codec_alone_is_one(tiny: Path) -> None:
    found = inspect_checkpoint(tiny / "mimi.safetensors")

    assert found.family == "codec"
    assert found.problems == []


def test_weights_beside_the_named_ones_are_listed(tiny_copy: Path) -> None:
    tensors = load_file(tiny_copy / "model.safetensors")
    save_file(tensors, tiny_copy / "more.safetensors")

    found = inspect_checkpoint(tiny_copy)

    assert "more.safetensors" in [file.name for file in found.files]


def test_a_broken_config_is_a_problem(tiny_copy: Path) -> None:
    (tiny_copy / "config.json").write_text("{oops")

    found = inspect_checkpoint(tiny_copy)

    assert "cannot read the config" in found.problems[0]


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file or folder"):
        inspect_checkpoint(tmp_path / "nowhere")
    assert inspect_checkpoint(tmp_path).problems == ["the folder holds no model"]
