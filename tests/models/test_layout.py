"""The layout predicts released files to the byte, from the config alone."""

from __future__ import annotations

import pytest

from moshi_pipe.models.checkpoint import ModelConfig
from moshi_pipe.models.layout import (
    TensorSpec,
    is_linear,
    lm_layout,
    lm_tensors,
    mimi_layout,
    mimi_tensors,
    predicted_file_size,
)
from moshi_pipe.models.released import RELEASED_CONFIGS
from moshi_pipe.models.spec import LMSpec, MimiSpec

BASE = {
    "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
    "n_q": 8,
    "dep_q": 4,
    "card": 32,
    "text_card": 48,
    "dim": 64,
    "num_heads": 4,
    "num_layers": 3,
    "hidden_scale": 4.125,
    "context": 8,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 32,
    "depformer_dim_feedforward": 132,
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
}


def base(**changes: object) -> LMSpec:
    return LMSpec.from_config({**BASE, **changes})


def released(repo: str) -> LMSpec:
    lm = ModelConfig.from_json(RELEASED_CONFIGS[repo]).lm
    assert lm is not None
    return lm


def test_mimi_has_the_tensors_and_the_size_of_the_released_file() -> None:
    tensors = mimi_tensors(MimiSpec())

    assert len(tensors) == 318
    assert sum(spec.num_elements for spec in tensors.values()) == 96_151_393
    assert predicted_file_size(tensors) == 384_644_900


# Source: sizes of the files that the repositories publish.
@pytest.mark.parametrize(
    ("repo", "num_tensors", "num_elements", "file_size"),
    [
        ("kyutai/moshiko-pytorch-bf16", 355, 7_687_729_152, 15_375_500_136),
        ("kyutai/hibiki-2b-pytorch-bf16", 327, 2_787_362_816, 5_574_762_720),
        ("kyutai/stt-2.6b-en", 323, 2_617_118_720, 5_234_275_128),
        ("kyutai/stt-1b-en_fr", 131, 989_204_480, 1_978_423_520),
    ],
)
def test_language_models_have_the_size_of_the_released_files(
    repo: str, num_tensors: int, num_elements: int, file_size: int
) -> None:
    tensors = lm_tensors(released(repo))

    assert len(tensors) == num_tensors
    assert sum(spec.num_elements for spec in tensors.values()) == num_elements
    assert predicted_file_size(tensors) == file_size


def test_the_7b_has_439_tensors_in_memory() -> None:
    assert len(lm_layout(released("kyutai/moshiko-pytorch-bf16")).tensors) == 439


def test_a_fused_name_stands_for_the_rows_of_every_weight_set() -> None:
    layout = lm_layout(base())

    parts = layout.resolve("depformer.layers.1.self_attn.in_proj_weight")

    assert parts == tuple(f"depformer.layers.1.self_attn.in_projs.{i}.weight" for i in range(4))
    assert layout.stacked_spec(parts) == TensorSpec((4 * 96, 32), "BF16")
    assert layout.resolve("depformer.layers.1.self_attn.in_proj.weight") == parts


def test_split_and_old_names_stand_for_themselves() -> None:
    mimi = mimi_layout(MimiSpec())
    codebook = "quantizer.rvq_rest.vq.layers.3._codebook"

    assert mimi.resolve(f"{codebook}.embed_avg") == (f"{codebook}.embedding_sum",)
    assert mimi.resolve(f"{codebook}.cluster_size") == (f"{codebook}.cluster_usage",)
    split = "transformer.layers.0.self_attn.out_projs.0.weight"
    assert lm_layout(base()).resolve(split) == (split,)
    assert mimi.resolve("encoder.model.0.conv.conv.gain") == ()


def test_a_schedule_shares_weight_sets_between_codebooks() -> None:
    tensors = lm_tensors(base(depformer_weights_per_step_schedule=[0, 1, 2, 2]))

    assert tensors["depformer.layers.0.self_attn.out_proj.weight"].shape == (3 * 32, 32)
    assert "depformer_in.2.weight" in tensors
    assert "depformer_in.3.weight" not in tensors
    assert "linears.3.weight" in tensors


def test_variants_add_their_tensors() -> None:
    tensors = lm_tensors(
        base(
            depformer_low_rank_embeddings=8,
            norm_emb=True,
            bias_proj=True,
            depformer_norm="layer_norm",
            layer_scale=0.1,
            extra_heads_num_heads=4,
        )
    )

    assert tensors["depformer_emb.0.weight"].shape == (33, 8)
    assert tensors["depformer_emb.0.low_rank.weight"].shape == (32, 8)
    assert tensors["emb.7.norm.bias"].shape == (64,)
    assert tensors["text_linear.bias"].shape == (48,)
    assert tensors["linears.3.bias"].shape == (32,)
    assert tensors["depformer_norms.3.weight"].shape == (32,)
    assert tensors["transformer.layers.2.layer_scale_2.scale"].shape == (64,)
    assert tensors["extra_heads.3.weight"].shape == (6, 64)


def test_speech_to_text_has_no_depth_transformer() -> None:
    names = lm_tensors(released("kyutai/stt-2.6b-en"))

    assert not [name for name in names if name.startswith(("depformer", "linears"))]


def test_int8_changes_linear_weights_alone_and_adds_row_scales() -> None:
    tensors = lm_tensors(base(quantize=True))

    assert tensors["transformer.layers.0.self_attn.in_proj_weight"].dtype == "I8"
    scales = tensors["transformer.layers.0.self_attn.in_proj_weight_scb"]
    assert scales == TensorSpec((192,), "F32")
    assert tensors["depformer.layers.0.self_attn.out_proj.weight_scb"].shape == (4 * 32,)
    assert tensors["linears.0.weight"].dtype == "I8"
    assert tensors["emb.0.weight"].dtype == "BF16"
    assert tensors["out_norm.alpha"].dtype == "BF16"


def test_tables_and_norms_are_not_linear_layers() -> None:
    assert is_linear("text_linear.weight")
    assert is_linear("depformer_emb.0.low_rank.weight")
    assert is_linear("condition_provider.conditioners.description.output_proj.weight")
    assert not is_linear("condition_provider.conditioners.description.embed.weight")
    assert not is_linear("depformer_text_emb.weight")
    assert not is_linear("transformer.layers.0.norm1.weight")
    assert not is_linear("depformer_norms.0.weight")
