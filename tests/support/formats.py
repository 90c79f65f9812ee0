"""Small random language models of several shapes, for every format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from moshi_pipe.models.checkpoint import LM, Checkpoint, ModelOptions, open_checkpoint
from moshi_pipe.models.layout import lm_tensors
from moshi_pipe.models.random_weights import draw, lm_fill
from moshi_pipe.models.spec import LMSpec

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, Any] = {
    "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
    "n_q": 8,
    "dep_q": 4,
    "card": 32,
    "text_card": 48,
    "existing_text_padding_id": 3,
    "dim": 64,
    "num_heads": 4,
    "num_layers": 2,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 8,
    "max_period": 1e4,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 32,
    "depformer_dim_feedforward": 132,
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
    "depformer_multi_linear": True,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
}
SHARED = BASE | {
    "delays": [0, 0, 2, 2, 2, 0, 2, 2, 2],
    "depformer_weights_per_step_schedule": [0, 1, 2, 2],
    "depformer_low_rank_embeddings": 8,
}
STT = BASE | {"dep_q": 0, "delays": [0] * 9, "extra_heads_num_heads": 4, "extra_heads_dim": 6}
CONDITIONED = BASE | {
    "conditioners": {
        "description": {
            "type": "lut",
            "lut": {"n_bins": 31, "dim": 16, "tokenizer": "noop", "possible_values": ["bad"]},
        }
    },
    "fuser": {"sum": ["description"], "cross": [], "prepend": []},
}
OTHER = BASE | {
    "kv_repeat": 2,
    "depformer_kv_repeat": 1,
    "norm": "layer_norm",
    "norm_emb": True,
    "bias_proj": True,
    "layer_scale": 0.1,
}
# Every row divides into groups of 64, as MLX's own tools need it.
PACKABLE = BASE | {"dim": 256, "depformer_dim": 64, "depformer_dim_feedforward": 192}
# moshi_mlx computes hidden sizes by a rule of its own: 11/4 of the width.
MLX = PACKABLE | {
    "depformer_dim": 256,
    "depformer_dim_feedforward": 1056,
    "depformer_causal": True,
    "depformer_layer_scale": None,
    "depformer_context": 4,
    "depformer_max_period": 1e4,
}

LMS = {
    "moshi": BASE,
    "shared sets, low rank": SHARED,
    "stt": STT,
    "conditions": CONDITIONED,
    "every other form": OTHER,
    "packable": PACKABLE,
}


def write_lm(folder: Path, config: dict[str, Any], *, dtype: str = "BF16", **more: Any) -> None:
    """Write a random language model in the PyTorch format, without codec or tokenizer."""
    spec = LMSpec.from_config(config)
    shapes = lm_tensors(spec, dtype)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, entry in shapes.items():
        pieces = list(draw(name, entry, lm_fill(name, entry.shape, spec), 0))
        raw = np.concatenate([piece.view(np.uint8).reshape(-1) for piece in pieces])
        kind = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}[dtype]
        tensor = torch.from_numpy(raw.copy()).view(kind).view(entry.shape)
        if tensor.unique().numel() == 1:  # constants are varied: a swapped norm must show
            tensor = (tensor + 0.2 * torch.rand(tensor.shape, generator=generator)).to(kind)
        tensors[name] = tensor.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | more))


def open_lm_at(folder: Path, **options: Any) -> Checkpoint:
    """Open a folder with a language model alone."""
    return open_checkpoint(ModelOptions(name="t", path=str(folder), **options), parts=[LM])
