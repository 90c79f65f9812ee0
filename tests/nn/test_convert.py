"""Every format from every format: the same names, the same numbers where they can be kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.formats import BASE, LMS, OTHER, SHARED, open_lm_at, write_lm

import moshi_pipe
from moshi_pipe.errors import CheckpointError, ConfigError, OutputError
from moshi_pipe.models.checkpoint import ModelOptions, embedded_folder, open_checkpoint
from moshi_pipe.models.formats.contents import FORMATS
from moshi_pipe.models.formats.target import FILE_NAMES
from moshi_pipe.models.layout import lm_layout
from moshi_pipe.models.protocols import Controls
from moshi_pipe.models.weight_check import match_weights
from moshi_pipe.nn import convert as convert_module
from moshi_pipe.nn.backend import TorchOptions, open_lm
from moshi_pipe.nn.convert import LOSSLESS, convert
from moshi_pipe.nn.load import open_lm_weights, read_lm

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.nn.convert import Converted

PLAIN = ("torch", "mlx", "candle")
# Of a matrix's largest number: half a step of int8 in a row or block, of int4 in a group.
LARGEST_ERROR = {"torch-q8": 0.005, "mlx-q8": 0.012, "mlx-q4": 0.13, "gguf": 0.005}


def numbers(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    checkpoint = open_lm_at(folder, **options)
    checkpoint.check()
    return dict(read_lm(checkpoint, torch.float32))


def changed(folder: Path, to: str, target: Path, **options: Any) -> Converted:
    return convert(open_lm_at(folder), target, to=to, **options)


def largest_error(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert set(ours) == set(theirs)
    errors = [(ours[n] - theirs[n]).abs().max() / theirs[n].abs().max() for n in ours]
    return float(max(errors))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of every shape of model, in every format."""
    root = tmp_path_factory.mktemp("formats")
    for name, config in LMS.items():
        write_lm(root / name / "source", config)
        for to in FORMATS:
            changed(root / name / "source", to, root / name / to)
    return root


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", LMS)
def test_a_written_format_is_told_by_its_content(sources: Path, name: str, to: str) -> None:
    checkpoint = open_lm_at(sources / name / to)
    assert checkpoint.lm_weights is not None
    assert checkpoint.config.lm is not None
    assert checkpoint.lm_weights.name == FILE_NAMES[to]

    found = match_weights(checkpoint.lm_weights, lm_layout(checkpoint.config.lm)).format

    # Without a depth transformer, candle's names are those of the hub.
    assert found == ("torch" if (name, to) == ("stt", "candle") else to)


@pytest.mark.parametrize("to", PLAIN)
@pytest.mark.parametrize("name", LMS)
def test_plain_formats_keep_every_bit(sources: Path, name: str, to: str) -> None:
    before, after = numbers(sources / name / "source"), numbers(sources / name / to)

    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("to", list(LARGEST_ERROR))
@pytest.mark.parametrize("name", LMS)
def test_quantized_formats_are_within_half_a_step(sources: Path, name: str, to: str) -> None:
    error = largest_error(numbers(sources / name / to), numbers(sources / name / "source"))

    assert 0 < error < LARGEST_ERROR[to]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_any_format_becomes_any_other(sources: Path, tmp_path: Path, source: str, to: str) -> None:
    folder = sources / "shared sets, low rank" / source
    before = numbers(folder)

    made = changed(folder, to, tmp_path / "out")

    after = numbers(tmp_path / "out")
    same = all(torch.equal(before[n], after[n]) for n in before)
    assert made.lossless == same
    assert same or largest_error(after, before) < LARGEST_ERROR.get(to, 0.005)
    if source == to:
        assert set(made.actions) == {"as they were"}
    if source in PLAIN and to in PLAIN:
        assert same
    if to == "gguf" and source in PLAIN:
        assert set(made.actions) == {"quantized", "of another type, same numbers"}


def test_quantized_numbers_are_exact_in_float32(sources: Path, tmp_path: Path) -> None:
    for source in ("gguf", "mlx-q4", "torch-q8"):
        folder = sources / "moshi" / source
        changed(folder, "torch", tmp_path / source, dtype="float32")

        before, after = numbers(folder), numbers(tmp_path / source)
        assert all(torch.equal(before[n], after[n]) for n in before)


