"""What quantizing a file cost each of its tensors, measured on the files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moshi_pipe.models.formats.contents import PLAIN
from moshi_pipe.nn.load import open_lm_weights, open_lora
from moshi_pipe.nn.weight_quantizer import LayerQuality

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moshi_pipe.models.checkpoint import Checkpoint


def tensor_errors(source: Checkpoint, made: Checkpoint) -> Iterator[LayerQuality]:
    """Compare a quantized language model with what it was made of, some rows at a time.

    Args:
        source: With LoRA, the merged weights are compared.
        made: Of the same model.

    Yields:
        One entry per quantized tensor, in the order of the new file.

    Raises:
        CheckpointError: A file is damaged or holds another model.
    """
    lora = open_lora(source)
    with open_lm_weights(source) as before, open_lm_weights(made) as after:
        for name in after.names():
            stored = after.stored(name)
            if stored.encoding == PLAIN:
                continue
            merged = None
            if lora is not None and name in lora.pairs:
                merged = lora.add_to(before.read(name, torch.float32), name)
            off = norm = 0.0
            for first, last in after.chunks(name):
                rows = before.rows(name, first, last) if merged is None else merged[first:last]
                wide = rows.float()
                off += float(torch.dist(wide, after.rows(name, first, last).float())) ** 2
                norm += float(torch.linalg.vector_norm(wide)) ** 2
            error = float((off / max(norm, 1e-60)) ** 0.5)
            plain_bytes = before.stored(name).num_bytes
            yield LayerQuality(name, plain_bytes, stored.bits, stored.num_bytes, error)
