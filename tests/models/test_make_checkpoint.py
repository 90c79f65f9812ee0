"""Random checkpoints: complete, deterministic, and in the released layout."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from moshi_pipe.errors import ConfigError, OutputError
from moshi_pipe.models import make_checkpoint as module
from moshi_pipe.models.checkpoint import (
    ModelConfig,
    ModelOptions,
    embedded_folder,
    open_checkpoint,
)
from moshi_pipe.models.layout import TensorSpec, lm_tensors, mimi_tensors
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.presets import PRESETS, lm_config, mimi_config
from moshi_pipe.models.random_weights import Fill, draw
from moshi_pipe.models.released import RELEASED_CONFIGS
from moshi_pipe.models.spec import MimiSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EMBEDDED_BYTES = 10_000_000
FIRST = [1.3722200393676758, 0.6014447212219238, -1.6987237930297852, -0.4760126769542694]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def drawn(
    name: str, shape: tuple[int, ...], fill: Fill, seed: int = 0, dtype: str = "F32"
) -> npt.NDArray[Any]:
    return np.concatenate(list(draw(name, TensorSpec(shape, dtype), fill, seed))).reshape(shape)


def test_the_embedded_model_is_what_the_command_makes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, preset="tiny", kind="moshi", seed=0, dtype="bfloat16")

    assert digests(tmp_path) == digests(embedded_folder())


def test_the_embedded_model_is_a_few_megabytes_and_says_that_it_is_random() -> None:
    size = sum(path.stat().st_size for path in embedded_folder().iterdir())

    assert size < EMBEDDED_BYTES
    assert json.loads((embedded_folder() / "config.json").read_text())["model_id"]["sig"] == (
        "random"
    )


def test_a_shape_of_ones_own_is_written_as_a_preset_is(tmp_path: Path) -> None:
    wider = replace(PRESETS["tiny"], name="wider", dim=192)

    made = make_checkpoint(tmp_path, preset=wider, dtype="float32")

    spec = open_checkpoint(ModelOptions(name="w", path=str(made.folder))).config.lm
    assert spec is not None
    assert spec.temporal.dim == 192


def test_a_seed_changes_the_weights_alone(tiny: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, preset="tiny", seed=1, dtype="float32")

    ours, theirs = digests(tmp_path), digests(tiny)
    assert ours["model.safetensors"] != theirs["model.safetensors"]
    assert ours["mimi.safetensors"] != theirs["mimi.safetensors"]
    assert ours["mimi_config.json"] == theirs["mimi_config.json"]


@pytest.mark.parametrize("kind", ["hibiki", "stt"])
def test_every_kind_passes_its_own_check(tmp_path: Path, kind: str) -> None:
    made = make_checkpoint(tmp_path, preset="tiny", kind=kind, dtype="float16")

    checkpoint = open_checkpoint(ModelOptions(name="t", path=str(made.folder)))
    checkpoint.check()
    assert checkpoint.config.model_type == kind
    assert made.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("kind", ["moshi", "hibiki", "stt"])
def test_every_preset_describes_a_model(preset: str, kind: str) -> None:
    lm = ModelConfig.from_json(lm_config(PRESETS[preset], kind)).lm
    codec = mimi_config(PRESETS[preset])
    mimi = MimiSpec() if codec is None else MimiSpec.from_config(codec)

    assert lm is not None
    assert lm_tensors(lm)
    assert mimi_tensors(mimi)
    assert mimi.cardinality == lm.cardinality
    assert mimi.with_codebooks(max(lm.num_generated, lm.num_user)).stride == 2


def test_the_released_sizes_are_the_released_models() -> None:
    made = lm_config(PRESETS["7b"], "moshi")

    released = ModelConfig.from_json(RELEASED_CONFIGS["kyutai/moshiko-pytorch-bf16"])
    assert ModelConfig.from_json(made).lm == released.lm


def test_types_hold_the_same_numbers_rounded() -> None:
    fill = Fill(0.5)

    wide = drawn("a", (64, 64), fill)
    bits = drawn("a", (64, 64), fill, dtype="BF16").astype(np.uint32) << 16
    half = drawn("a", (64, 64), fill, dtype="F16")

    assert np.abs(bits.view(np.float32) - wide).max() <= 2.0**-8
    assert np.abs(half.astype(np.float32) - wide).max() <= 2.0**-11
    assert wide.std() == pytest.approx(0.5, rel=0.03)
    assert abs(wide.mean()) < 0.03


def test_the_first_numbers_of_a_tensor_are_fixed_for_ever() -> None:
    first = drawn("emb.0.weight", (4,), Fill(1.0), seed=7)

    assert first.tolist() == FIRST


def test_differences_sum_to_exactly_zero() -> None:
    kernel = drawn("downsample.conv.conv.conv.weight", (8, 8, 4), Fill(0.5, difference=True))

    assert np.array_equal(kernel[..., :2], -kernel[..., 2:])


def test_weights_are_finite_and_none_is_dead(tiny: Path) -> None:
    for name in ("model.safetensors", "mimi.safetensors"):
        for tensor, values in load_file(tiny / name).items():
            assert np.isfinite(values).all()
            assert tensor.endswith(".bias") or np.abs(values).max() > 0


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        calls.append((done, total))

    make_checkpoint(tmp_path, preset="tiny", progress=note)

    assert calls[-1][0] == calls[-1][1]
    assert calls == sorted(calls)


def test_a_full_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5))

    with pytest.raises(OutputError, match=r"got: +5 B free"):
        make_checkpoint(tmp_path, preset="tiny")

    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> Iterator[npt.NDArray[np.float32]]:
        yield np.zeros(4, np.float32)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "draw", fail)

    with pytest.raises(OutputError, match="No space left on device"):
        make_checkpoint(tmp_path, preset="tiny")

    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"preset": "tini"}, "did you mean 'tiny'"),
        ({"kind": "mosh"}, "did you mean 'moshi'"),
        ({"dtype": "float"}, "did you mean 'float"),
        ({"seed": -1}, "cannot be negative"),
    ],
)
def test_a_wrong_word_gives_the_closest_match(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_checkpoint(tmp_path, **options)


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"model_type": "moshi"}'},
        {"config.json": "not JSON"},
        {"model.safetensors": "weights"},
    ],
    ids=["a trained model", "a config of somebody else", "weights alone"],
)
def test_a_model_that_is_not_random_is_kept(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    with pytest.raises(OutputError, match="holds another model"):
        make_checkpoint(tmp_path)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_random_checkpoint_is_replaced(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, seed=1)
    first = (tmp_path / "model.safetensors").read_bytes()

    make_checkpoint(tmp_path, seed=2)

    assert (tmp_path / "model.safetensors").read_bytes() != first