def test_blocks_are_repacked_for_mlx_without_loss(sources: Path, tmp_path: Path) -> None:
    folder = sources / "packable" / "gguf"

    made = changed(folder, "mlx-q8", tmp_path / "out", group=32)

    before, after = numbers(folder), numbers(tmp_path / "out")
    assert made.actions["repacked, same numbers"] > 0
    assert made.lossless
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_codes_are_given_without_loss(sources: Path) -> None:
    for form, bits, group in (("mlx-q4", 4, 32), ("mlx-q8", 8, 64), ("gguf", 8, 32)):
        checkpoint = open_lm_at(sources / "packable" / form)
        with open_lm_weights(checkpoint) as reader:
            packed = reader.packed("text_linear.weight")
            whole = reader.read("text_linear.weight", torch.float32)
            assert reader.packed("out_norm.alpha") is None

        assert packed is not None
        assert (packed.bits, packed.group) == (bits, group)
        assert torch.equal(packed.numbers(), whole)
        assert packed.codes.shape == whole.shape


@pytest.mark.parametrize("source", FORMATS)
def test_every_format_speaks_the_same_on_torch(tmp_path: Path, source: str) -> None:
    embedded = open_checkpoint(ModelOptions())
    convert(embedded, tmp_path / source, to=source)

    ours, theirs = greedy(tmp_path / source), greedy(embedded_folder())

    if source in PLAIN:
        assert ours == theirs
    else:
        assert len(ours) == len(theirs) == 24
        assert ours != []


def greedy(folder: Path) -> list[int]:
    model = moshi_pipe.load(str(folder), overrides={"device": "cpu", "context": 6})
    noise = np.random.default_rng(0)
    tokens = []
    with model.session(temperature=0.0, text_temperature=0.0, seed=0) as session:
        for _ in range(24):
            frame = session.feed(noise.uniform(-0.3, 0.3, model.frame_size))
            tokens += [] if frame.token is None else [frame.token]
            tokens += [] if frame.codes is None else frame.codes.tolist()
    return tokens[:24]


