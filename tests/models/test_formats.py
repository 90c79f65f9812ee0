"""Files of other formats are compared with the config as strictly as PyTorch's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.formats import BASE, PACKABLE, SHARED, STT, open_lm_at, write_lm

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.checkpoint import ModelOptions, choose_release, read_specs
from moshi_pipe.models.formats.names import MLX, naming_of, slice_names
from moshi_pipe.models.layout import TensorSpec, lm_layout
from moshi_pipe.models.released import RELEASED_CONFIGS, RELEASES
from moshi_pipe.models.spec import LMSpec
from moshi_pipe.models.weight_check import packing_of
from moshi_pipe.nn.convert import convert

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mlx_q4(tmp_path: Path) -> Path:
    """Folder of a model in MLX's int4."""
    write_lm(tmp_path / "source", PACKABLE)
    convert(open_lm_at(tmp_path / "source"), tmp_path / "q4", to="mlx-q4")
    return tmp_path / "q4"


def complaint(folder: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_lm_at(folder).check()
    return (caught.value.got or "").splitlines()[1:]


def test_missing_unknown_and_misshapen_tensors_are_listed_by_their_names(mlx_q4: Path) -> None:
    path = mlx_q4 / "model.q4.safetensors"
    tensors = load_file(path)
    del tensors["out_norm.weight"]
    del tensors["depformer.slices.1.linear_in.biases"]
    tensors["text_linear.weight"] = tensors["text_linear.weight"][:, :-1].clone()
    tensors["depformer.slices.9.linear_in.weight"] = torch.zeros(2)
    save_file(tensors, path)

    assert complaint(mlx_q4) == [
        "missing, 1:",
        "  out_norm.weight",
        "unknown, 2:",
        "  depformer.slices.1.linear_in.scales [64, 8]",
        "  depformer.slices.9.linear_in.weight [2]",
        "misshapen, 2:",
        "  depformer.slices.1.linear_in.weight: U32 [64, 32], config says BF16 [64, 256]",
        "  text_linear.weight: U32 [48, 31] with scales, config says BF16 [48, 256]",
    ]


def test_names_of_two_formats_are_not_taken_for_one(mlx_q4: Path) -> None:
    path = mlx_q4 / "model.q4.safetensors"
    tensors = load_file(path)
    for name in [n for n in tensors if n.startswith("audio_embs.0.")]:
        tensors[name.replace("audio_embs", "emb")] = tensors.pop(name)
    save_file(tensors, path)

    lines = complaint(mlx_q4)

    assert "  audio_embs.0.weight" in lines
    assert "  emb.0.weight [33, 32]" in lines


def test_int8_without_its_scales_is_misshapen(tmp_path: Path) -> None:
    write_lm(tmp_path / "a", BASE)
    convert(open_lm_at(tmp_path / "a"), tmp_path / "b", to="torch-q8")
    path = tmp_path / "b" / "model.q8.safetensors"
    tensors = load_file(path)
    scales = tensors.pop("text_linear.weight_scb")
    tensors["linears.0.weight_scb"] = tensors["linears.0.weight_scb"][1:].clone()
    tensors["nothing.weight_scb"] = scales
    save_file(tensors, path)

    assert complaint(tmp_path / "b") == [
        "unknown, 1:",
        "  nothing.weight_scb [48]",
        "misshapen, 2:",
        "  linears.0.weight: I8 [32, 32] with scales, config says I8 [32, 32]",
        "  text_linear.weight: I8 [48, 64], config says I8 [48, 64]",
    ]


def test_a_tensor_that_is_there_twice_is_named(tmp_path: Path) -> None:
    write_lm(tmp_path, BASE)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "transformer.layers.0.self_attn."
    tensors[f"{name}in_projs.0.weight"] = tensors[f"{name}in_proj_weight"].clone()
    save_file(tensors, path)

    assert complaint(tmp_path)[0] == "unknown, 1:"
    assert "once more" in complaint(tmp_path)[1]


def test_a_truncated_gguf_is_said_to_be(tmp_path: Path) -> None:
    write_lm(tmp_path / "a", BASE)
    convert(open_lm_at(tmp_path / "a"), tmp_path / "b", to="gguf")
    path = tmp_path / "b" / "model.q8.gguf"
    path.write_bytes(path.read_bytes()[:-4000])

    with pytest.raises(CheckpointError, match="is truncated"):
        open_lm_at(tmp_path / "b").check()


def test_another_formats_file_serves_a_config(mlx_q4: Path) -> None:
    open_lm_at(mlx_q4.parent / "source", lm_file=str(mlx_q4 / "model.q4.safetensors")).check()


def test_a_folder_without_a_config_is_searched_for_every_released_name(mlx_q4: Path) -> None:
    (mlx_q4 / "config.json").unlink()

    checkpoint = open_lm_at(mlx_q4)

    assert checkpoint.lm_weights == mlx_q4 / "model.q4.safetensors"
    with pytest.raises(CheckpointError, match="does not hold the model"):
        checkpoint.check()


PACKINGS = [
    ((8, 256), (8, 32), (8, 8), (4, 32)),
    ((8, 256), (8, 64), (8, 4), (8, 64)),
    ((8, 256), (8, 48), (8, 4), (6, 64)),
    ((8, 256), (8, 56), (8, 4), None),  # 7 bits
    ((8, 256), (8, 32), (8, 2), (4, 128)),
    ((8, 256), (8, 32), (8, 1), None),  # groups of 256
    ((8, 256), (7, 32), (8, 8), None),
    ((8, 256), (8, 32), (7, 8), None),
    ((8, 1, 256), (8, 32), (8, 8), None),
]


@pytest.mark.parametrize(("shape", "words", "groups", "wanted"), PACKINGS)
def test_shapes_tell_bits_and_group(
    shape: tuple[int, ...],
    words: tuple[int, int],
    groups: tuple[int, int],
    wanted: tuple[int, int] | None,
) -> None:
    scales = TensorSpec(groups, "BF16")

    assert packing_of(shape, [TensorSpec(words, "U32"), scales, scales]) == wanted
    assert packing_of(shape, [TensorSpec(words, "I32"), scales, scales]) is None


def test_slices_that_share_a_set_have_a_copy_each() -> None:
    spec = LMSpec.from_config(SHARED)

    names = slice_names(spec, MLX)

    assert names["depformer_in.2.weight"] == (
        "depformer.slices.2.linear_in.weight",
        "depformer.slices.3.linear_in.weight",
    )
    assert len(names["depformer.layers.0.norm1.alpha"]) == 4
    assert set(names) == set(lm_layout(spec).weights)


def test_the_naming_is_told_by_the_names() -> None:
    spec = LMSpec.from_config(STT)

    assert naming_of(lm_layout(spec).tensors) == "hub"
    assert naming_of(n for names in slice_names(spec, MLX).values() for n in names) == "mlx"
    assert naming_of(["depformer.layers.0.norm1.alpha"]) == "hub"
    assert naming_of(["depformer.0.linear_in.weight"]) == "candle"


def options(**changes: object) -> ModelOptions:
    return ModelOptions(**{"name": "m", "repo": "kyutai/moshika-pytorch-bf16", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "quant", "repo"),
    [
        ("torch", "none", "kyutai/moshika-pytorch-bf16"),
        ("torch", "int8", "kyutai/moshika-pytorch-q8"),
        ("mlx", "int4", "kyutai/moshika-mlx-q4"),
        ("mlx", "int8", "kyutai/moshika-mlx-q8"),
        ("rust", "int8", "kyutai/moshika-candle-q8"),
        ("rust", "int4", "kyutai/moshika-pytorch-bf16"),
        ("other", "none", "kyutai/moshika-pytorch-bf16"),
    ],
)
def test_backend_and_quant_choose_the_repository(backend: str, quant: str, repo: str) -> None:
    chosen = choose_release(options(), backend, quant)

    assert chosen.repo == repo
    assert repo in chosen.title
    assert read_specs(chosen)[0].lm == read_specs(options())[0].lm


@pytest.mark.parametrize(
    "given",
    [{"path": "x"}, {"repo": "me/mine"}, {"revision": "v1"}, {"lm_file": "x"}, {"lora_file": "l"}],
)
def test_what_a_user_chose_stays(given: dict[str, str]) -> None:
    assert choose_release(options(**given), "mlx", "int4") == options(**given)


def test_every_release_can_be_planned_without_a_network() -> None:
    for releases in RELEASES.values():
        assert {release.repo for release in releases.values()} <= set(RELEASED_CONFIGS)


def test_personaplex_is_moshi_with_sixteen_depth_steps_of_which_eight_are_used() -> None:
    config, mimi = read_specs(ModelOptions(name="p", repo="nvidia/personaplex-7b-v1"))
    lm = config.lm

    assert lm is not None
    assert (lm.num_generated, lm.num_user, mimi.num_active) == (8, 8, 8)
    moshi = read_specs(options())[0].lm
    assert moshi is not None
    assert {n: s.shape for n, s in lm_layout(lm).tensors.items()} == {
        n: s.shape for n, s in lm_layout(moshi).tensors.items()
    }
    # As its file has it: 8 371 408 896 elements.
    stored = lm_layout(lm.as_stored()).tensors.values()
    assert sum(spec.num_elements for spec in stored) == 8_371_408_896


def test_a_released_config_serves_a_folder(tmp_path: Path) -> None:
    wanted = "released://nvidia/personaplex-7b-v1"
    found = read_specs(ModelOptions(name="p", path=str(tmp_path), config_file=wanted))[0]
    assert found.lm is not None
    assert found.lm.num_stored == 16

    with pytest.raises(CheckpointError, match="no config is known for nobody/nothing"):
        read_specs(ModelOptions(path=str(tmp_path), config_file="released://nobody/nothing"))


@pytest.mark.parametrize("used", [0, 9])
def test_more_depth_steps_than_there_are_cannot_be_used(used: int) -> None:
    with pytest.raises(CheckpointError, match="'dep_q_used' is not a part"):
        LMSpec.from_config(BASE | {"dep_q": 8, "dep_q_used": used})
