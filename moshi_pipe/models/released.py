"""The configs of released models, so that sizes can be planned and checked without a network.

Each is the model's ``config.json`` as its repository has it, without the keys that only name where
files come from. Numbers were cross-checked by the size of the published weights: layout and config
predict it to the byte for the 7B, Hibiki-2B and STT-2.6B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.models.spec import MOSHI_7B_CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMMON: Final[Mapping[str, Any]] = {
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "existing_text_padding_id": 3,
    "card": 2048,
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "depformer_gating": "silu",
    "depformer_layer_scale": None,
}

DESCRIPTION_CONDITION: Final[Mapping[str, Any]] = {
    "conditioners": {
        "description": {
            "type": "lut",
            "lut": {
                "n_bins": 31,
                "dim": 16,
                "tokenizer": "noop",
                "possible_values": ["very_bad", "bad", "neutral", "good", "very_good"],
            },
        }
    },
    "fuser": {"cross_attention_pos_emb": False, "sum": ["description"], "cross": [], "prepend": []},
}
"""Hibiki's condition: how alike the translated voice should be."""

_HIBIKI_2B: Final[Mapping[str, Any]] = {
    **_COMMON,
    **DESCRIPTION_CONDITION,
    "model_type": "hibiki",
    "dim": 2560,
    "num_heads": 20,
    "num_layers": 24,
    "context": 1500,
    "max_period": 100_000,
    "text_card": 48_000,
    "n_q": 32,
    "dep_q": 16,
    "delays": [0, 0, *[2] * 15, 0, *[2] * 15],
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 3072,
    "depformer_num_heads": 16,
    "depformer_num_layers": 4,
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 5, 6, 7, *[8] * 8],
    "depformer_low_rank_embeddings": 128,
    "mimi_name": "mimi-pytorch-e351c8d8@125.safetensors",
    "moshi_name": "hibiki-pytorch-ccef4858@200.safetensors",
    "tokenizer_name": "tokenizer_spm_48k_multi6_2.model",
    "lm_gen_config": {"temp": 0.8, "temp_text": 0.8, "top_k": 250, "top_k_text": 50},
}

# The context of Hibiki-1B is not known to us; 750 frames is an assumption for planning only.
_HIBIKI_1B: Final[Mapping[str, Any]] = {
    **_COMMON,
    **DESCRIPTION_CONDITION,
    "model_type": "hibiki",
    "dim": 2048,
    "num_heads": 16,
    "num_layers": 16,
    "context": 750,
    "max_period": 100_000,
    "text_card": 48_000,
    "n_q": 16,
    "dep_q": 8,
    "delays": [0, 0, *[2] * 7, 0, *[2] * 7],
    "depformer_dim": 1024,
    "depformer_dim_feedforward": 4224,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "mimi_name": "mimi-pytorch-e351c8d8@125.safetensors",
    "moshi_name": "hibikim-pytorch-37c6cfd6@200.safetensors",
    "tokenizer_name": "tokenizer_spm_48k_multi6_2.model",
}

_STT: Final[Mapping[str, Any]] = {
    **_COMMON,
    "model_type": "stt",
    "max_period": 100_000,
    "n_q": 32,
    "dep_q": 0,
    "delays": [0] * 33,
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "mimi_name": "mimi-pytorch-e351c8d8@125.safetensors",
    "lm_gen_config": {"temp": 0, "temp_text": 0, "top_k": 250, "top_k_text": 50},
}

_STT_2_6B: Final[Mapping[str, Any]] = {
    **_STT,
    "dim": 2048,
    "num_heads": 32,
    "num_layers": 48,
    "context": 375,
    "text_card": 4000,
    "tokenizer_name": "tokenizer_en_audio_4000.model",
    "stt_config": {"audio_silence_prefix_seconds": 1.0, "audio_delay_seconds": 2.5},
}

_STT_1B: Final[Mapping[str, Any]] = {
    **_STT,
    "dim": 2048,
    "num_heads": 16,
    "num_layers": 16,
    "context": 750,
    "text_card": 8000,
    "tokenizer_name": "tokenizer_en_fr_audio_8000.model",
    "stt_config": {"audio_silence_prefix_seconds": 0.0, "audio_delay_seconds": 0.5},
}


