"""Files written by the tools that made the released ones: moshi_mlx and gguf."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.models.formats.names import CANDLE, slice_names
from moshi_pipe.models.spec import LMSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


def write_gguf(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write with llama.cpp's package: matrices as Q8_0, first norms as float16.

    Args:
        path: The new file.
        config: Of the model.
        tensors: Float32, by canonical name.
    """
    gguf = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(str(path), "moshi")
    writer.add_array("some.list", [1, 2, 3])
    q8 = gguf.GGMLQuantizationType.Q8_0
    for tensor, copies in slice_names(LMSpec.from_config(dict(config)), CANDLE).items():
        array = tensors[tensor].numpy()
        blocks = array.ndim == 2 and array.shape[1] % 32 == 0
        for copy in copies:
            if blocks:
                writer.add_tensor(copy, gguf.quants.quantize(array, q8), raw_dtype=q8)
            else:
                writer.add_tensor(copy, array.astype(np.float16 if "norm1" in copy else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mlx_model(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """An empty model of moshi_mlx, and its config."""
    lm = importlib.import_module("moshi_mlx.models.lm")
    parsed = lm.LmConfig.from_config_dict(dict(config))
    return lm.Lm(parsed), parsed


def write_mlx(path: Path, config: Mapping[str, Any], source: Path, bits: int, group: int) -> None:
    """Read a PyTorch file with moshi_mlx, quantize with mlx, and save, as the releases were made.

    Args:
        path: The new file.
        config: Of the model.
        source: The PyTorch file.
        bits: Per weight; 0 keeps bfloat16.
        group: Weights that share a scale.
    """
    mx = importlib.import_module("mlx.core")
    model, parsed = mlx_model(config)
    model.load_pytorch_weights(str(source), parsed, strict=True)
    if bits:
        importlib.import_module("mlx.nn").quantize(model, bits=bits, group_size=group)
    flat = importlib.import_module("mlx.utils").tree_flatten(model.parameters())
    mx.save_safetensors(str(path), dict(flat))
