"""Random models of a few sizes, opened on MLX and on torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from moshi_pipe_mlx import plugin
from moshi_pipe_mlx.lm import Moshi
from safetensors.torch import save_file

from moshi_pipe.builtin import TorchBackend
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import LM, MIMI, Checkpoint, ModelOptions, open_checkpoint
from moshi_pipe.models.layout import lm_tensors, mimi_tensors
from moshi_pipe.models.random_weights import draw, lm_fill, mimi_fill
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.moshi import Moshi as TorchMoshi

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe_mlx.codec import Mimi

    from moshi_pipe.nn.mimi import Mimi as TorchMimi

CONTEXT = 8

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
    "context": CONTEXT,
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

LMS: dict[str, dict[str, Any]] = {
    "moshi": BASE_LM,
    "shared sets, low rank": BASE_LM
    | {
        "delays": [0, 0, 2, 2, 2, 0, 2, 2, 2],
        "depformer_weights_per_step_schedule": [0, 1, 2, 2],
        "depformer_low_rank_embeddings": 8,
    },
    "stt": BASE_LM
    | {"dep_q": 0, "delays": [0] * 9, "extra_heads_num_heads": 4, "extra_heads_dim": 6},
    "every other form": BASE_LM
    | {
        "kv_repeat": 2,
        "depformer_kv_repeat": 1,
        "positional_embedding": "rope_concat",
        "depformer_norm": "layer_norm",
        "norm": "layer_norm",
        "norm_emb": True,
        "bias_proj": True,
        "layer_scale": 0.1,
    },
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

# Every row divides into groups of 64: widths of 256 and 64, gated hidden sizes of 704 and 128.
PACKED_LM = BASE_LM | {
    "dim": 256,
    "num_layers": 2,
    "depformer_dim": 64,
    "depformer_dim_feedforward": 192,
}

TINY_MIMI: dict[str, Any] = {
    "sample_rate": 400,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 32,
        "n_filters": 4,
        "n_residual_layers": 2,
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


def tell_nobody(done: int, total: int) -> None:
    """Loading is quick here."""


def random_tensors(shapes: Any, fill: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw float32 tensors by released name, as ``make-checkpoint`` does."""
    found = {}
    for name, spec in shapes.items():
        pieces = list(draw(name, spec, fill(name, spec.shape), seed))
        found[name] = torch.from_numpy(np.concatenate(pieces).reshape(spec.shape))
    return found


def write_lm(folder: Path, config: dict[str, Any], **more: Any) -> Checkpoint:
    """Write a random language model in the PyTorch format and open it."""
    spec = LMSpec.from_config(config)
    tensors = random_tensors(lm_tensors(spec, "F32"), lambda n, s: lm_fill(n, s, spec))
    # What is drawn as a constant there is varied here: a swapped norm or scale must show.
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.unique().numel() == 1:
            tensors[name] = tensor + 0.2 * torch.rand(tensor.shape, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | more))
    return open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])


def write_mimi(folder: Path, config: dict[str, Any]) -> Checkpoint:
    """Write a random codec and open it."""
    spec = MimiSpec.from_config(config)
    tensors = random_tensors(mimi_tensors(spec), lambda n, s: mimi_fill(n, s, spec))
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.numel() > 1 and tensor.unique().numel() == 1:
            tensors[name] = tensor + 0.1 * torch.rand(tensor.shape, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "mimi.safetensors")
    (folder / "mimi_config.json").write_text(json.dumps(config))
    return open_checkpoint(ModelOptions(path=str(folder)), parts=[MIMI])


def open_mlx(checkpoint: Checkpoint, **options: Any) -> Moshi:
    """Open a language model through the hook; on the CPU, so that every machine tests the same."""
    options = {"device": "cpu", **options}
    found = plugin.open_lm(checkpoint, BackendOptions(backend="mlx", **options), tell_nobody)
    assert isinstance(found, Moshi)
    return found


def open_torch(checkpoint: Checkpoint, **options: Any) -> TorchMoshi:
    """Open the same on torch, float32."""
    options = {"device": "cpu", **options}
    found = TorchBackend().open_lm(checkpoint, BackendOptions(**options), tell_nobody)
    assert isinstance(found, TorchMoshi)
    return found


def open_codecs(checkpoint: Checkpoint) -> tuple[Mimi, TorchMimi]:
    """Open a codec on MLX and on torch."""
    mine: Any = plugin.open_codec(
        checkpoint, BackendOptions(backend="mlx", device="cpu"), tell_nobody
    )
    theirs: Any = TorchBackend().open_codec(checkpoint, BackendOptions(device="cpu"), tell_nobody)
    return mine, theirs
