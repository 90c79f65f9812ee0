"""Sizes of random checkpoints: from a few MB for tests to the released 7B.

A preset is a shape; what it is for (dialogue, translation, speech to text) is the kind. Where a
released model has that size and kind, the preset is exactly its config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.models.released import DESCRIPTION_CONDITION, RELEASED_CONFIGS

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS: Final = ("moshi", "hibiki", "stt")

MIMI_CONFIG: Final[Mapping[str, Any]] = {
    "sample_rate": 24_000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 512,
        "causal": True,
        "n_filters": 64,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": [8, 6, 5, 4],
        "true_skip": True,
    },
    "quantizer": {
        "dimension": 256,
        "n_q": 32,
        "bins": 2048,
        "input_dimension": 512,
        "output_dimension": 512,
    },
    "transformer": {
        "d_model": 512,
        "num_heads": 8,
        "num_layers": 8,
        "causal": True,
        "layer_scale": 0.01,
        "context": 250,
        "conv_layout": True,
        "max_period": 10_000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 2048,
        "input_dimension": 512,
        "output_dimensions": [512],
    },
}
"""The released codec's config, as the reference writes it.

Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/loaders.py:36-83.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """The shape of a random checkpoint.

    Attributes:
        name: What users choose it by.
        summary: One line for people.
        dim: Width of the temporal transformer.
        num_layers: Its blocks.
        num_heads: Its heads.
        context: Frames that it sees.
        depth_dim: Width of the depth transformer.
        depth_layers: Its blocks.
        depth_heads: Its heads.
        depth_feedforward: Its declared hidden size.
        text_cardinality: Text tokens.
        codebooks: Codebooks per speaker.
        cardinality: Entries per codebook.
        codec_dim: Width of Mimi's latent; None takes the released codec.
        codec_filters: SEANet's narrowest width.
        codec_layers: Blocks of each of Mimi's transformers.
        codec_quantizer_dim: Width of a codebook entry.
    """

    name: str
    summary: str
    dim: int
    num_layers: int
    num_heads: int
    context: int
    depth_dim: int
    depth_layers: int
    depth_heads: int
    depth_feedforward: int
    text_cardinality: int
    codebooks: int = 8
    cardinality: int = 2048
    codec_dim: int | None = None
    codec_filters: int = 64
    codec_layers: int = 8
    codec_quantizer_dim: int = 256


PRESETS: Final[Mapping[str, Preset]] = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            summary="7 MB in bfloat16; runs anywhere, for tests",
            dim=128,
            num_layers=3,
            num_heads=4,
            context=250,
            depth_dim=64,
            depth_layers=2,
            depth_heads=2,
            depth_feedforward=132,
            text_cardinality=512,
            cardinality=256,
            codec_dim=64,
            codec_filters=8,
            codec_layers=2,
            codec_quantizer_dim=32,
        ),
        Preset(
            name="small",
            summary="70 M parameters and a quarter-width codec",
            dim=512,
            num_layers=8,
            num_heads=8,
            context=750,
            depth_dim=256,
            depth_layers=4,
            depth_heads=4,
            depth_feedforward=1056,
            text_cardinality=4000,
            cardinality=1024,
            codec_dim=128,
            codec_filters=16,
            codec_layers=4,
            codec_quantizer_dim=64,
        ),
        Preset(
            name="medium",
            summary="380 M parameters and the released codec's shape",
            dim=1024,
            num_layers=12,
            num_heads=16,
            context=1500,
            depth_dim=512,
            depth_layers=6,
            depth_heads=8,
            depth_feedforward=2112,
            text_cardinality=8000,
        ),
        Preset(
            name="1b",
            summary="Hibiki-1B, STT-1B, or a dialogue model of that size",
            dim=2048,
            num_layers=16,
            num_heads=16,
            context=750,
            depth_dim=1024,
            depth_layers=6,
            depth_heads=16,
            depth_feedforward=4224,
            text_cardinality=32_000,
        ),
        Preset(
            name="2b",
            summary="Hibiki-2B, STT-2.6B, or a dialogue model of that size",
            dim=2560,
            num_layers=24,
            num_heads=20,
            context=3000,
            depth_dim=1024,
            depth_layers=6,
            depth_heads=16,
            depth_feedforward=4224,
            text_cardinality=32_000,
        ),
        Preset(
            name="7b",
            summary="Moshi 7B: 15.4 GB in bfloat16",
            dim=4096,
            num_layers=32,
            num_heads=32,
            context=3000,
            depth_dim=1024,
            depth_layers=6,
            depth_heads=16,
            depth_feedforward=4224,
            text_cardinality=32_000,
        ),
    )
}
"""Every size that ``make-checkpoint`` knows."""