def test_the_whole_checkpoint_is_written(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        calls.append((done, total))

    made = convert(open_checkpoint(ModelOptions()), tmp_path, to="torch-q8", progress=note)

    assert {p.name for p in tmp_path.iterdir()} == set(made.files)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantize"] is True
    assert config["moshi_name"] == "model.q8.safetensors"
    opened = open_checkpoint(ModelOptions(name="t", path=str(tmp_path)))
    opened.check()
    assert opened.is_random
    assert (
        calls[-1][0]
        == calls[-1][1]
        == sum(size for name, size in made.files.items() if name != "config.json")
    )


def test_lora_is_merged(tmp_path: Path) -> None:
    write_lm(tmp_path / "a", BASE, lora=True, lora_scaling=0.5, lora_name="lora.safetensors")
    down, up = torch.randn(4, 64), torch.randn(48, 4)
    save_file(
        {"text_linear.lora_A.weight": down, "text_linear.lora_B.weight": up},
        tmp_path / "a" / "lora.safetensors",
    )

    made = changed(tmp_path / "a", "mlx", tmp_path / "b")

    stored = load_file(tmp_path / "a" / "model.safetensors")["text_linear.weight"]
    update = up.bfloat16() @ down.bfloat16()
    after = load_file(tmp_path / "b" / "model.safetensors")["text_linear.weight"]
    assert torch.equal(after, stored + 0.5 * update)
    assert made.merged
    assert not made.lossless
    assert not {k for k in json.loads((tmp_path / "b" / "config.json").read_text()) if "lora" in k}


def test_norms_before_the_heads_have_no_place_in_other_formats(tmp_path: Path) -> None:
    write_lm(tmp_path / "a", OTHER | {"depformer_norm": "layer_norm"})

    for to in ("mlx", "candle", "gguf"):
        with pytest.raises(CheckpointError, match="no place for norms before the audio heads"):
            changed(tmp_path / "a", to, tmp_path / "b")
    assert changed(tmp_path / "a", "torch-q8", tmp_path / "c").actions["quantized"]


def test_copies_that_differ_are_refused(tmp_path: Path) -> None:
    write_lm(tmp_path / "a", SHARED)
    changed(tmp_path / "a", "candle", tmp_path / "b")
    path = tmp_path / "b" / "model.safetensors"
    tensors = load_file(path)
    tensors["depformer.3.transformer.layers.0.gating.linear_in.weight"][0, 0] += 1
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"differs from 'depformer\.2\.transformer"):
        numbers(tmp_path / "b")
    with pytest.raises(CheckpointError, match="differs from"):
        changed(tmp_path / "b", "torch", tmp_path / "c")
    assert not (tmp_path / "c" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"to": "mlx-q5"}, "there is no format 'mlx-q5'"),
        ({"to": "mlx-q4", "group": 48}, "has no groups of 48"),
        ({"to": "torch", "group": 32}, "has no groups of 32"),
        ({"to": "torch", "dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, options: dict[str, Any], what: str
) -> None:
    write_lm(tmp_path / "a", BASE)

    with pytest.raises(ConfigError, match=what):
        convert(open_lm_at(tmp_path / "a"), tmp_path / "b", **options)


def test_the_sources_own_folder_is_refused(tmp_path: Path) -> None:
    write_lm(tmp_path / "a", BASE)

    with pytest.raises(ConfigError, match="into its own folder"):
        changed(tmp_path / "a", "torch", tmp_path / "a")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lm(tmp_path / "a", BASE)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "_write_at", fail)
    with pytest.raises(OutputError, match="cannot write the checkpoint"):
        changed(tmp_path / "a", "torch", tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_the_dtype_of_plain_numbers_can_be_chosen(tmp_path: Path) -> None:
    write_lm(tmp_path / "a", BASE, dtype="F32")

    kept = changed(tmp_path / "a", "mlx", tmp_path / "b")
    rounded = changed(tmp_path / "a", "mlx", tmp_path / "c", dtype="bfloat16")

    assert kept.lossless
    assert rounded.actions["rounded"] > 0
    types = {t.dtype for t in load_file(tmp_path / "c" / "model.safetensors").values()}
    assert types == {torch.bfloat16}


def test_every_action_is_known() -> None:
    assert set(LOSSLESS) < {
        value
        for name, value in vars(convert_module).items()
        if name.isupper() and isinstance(value, str)
    }


def test_a_hibiki_file_keeps_its_end_of_stream(tmp_path: Path) -> None:
    write_lm(tmp_path / "a", BASE, model_type="hibiki")
    shutil.copytree(tmp_path / "a", tmp_path / "same")

    changed(tmp_path / "a", "candle", tmp_path / "b")

    name = "text_emb.weight"
    stored = [load_file(tmp_path / f / "model.safetensors")[name] for f in ("a", "b")]
    assert torch.equal(*stored)
    read = numbers(tmp_path / "b")[name]
    assert torch.equal(read[2], read[3])


MEMORY = """
import sys
from pathlib import Path
from moshi_pipe.models.checkpoint import LM, ModelOptions, open_checkpoint
from moshi_pipe.nn.convert import convert

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

source, target, to = sys.argv[1:]
checkpoint = open_checkpoint(ModelOptions(name="t", path=source), parts=[LM])
small = open_checkpoint(ModelOptions(), parts=[LM])
convert(small, Path(target) / "first", to=to)
before, peak = anonymous(), [0]
convert(checkpoint, target, to=to,
        progress=lambda done, total: peak.__setitem__(0, max(peak[0], anonymous())))
print((max(peak[0], anonymous()) - before) / 1e6)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("to", ["mlx-q4", "gguf", "torch"])
def test_converting_takes_some_mb_whatever_the_size(tmp_path: Path, to: str) -> None:
    wide = BASE | {"dim": 1024, "num_layers": 4, "num_heads": 8, "text_card": 8000}
    write_lm(tmp_path / "a", wide)
    size_mb = (tmp_path / "a" / "model.safetensors").stat().st_size / 1e6
    assert size_mb > 120

    answer = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "a"), str(tmp_path / "b"), to],
        capture_output=True,
        text=True,
        check=True,
    )

    assert float(answer.stdout) < 60


def test_depth_weights_that_are_not_used_are_passed_over(tmp_path: Path) -> None:
    more = BASE | {"dep_q": 8}
    write_lm(tmp_path / "a", more)
    whole = open_lm_at(tmp_path / "a")
    part = open_lm_at(tmp_path / "a", overrides={"dep_q_used": 4})

    part.check()
    made = convert(part, tmp_path / "b", to="mlx")

    assert made.lossless
    written = open_lm_at(tmp_path / "b")
    written.check()
    assert part.config.lm is not None
    assert written.config.lm == replace(part.config.lm, num_stored=0)
    every, used = dict(read_lm(whole)), dict(read_lm(part))
    assert set(used) < set(every)
    assert "linears.4.weight" not in used
    assert all(torch.equal(every[name], used[name]) for name in used)
    assert all(torch.equal(tensor, used[name]) for name, tensor in read_lm(written))


def test_the_first_depth_steps_do_not_need_the_later_ones(tmp_path: Path) -> None:
    write_lm(tmp_path, BASE | {"dep_q": 8}, dtype="F32")
    column_BS = torch.tensor([[3, *range(8)]])
    codes = []
    for overrides in ({}, {"dep_q_used": 4}):
        checkpoint = open_lm_at(tmp_path, overrides=overrides)
        model = open_lm(checkpoint, TorchOptions(torch.device("cpu"), torch.float32))
        zeros, counts = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
        state = model.new_state(1)
        valid_B = torch.ones(1, dtype=torch.bool)
        with torch.inference_mode():
            step = model.step(column_BS, valid_B, Controls(zeros, zeros, counts, counts), state)
        codes.append(step.codes_BK.tolist()[0])

    assert len(codes[0]) == 8
    assert codes[1] == codes[0][:4]
