"""A checkpoint is found, its config read, and its files compared with what the config predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import load_file, save_file

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.checkpoint import (
    Checkpoint,
    ModelConfig,
    ModelOptions,
    embedded_folder,
    open_checkpoint,
    read_specs,
)
from moshi_pipe.models.released import RELEASED_CONFIGS

MODELS = Path(__file__).parents[2] / "conf" / "model"


def open_at(folder: Path, **options: Any) -> Checkpoint:
    parts = options.pop("parts", ("lm", "mimi", "tokenizer"))
    return open_checkpoint(ModelOptions(name="t", path=str(folder), **options), parts=parts)


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_gives_every_file_and_spec(tiny: Path) -> None:
    checkpoint = open_at(tiny)

    checkpoint.check()
    assert checkpoint.lm_weights == tiny / "model.safetensors"
    assert checkpoint.mimi_weights == tiny / "mimi.safetensors"
    assert checkpoint.tokenizer == tiny / "tokenizer.model"
    assert checkpoint.config.lm is not None
    assert checkpoint.config.lm.text_cardinality == 512
    assert checkpoint.mimi is not None
    assert checkpoint.mimi.num_active == 8
    assert checkpoint.is_random
    assert checkpoint.warnings == ()


def test_the_default_is_the_embedded_model() -> None:
    checkpoint = open_checkpoint(ModelOptions())

    checkpoint.check()
    assert checkpoint.where == str(embedded_folder())
    assert checkpoint.is_random


@pytest.mark.parametrize(
    ("repo", "num_codebooks", "kind"),
    [
        ("kyutai/moshiko-pytorch-bf16", 8, "moshi"),
        ("kyutai/hibiki-2b-pytorch-bf16", 16, "hibiki"),
        ("kyutai/hibiki-1b-pytorch-bf16", 8, "hibiki"),
        ("kyutai/stt-2.6b-en", 32, "stt"),
    ],
)
def test_named_models_are_known_without_a_network(repo: str, num_codebooks: int, kind: str) -> None:
    config, mimi = read_specs(ModelOptions(name="x", repo=repo, offline=True))

    assert config.model_type == kind
    assert mimi.num_active == num_codebooks


def test_config_keys_that_are_not_the_models_are_taken_out() -> None:
    config = ModelConfig.from_json(
        {
            **RELEASED_CONFIGS["kyutai/moshiko-pytorch-bf16"],
            "moshi_name": "a.safetensors",
            "lm_gen_config": {"temp": 0.5},
            "model_id": {"sig": "abc", "epoch": 3},
            "lora": True,
            "lora_rank": 64,
            "lora_scaling": 4.0,
            "lora_name": "lora.safetensors",
        }
    )

    assert config.lm_name == "a.safetensors"
    assert config.lm_gen_config == {"temp": 0.5}
    assert config.lora_scaling == 4.0
    assert not config.is_random


def test_a_text_to_speech_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="model_type tts"):
        ModelConfig.from_json({"model_type": "tts"})


def test_overrides_replace_keys_of_the_config(tiny: Path) -> None:
    checkpoint = open_at(tiny, overrides={"context": 11})

    assert checkpoint.config.lm is not None
    assert checkpoint.config.lm.temporal.context == 11


def test_options_are_a_structured_config() -> None:
    config = OmegaConf.merge(OmegaConf.structured(ModelOptions), {"overrides": {"context": 5}})

    assert OmegaConf.to_object(config) == ModelOptions(overrides={"context": 5})


HERE = sorted(path for path in MODELS.glob("*.yaml") if path.stem != "remote")


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_every_model_in_the_config_tree_that_runs_here_can_be_planned(path: Path) -> None:
    config = OmegaConf.merge(OmegaConf.structured(ModelOptions), OmegaConf.load(path))
    if path.stem == "local":
        config.path = str(embedded_folder())

    options = OmegaConf.to_object(config)

    assert isinstance(options, ModelOptions)
    assert options.name == path.stem
    assert read_specs(options)[0].lm is not None


def test_names_may_be_files_of_their_own(tiny_copy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.safetensors"
    (tiny_copy / "model.safetensors").rename(moved)
    change_config(tiny_copy, moshi_name=f"file://{moved}")

    assert open_at(tiny_copy).lm_weights == moved


def test_an_option_replaces_one_file(tiny_copy: Path, tmp_path: Path) -> None:
    moved = (tiny_copy / "mimi.safetensors").rename(tmp_path / "codec.safetensors")

    assert open_at(tiny_copy, mimi_file=str(moved)).mimi_weights == moved


def test_only_the_parts_asked_for_must_be_there(tiny_copy: Path) -> None:
    (tiny_copy / "model.safetensors").unlink()
    (tiny_copy / "tokenizer.model").unlink()

    checkpoint = open_at(tiny_copy, parts=("mimi",))

    checkpoint.check()
    assert checkpoint.lm_weights is None
    with pytest.raises(CheckpointError, match=r"lacks the file 'model\.safetensors'"):
        open_at(tiny_copy, parts=("lm",))


def test_a_folder_with_a_codec_alone_serves_codec_graphs(tiny_copy: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (tiny_copy / name).unlink()

    checkpoint = open_at(tiny_copy, parts=("mimi",))

    checkpoint.check()
    assert checkpoint.mimi_weights == tiny_copy / "mimi.safetensors"
    assert checkpoint.mimi is not None
    assert checkpoint.mimi.num_active == 8
    with pytest.raises(CheckpointError, match="holds no language model"):
        open_at(tiny_copy, parts=("lm",))


def test_a_folder_without_a_config_is_taken_for_a_7b_with_a_warning(tiny_copy: Path) -> None:
    (tiny_copy / "config.json").unlink()

    checkpoint = open_at(tiny_copy, parts=("lm",))

    assert checkpoint.config.lm is not None
    assert checkpoint.config.lm.temporal.dim == 4096
    assert "has no config.json" in checkpoint.warnings[0]
    with pytest.raises(CheckpointError, match="does not hold the model"):
        checkpoint.check()


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")

    with pytest.raises(CheckpointError, match=r"a folder with notes\.txt"):
        open_at(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(CheckpointError, match="there is no model folder"):
        open_at(tmp_path / name)


def test_a_broken_config_is_named(tiny_copy: Path) -> None:
    (tiny_copy / "config.json").write_text("{oops")

    with pytest.raises(CheckpointError, match=r"cannot read the config .*config\.json"):
        open_at(tiny_copy)


def test_missing_unknown_and_misshapen_tensors_are_listed_together(tiny_copy: Path) -> None:
    path = tiny_copy / "model.safetensors"
    tensors = load_file(path)
    del tensors["out_norm.alpha"]
    tensors["emb.0.weight"] = tensors["emb.0.weight"][:-1]
    tensors["emb.99.weight"] = np.zeros(3, np.float32)
    tensors["text_emb.weight"] = tensors["text_emb.weight"].astype(np.int8)
    save_file(tensors, path)

    with pytest.raises(CheckpointError) as caught:
        open_at(tiny_copy).check()

    assert caught.value.got is not None
    lines = caught.value.got.splitlines()
    assert lines[1:] == [
        "missing, 1:",
        "  out_norm.alpha",
        "unknown, 1:",
        "  emb.99.weight [3]",
        "misshapen, 2:",
        "  emb.0.weight: F32 [256, 128], config says BF16 [257, 128]",
        "  text_emb.weight: I8 [513, 128], config says BF16 [513, 128]",
    ]


def test_a_long_list_is_cut_with_its_count(tiny_copy: Path) -> None:
    path = tiny_copy / "model.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, path)

    with pytest.raises(CheckpointError, match=r"missing, \d+:") as caught:
        open_at(tiny_copy).check()

    assert "  and " in str(caught.value)
    assert len(str(caught.value).splitlines()) < 40


def test_split_names_and_a_metadata_entry_are_accepted(tiny_copy: Path) -> None:
    path = tiny_copy / "model.safetensors"
    tensors = load_file(path)
    name = "depformer.layers.0.self_attn.in_proj_weight"
    for i, rows in enumerate(np.split(tensors.pop(name), 8)):
        tensors[f"depformer.layers.0.self_attn.in_projs.{i}.weight"] = rows.copy()
    save_file(tensors, path, metadata={"made": "by a test"})

    open_at(tiny_copy).check()


def test_lora_without_its_file_is_refused(tiny_copy: Path) -> None:
    change_config(tiny_copy, lora=True)

    with pytest.raises(CheckpointError, match="the LoRA file do not go together"):
        open_at(tiny_copy)
