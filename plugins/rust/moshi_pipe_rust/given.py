"""Tensors of files that candle does not read, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from moshi_pipe.nn.weight_reader import WeightReader


class GivenTensors:
    """Gives the extension what it asks for by name, widened to float32, with LoRA added.

    Args:
        reader: Of a file of any released format.
        lora: What is added; None adds nothing.

    Attributes:
        names: In-memory names of the tensors.
    """

    def __init__(self, reader: WeightReader, lora: Any = None) -> None:
        self.names = set(reader.names())
        self._reader = reader
        self._lora = lora

    def __str__(self) -> str:
        return str(self._reader.path)

    @property
    def origin(self) -> str:
        """What becomes of the file's numbers."""
        added = "" if self._lora is None else ", LoRA added"
        return f"widened from {self._reader.contents.format}{added}"

    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor as float32, in memory of its own.

        Raises:
            CheckpointError: The file became shorter, or the LoRA weights do not fit.
        """
        tensor = self._reader.read(name, torch.float32)
        if self._lora is not None:
            tensor = self._lora.add_to(tensor, name)
        array: npt.NDArray[Any] = tensor.numpy()
        return array