# Moshi that also guesses the user's 8 codebooks, which a conversation does not need: 16 steps of
# the depth transformer are stored, the first 8 used. Its repository's own config.json is not read
# by its own program either.
# Source: NVIDIA/personaplex@6651297 moshi/moshi/models/loaders.py, get_moshi_lm.
_PERSONAPLEX: Final[Mapping[str, Any]] = {
    **MOSHI_7B_CONFIG,
    "dep_q": 16,
    "dep_q_used": 8,
    "depformer_context": 8,
}

RELEASED_SCHEME: Final = "released://"
"""Before a repository's name: the config that is listed here, instead of a file."""


@dataclass(frozen=True, slots=True)
class Release:
    """A repository with a model in one format.

    Attributes:
        repo: ``owner/name``.
        lm_file: Its language model; None where its ``config.json`` names it.
    """

    repo: str
    lm_file: str | None = None


def _of_moshi(voice: str) -> dict[tuple[str, str], Release]:
    """Repositories of one voice of the dialogue model, by backend and ``quant``."""
    stem = f"kyutai/{voice}"
    return {
        ("torch", "int8"): Release(f"{stem}-pytorch-q8"),
        ("mlx", "none"): Release(f"{stem}-mlx-bf16", "model.safetensors"),
        ("mlx", "int8"): Release(f"{stem}-mlx-q8", "model.q8.safetensors"),
        ("mlx", "int4"): Release(f"{stem}-mlx-q4", "model.q4.safetensors"),
        ("rust", "none"): Release(f"{stem}-candle-bf16", "model.safetensors"),
        ("rust", "int8"): Release(f"{stem}-candle-q8", "model.q8.gguf"),
    }


# Source: kyutai-labs/moshi@e6a55d2 README.md, moshi_mlx/moshi_mlx/{local,run_inference}.py,
# rust/moshi-backend/config*.json; kyutai-labs/delayed-streams-modeling README.md.
RELEASES: Final[Mapping[str, Mapping[tuple[str, str], Release]]] = {
    "kyutai/moshiko-pytorch-bf16": _of_moshi("moshiko"),
    "kyutai/moshika-pytorch-bf16": _of_moshi("moshika"),
    "kyutai/hibiki-2b-pytorch-bf16": {("mlx", "none"): Release("kyutai/hibiki-2b-mlx-bf16")},
    "kyutai/hibiki-1b-pytorch-bf16": {("mlx", "none"): Release("kyutai/hibiki-1b-mlx-bf16")},
    "kyutai/stt-2.6b-en": {
        ("mlx", "none"): Release("kyutai/stt-2.6b-en-mlx"),
        ("rust", "none"): Release("kyutai/stt-2.6b-en-candle"),
    },
    "kyutai/stt-1b-en_fr": {
        ("mlx", "none"): Release("kyutai/stt-1b-en_fr-mlx"),
        ("rust", "none"): Release("kyutai/stt-1b-en_fr-candle"),
    },
}
"""The same models in other formats: by repository of the PyTorch one, then backend and ``quant``.

Every format runs on the PyTorch backend too; these are what a backend reads as it is.
"""

_STT_1B_CANDLE: Final = {**_STT_1B, "extra_heads_num_heads": 4, "extra_heads_dim": 6}

_PYTORCH_CONFIGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "kyutai/moshiko-pytorch-bf16": MOSHI_7B_CONFIG,
    "kyutai/moshika-pytorch-bf16": MOSHI_7B_CONFIG,
    "kyutai/hibiki-2b-pytorch-bf16": _HIBIKI_2B,
    "kyutai/hibiki-1b-pytorch-bf16": _HIBIKI_1B,
    "kyutai/stt-2.6b-en": _STT_2_6B,
    "kyutai/stt-1b-en_fr": _STT_1B,
    "nvidia/personaplex-7b-v1": _PERSONAPLEX,
}

RELEASED_CONFIGS: Final[Mapping[str, Mapping[str, Any]]] = {
    **_PYTORCH_CONFIGS,
    **{
        release.repo: _PYTORCH_CONFIGS[repo]
        for repo, releases in RELEASES.items()
        for release in releases.values()
    },
    "kyutai/stt-1b-en_fr-candle": _STT_1B_CANDLE,
}
"""``config.json`` by repository, also of those that publish none."""
