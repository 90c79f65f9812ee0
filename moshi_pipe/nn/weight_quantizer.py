"""The package's own quantizer: linear weights become 8 or 4 bits while a model is loaded."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.nn.huge_pages import HugePages
from moshi_pipe.nn.quantized import (
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    choose_product,
    quantize_int4,
    quantize_int8,
    relative_error,
)
from moshi_pipe.units import format_bytes

if TYPE_CHECKING:
    from torch import Tensor

NAMES: Final = ("int8", "int4")
"""What it can do, as ``quant`` names it."""

_TRIM_ELEMENTS: Final = 1 << 22  # of weights between two requests to free memory


@dataclass(frozen=True, slots=True)
class LayerQuality:
    """What became of one layer.

    Attributes:
        name: In-memory name of its weight.
        plain_bytes: Of the weight as it was stored.
        num_bits: Of a code.
        num_bytes: Of codes and scales.
        error: Norm of the difference over the norm of the weight; None where the file's own codes
            were taken.
    """

    name: str
    plain_bytes: int
    num_bits: int
    num_bytes: int
    error: float | None


class WeightQuantizer:
    """Quantizes layer by layer; the layers multiply in the way that is fastest here.

    Implements :class:`moshi_pipe.models.protocols.Quantizer`.

    Args:
        name: ``int8`` or ``int4``.
        group_size: Neighbours that share a scale, for int4; layers whose rows are no multiple of
            it become int8.
        product: ``auto``, or a product of :mod:`moshi_pipe.nn.quantized`.
        exact: Round only weights.
        device: Where the layers live.
        pack: False leaves plain buffers, to be written into a file.

    Raises:
        ConfigError: The group is not an even number, or no layer multiplies like that.
    """

    def __init__(
        self,
        name: str,
        *,
        group_size: int,
        product: str,
        exact: bool,
        device: torch.device | str,
        pack: bool = True,
    ) -> None:
        if group_size < 2 or group_size % 2:
            raise ConfigError(
                "quant_group must be an even number",
                got=str(group_size),
                wanted="for instance 32, 64 or 128",
            )
        known = ["auto", *Int8Linear.products, *Int4Linear.products]
        if product not in known:
            raise ConfigError(
                f"there is no quant_kernel '{product}'", wanted=closest(product, known)
            )
        self._name = name
        self._group_size = group_size
        self._product = product
        self._exact = exact
        self._device = device
        self._pack = pack
        self._chosen: dict[tuple[int, int, int], str] = {}
        self._since_trim = 0
        self._memory = HugePages()
        self.layers: list[LayerQuality] = []

    def linear(self, name: str, weight_OD: Tensor, bias_O: Tensor | None) -> QuantizedLinear:
        """Make the layer that stands for ``x @ weight.T + bias``.

        Raises:
            ConfigError: The product does not run here.
        """
        if self._name == "int8" or weight_OD.shape[1] % self._group_size:
            layer: QuantizedLinear = Int8Linear(*quantize_int8(weight_OD), bias_O)
        else:
            layer = Int4Linear(*quantize_int4(weight_OD, self._group_size), bias_O)
        error = relative_error(weight_OD, layer)
        return self._finish(name, weight_OD.nbytes, layer, error)

    def adopt_int8(
        self, name: str, codes_OD: Tensor, absmax_O: Tensor, bias_O: Tensor | None
    ) -> QuantizedLinear | None:
        """Take the weights of an int8 file as they are; None where they must be quantized anew."""
        if self._name != "int8":
            return None
        layer = Int8Linear(codes_OD.clone(), absmax_O.float().clone(), bias_O)
        return self._finish(name, layer.num_bytes, layer, None)

    def adopt_affine(
        self,
        name: str,
        codes_OD: Tensor,
        scales_OG: Tensor,
        biases_OG: Tensor,
        bias_O: Tensor | None,
        *,
        bits: int,
    ) -> QuantizedLinear | None:
        """Take the weights of an MLX file as they are; None where they must be quantized anew."""
        if self._name != "int4" or bits != 4:
            return None
        scales_OG, biases_OG = scales_OG.to(torch.bfloat16), biases_OG.to(torch.bfloat16)
        layer = Int4Linear(codes_OD, scales_OG, biases_OG, bias_O)
        return self._finish(name, layer.num_bytes, layer, None)

    @property
    def summary(self) -> str:
        """One line for the report."""
        plain = sum(layer.plain_bytes for layer in self.layers)
        stored = sum(layer.num_bytes for layer in self.layers)
        errors = [layer.error for layer in self.layers if layer.error is not None]
        text = f"{self._name}: {format_bytes(stored)} instead of {format_bytes(plain)}"
        if errors:
            text += f", largest error of a layer {max(errors):.2%}"
        wide = sum(layer.num_bits == 8 for layer in self.layers)
        if self._name == "int4" and wide:
            text += f", {wide} of {len(self.layers)} layers int8 (rows no multiple of the group)"
        products = sorted(set(self._chosen.values()))
        return f"{text}, multiplied by {', '.join(products)}" if products else text

    def _finish(
        self, name: str, plain_bytes: int, layer: QuantizedLinear, error: float | None
    ) -> QuantizedLinear:
        bits = _num_bits(layer)
        self.layers.append(LayerQuality(name, plain_bytes, bits, layer.num_bytes, error))
        layer.to(self._device)
        if self._pack:
            layer.use(self._choose(layer))
            if isinstance(layer.packed, torch.Tensor):
                layer.packed = self._memory.keep(layer.packed)
            self._since_trim += layer.dim_in * layer.dim_out
            if self._since_trim >= _TRIM_ELEMENTS:
                self._since_trim = 0
                _return_free_memory()
        return layer

    def _choose(self, layer: QuantizedLinear) -> str:
        """The product of a layer's shape; measured once."""
        key = (_num_bits(layer), layer.dim_out, layer.dim_in)
        if key not in self._chosen:
            known = self._product in type(layer).products
            wanted = self._product if known else "auto"
            self._chosen[key] = choose_product(layer, wanted, exact=self._exact)
        return self._chosen[key]


def _return_free_memory() -> None:
    """Give freed memory back to the system, where the C library can be asked to (glibc).

    Packed weights lie between the temporary ones that they were made of; the library keeps those
    holes, up to twice the model was seen.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _num_bits(layer: QuantizedLinear) -> int:
    return 4 if isinstance(layer, Int4Linear) else 8
