"""Deterministic weights and small configs shared by unit and parity tests.

The weights are a hash of each tensor's in-memory name and position, so that numbers recorded from
the reference package can be checked without it.
"""

from __future__ import annotations

import math
import re
import zlib
from typing import Any

import numpy as np
import torch
from torch import nn

TINY_MIMI: dict[str, Any] = {
    "sample_rate": 400,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 32,
        "n_filters": 4,
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
        "ratios": [4, 2, 2],
        "true_skip": True,
        "causal": True,
    },
    "quantizer": {
        "dimension": 16,
        "n_q": 6,
        "bins": 24,
        "input_dimension": 32,
        "output_dimension": 32,
    },
    "transformer": {
        "d_model": 32,
        "num_heads": 4,
        "num_layers": 2,
        "causal": True,
        "layer_scale": 0.3,
        "context": 10,
        "conv_layout": True,
        "max_period": 1e4,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 64,
        "input_dimension": 32,
        "output_dimensions": [32],
    },
}

BASE_LM: dict[str, Any] = {
    "delays": [0, 0, 1, 1, 1, 0, 1, 1, 1],
    "n_q": 8,
    "dep_q": 4,
    "card": 32,
    "text_card": 48,
    "existing_text_padding_id": 3,
    "dim": 64,
    "num_heads": 4,
    "num_layers": 3,
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

DELAYED_LM = BASE_LM | {
    "delays": [0, 0, 2, 2, 2, 0, 2, 2, 2],
    "depformer_weights_per_step_schedule": [0, 1, 2, 2],
    "depformer_low_rank_embeddings": 8,
}

CONDITIONED_LM = BASE_LM | {
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
    "fuser": {"sum": ["description"], "cross": [], "prepend": []},
}

STT_LM = BASE_LM | {
    "dep_q": 0,
    "delays": [0] * 9,
    "extra_heads_num_heads": 4,
    "extra_heads_dim": 6,
}

_TABLE = re.compile(
    r"(^|\.)(emb\.\d+|text_emb|depformer_emb\.\d+|depformer_text_emb)\.weight$|embed\.weight$"
)


def golden_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the float32 weights that belong to a tensor's name."""
    size = math.prod(shape)
    index = np.arange(size, dtype=np.uint32)
    with np.errstate(over="ignore"):
        h: Any = np.uint32(zlib.crc32(name.encode())) * np.uint32(2654435761)
        h = h + index * np.uint32(2246822519) + np.uint32(374761393)
        h ^= h >> np.uint32(15)
        h *= np.uint32(2246822519)
        h ^= h >> np.uint32(13)
        h *= np.uint32(3266489917)
        h ^= h >> np.uint32(16)
    unit: Any = 2 * h.astype(np.float64) / 2**32 - 1
    return torch.from_numpy(_scaled(name, unit, shape).reshape(shape).astype(np.float32))


def fill_golden(module: nn.Module) -> None:
    """Give every tensor of a module its golden weights, in the tensor's own type."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(golden_tensor(name, tuple(tensor.shape)))


def golden_audio(num_samples: int = 512) -> torch.Tensor:
    """Two sines, float32 ``[1, 1, N]``."""
    t = np.arange(num_samples)
    pcm = 0.5 * np.sin(2 * np.pi * t / 37) + 0.3 * np.sin(2 * np.pi * t / 11.3)
    return torch.from_numpy(pcm.astype(np.float32))[None, None]


def golden_user_codes(step: int, num_user: int) -> torch.Tensor:
    """User codes of one step, int64 ``[1, K]``."""
    return torch.tensor([[(7 * step + 3 * i + 1) % 32 for i in range(num_user)]])


def _scaled(name: str, unit: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith((".alpha", "norm1.weight", "norm2.weight")):
        return 1 + 0.2 * unit
    if name.endswith(".bias"):
        return 0.05 * unit
    if name.endswith(".scale"):
        return 0.3 + 0.1 * unit
    if name.endswith("cluster_usage"):
        return 1.5 + 1.4 * unit
    if name.endswith("embedding_sum"):
        return 2.0 * unit
    if name.endswith("_initialized"):
        return np.ones_like(unit)
    if name.endswith("learnt_padding"):
        return 0.2 * unit
    if _TABLE.search(name):
        return unit
    return unit * 1.7 / math.sqrt(len(unit) / shape[0])
