"""GGUF files, written by the package of that name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Q8 = gguf.GGMLQuantizationType.Q8_0


def write_gguf(path: Path, tensors: dict[str, Tensor], kind: Any = Q8) -> dict[str, Tensor]:
    """Write 2-D tensors whose rows are whole blocks as Q8_0, others as float32.

    That is what candle's tensor-tools do for the released files.

    Returns:
        The values that the file holds.
    """
    writer = gguf.GGUFWriter(str(path), "moshi")
    held = {}
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            values = gguf.quants.dequantize(packed, kind)
        else:
            writer.add_tensor(name, values)
        held[name] = torch.from_numpy(np.array(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held
