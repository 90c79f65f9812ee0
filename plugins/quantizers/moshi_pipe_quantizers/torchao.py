"""Layers whose weights are tensors of torchao."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torch import nn

from moshi_pipe.errors import BackendError
from moshi_pipe_quantizers.forms import Tally, check_form, require

if TYPE_CHECKING:
    from torch import Tensor

FORMS: Final = {
    "torchao-int8": False,
    "torchao-int8-weights": False,
    "torchao-fp8": True,
    "torchao-int4": True,
}
"""Whether each needs CUDA."""


class TorchaoQuantizer:
    """Hands each layer to ``torchao.quantization.quantize_`` while the model is loaded.

    Implements :class:`moshi_pipe.models.protocols.Quantizer`.

    Args:
        name: One of :data:`FORMS`.
        group_size: Neighbours that share a scale, for int4.
        device: Where the layers live.

    Raises:
        BackendError: No such form, it needs CUDA, or torchao is not installed.
    """

    def __init__(self, name: str, group_size: int, device: str) -> None:
        check_form(name, FORMS, device)
        self._torchao = require("torchao.quantization")
        self._name = name
        self._device = device
        self._config = self._make_config(group_size)
        self._tally = Tally(name)

    @property
    def summary(self) -> str:
        """How many layers, and their bytes before and after."""
        return str(self._tally)

    def linear(self, name: str, weight_OD: Tensor, bias_O: Tensor | None) -> nn.Module:
        """Make a layer whose weight is a tensor of torchao.

        Raises:
            BackendError: torchao cannot quantize it here.
        """
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.out_features, layer.in_features = weight_OD.shape
        weight = weight_OD.detach().to(self._device, copy=True)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias_O is not None:
            layer.bias = nn.Parameter(bias_O.to(self._device), requires_grad=False)
        try:
            self._torchao.quantize_(layer, self._config)
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            raise BackendError(
                f"torchao cannot make '{name}' {self._name}",
                got=str(error),
                fix="see what it asks for, or set quant=int8 or quant=int4",
            ) from error
        self._tally.add(weight_OD, _num_bytes(layer.weight))
        return layer

    def adopt_int8(self, *given: Any) -> None:
        """Codes of a file are widened and quantized anew."""

    def adopt_affine(self, *given: Any, bits: int) -> None:
        """Codes of a file are widened and quantized anew."""

    def _make_config(self, group_size: int) -> Any:
        torchao = self._torchao
        if self._name == "torchao-int8":
            return torchao.Int8DynamicActivationInt8WeightConfig()
        if self._name == "torchao-int8-weights":
            return torchao.Int8WeightOnlyConfig()
        if self._name == "torchao-fp8":
            return torchao.Float8DynamicActivationFloat8WeightConfig()
        return torchao.Int4WeightOnlyConfig(group_size=group_size)


def _num_bytes(weight: Any) -> int:
    """Of the tensors inside a tensor of torchao."""
    names, _ = weight.__tensor_flatten__()
    return sum(getattr(weight, name).nbytes for name in names)