_RELEASED: Final[Mapping[tuple[str, str], str]] = {
    ("7b", "moshi"): "kyutai/moshiko-pytorch-bf16",
    ("2b", "hibiki"): "kyutai/hibiki-2b-pytorch-bf16",
    ("1b", "hibiki"): "kyutai/hibiki-1b-pytorch-bf16",
    ("2b", "stt"): "kyutai/stt-2.6b-en",
    ("1b", "stt"): "kyutai/stt-1b-en_fr",
}
_NAMES: Final = ("moshi_name", "mimi_name", "tokenizer_name")


def find_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown size '{name}'", wanted=closest(name, PRESETS))
    return PRESETS[name]


def lm_config(preset: Preset, kind: str) -> dict[str, Any]:
    """Keys of ``config.json`` that describe the model, without file names.

    Args:
        preset: The shape.
        kind: ``moshi``, ``hibiki`` or ``stt``.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of model '{kind}'", wanted=closest(kind, KINDS))
    released = _RELEASED.get((preset.name, kind))
    if released is not None:
        known = RELEASED_CONFIGS[released].items()
        return {"model_type": kind, **{k: v for k, v in known if k not in _NAMES}}
    heard = preset.codebooks
    spoken = 0 if kind == "stt" else preset.codebooks
    lag = {"moshi": 1, "hibiki": 2, "stt": 0}[kind]
    stream = [0, *[lag] * (preset.codebooks - 1)]
    config: dict[str, Any] = {
        "model_type": kind,
        "dim": preset.dim,
        "num_heads": preset.num_heads,
        "num_layers": preset.num_layers,
        "hidden_scale": 4.125,
        "context": preset.context,
        "max_period": 10_000,
        "causal": True,
        "layer_scale": None,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "text_card": preset.text_cardinality,
        "existing_text_padding_id": 3,
        "card": preset.cardinality,
        "n_q": heard + spoken,
        "dep_q": spoken,
        "delays": [0, *stream, *(stream if spoken else [])],
        "depformer_dim": preset.depth_dim,
        "depformer_dim_feedforward": preset.depth_feedforward,
        "depformer_num_heads": preset.depth_heads,
        "depformer_num_layers": preset.depth_layers,
        "depformer_layer_scale": None,
        "depformer_gating": "silu",
        "depformer_multi_linear": True,
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
    }
    if kind == "hibiki":
        config.update(DESCRIPTION_CONDITION)
    if kind == "stt":
        config["stt_config"] = {"audio_silence_prefix_seconds": 0.0, "audio_delay_seconds": 0.5}
        config["lm_gen_config"] = {"temp": 0, "temp_text": 0}
    return config


def mimi_config(preset: Preset) -> dict[str, Any] | None:
    """Config of the preset's codec; None when it is the released one."""
    if preset.codec_dim is None:
        return None
    dim = preset.codec_dim
    return {
        **{key: MIMI_CONFIG[key] for key in ("sample_rate", "channels", "frame_rate")},
        "seanet": {
            **MIMI_CONFIG["seanet"],
            "dimension": dim,
            "n_filters": preset.codec_filters,
        },
        "quantizer": {
            "dimension": preset.codec_quantizer_dim,
            "n_q": preset.codebooks,
            "bins": preset.cardinality,
            "input_dimension": dim,
            "output_dimension": dim,
        },
        "transformer": {
            **MIMI_CONFIG["transformer"],
            "d_model": dim,
            "num_heads": max(dim // 32, 2),
            "num_layers": preset.codec_layers,
            "dim_feedforward": 4 * dim,
            "input_dimension": dim,
            "output_dimensions": [dim],
        },
    }
