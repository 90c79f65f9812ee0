"""Layers that multiply with bitsandbytes' kernels.

Its own modules quantize when they are moved or first used; these do it at once, so that the weight
as it was can be forgotten.

Shape letters: R row of inputs, D input width, O output width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from torch import nn

from moshi_pipe_quantizers.forms import Tally, check_form, require

if TYPE_CHECKING:
    from torch import Tensor

FORMS: Final = {"bnb-int8": False, "bnb-nf4": False, "bnb-fp4": False}
"""Whether each needs CUDA."""

_BLOCK: Final = 64  # weights that share a scale in the 4-bit forms; bitsandbytes' default


class BnbQuantizer:
    """Makes layers of bitsandbytes while the model is loaded.

    Implements :class:`moshi_pipe.models.protocols.Quantizer`.

    Args:
        name: One of :data:`FORMS`.
        device: Where the layers live.

    Raises:
        BackendError: No such form, or bitsandbytes is not installed.
    """

    def __init__(self, name: str, device: str) -> None:
        check_form(name, FORMS, device)
        self._bnb = require("bitsandbytes")
        self._kind = name.partition("-")[2]
        self._device = device
        self._tally = Tally(name)

    @property
    def summary(self) -> str:
        """How many layers, and their bytes before and after."""
        return str(self._tally)

    def linear(self, name: str, weight_OD: Tensor, bias_O: Tensor | None) -> nn.Module:
        """Quantize one weight."""
        weight = weight_OD.to(self._device)
        layer: nn.Module
        if self._kind == "int8":
            functional = self._bnb.functional
            codes_OD, absmax_O, _ = functional.int8_vectorwise_quant(weight.half())
            layer = Int8Rows(functional, codes_OD, absmax_O, bias_O)
        else:
            layer = FourBits(self._bnb, weight, bias_O, self._kind)
        return self._finish(layer, weight_OD)

    def adopt_int8(
        self, name: str, codes_OD: Tensor, absmax_O: Tensor, bias_O: Tensor | None
    ) -> nn.Module | None:
        """Take the rows of a file as they are: bitsandbytes made them."""
        if self._kind != "int8":
            return None
        codes, absmax = codes_OD.clone(), absmax_O.float().clone()
        return self._finish(Int8Rows(self._bnb.functional, codes, absmax, bias_O), codes_OD)

    def adopt_affine(self, *given: Any, bits: int) -> None:
        """Groups of a file are widened and quantized anew."""

    def _finish(self, layer: nn.Module, weight_OD: Tensor) -> nn.Module:
        self._tally.add(weight_OD, sum(buffer.nbytes for buffer in layer.buffers()))
        return layer.to(self._device)


class Int8Rows(nn.Module):
    """Rows of int8 times rows of int8: ``LLM.int8()`` without its threshold for outliers."""

    codes_OD: Tensor
    absmax_O: Tensor
    bias_O: Tensor | None

    def __init__(
        self, functional: Any, codes_OD: Tensor, absmax_O: Tensor, bias_O: Tensor | None
    ) -> None:
        super().__init__()
        self._functional = functional
        self.register_buffer("codes_OD", codes_OD)
        self.register_buffer("absmax_O", absmax_O)
        self.register_buffer("bias_O", bias_O)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; inputs are rounded to 8 bits by the maximum of their row."""
        x_RD = x.reshape(-1, x.shape[-1])
        codes_RD, absmax_R, _ = self._functional.int8_vectorwise_quant(x_RD.half())
        sums_RO = self._functional.int8_linear_matmul(codes_RD, self.codes_OD)
        scales_RO = absmax_R[:, None] * self.absmax_O / 127**2
        out: Tensor = (sums_RO * scales_RO).to(x.dtype).view(*x.shape[:-1], -1)
        return out if self.bias_O is None else out + self.bias_O


class FourBits(nn.Module):
    """Blocks of 4-bit codes: ``nf4`` or ``fp4``."""

    packed: Tensor
    absmax: Tensor
    bias_O: Tensor | None

    def __init__(self, bnb: Any, weight_OD: Tensor, bias_O: Tensor | None, kind: str) -> None:
        super().__init__()
        self._multiply = bnb.matmul_4bit
        packed, self._state = bnb.functional.quantize_4bit(
            weight_OD.contiguous(), blocksize=_BLOCK, quant_type=kind
        )
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", self._state.absmax)
        self.register_buffer("bias_O", bias_O)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; only weights are rounded."""
        x_RD = x.reshape(-1, x.shape[-1])
        out_RO: Tensor = self._multiply(x_RD, self.packed.t(), quant_state=self._state)
        out = out_RO.to(x.dtype).view(*x.shape[:-1], -1)
        return out if self.bias_O is None else out + self.bias_O
