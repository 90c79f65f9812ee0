"""Linear layers whose weights are stored in 8 or 4 bits, and the products that they choose from.

Shape letters: M row, D in, O out, G group, E element of a group.
"""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.nn.packing import pack_codes, quantize_affine, quantize_rows, unpack_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

_LARGEST_CODE: Final = 127  # of int8, symmetric
_LARGEST_CODE4: Final = 15
_MIDDLE_CODE4: Final = 8  # what torch's packed product counts codes from
_PIECE: Final = 1 << 19  # elements that are widened at once: 2 MB
_PIECE_ON_GPU: Final = 1 << 25
_MEASURED_ROWS: Final = (1, 4)
_COMPARED_ROWS: Final = 256  # of the weight: widening all would double what a model needs
_REPEATS: Final = 5
_ALL: Final = slice(None)
_WORTH_IT: Final = 0.8  # another product must take at most this part of the preferred one's time


@dataclass(frozen=True, slots=True)
class Product:
    """A way to multiply by a quantized weight.

    Attributes:
        pack: Turns a layer's weight buffer, which is then freed, into what goes to ``packed``;
            None where ``apply`` reads the buffers.
        apply: ``(x_MD, layer) -> y_MO``, of any floating type.
        tolerance: Largest relative error against the widened weights.
        exact: Whether only the weights are rounded, not what they are multiplied by.
        by_name: Taken only when it is named, not by ``auto``.
    """

    apply: Callable[[Tensor, Any], Tensor]
    tolerance: float
    pack: Callable[[Any], Any] | None = None
    exact: bool = False
    by_name: bool = False


class QuantizedLinear(nn.Module):
    """What both widths share: the shape, the chosen product and its packed weights.

    Attributes:
        product_name: Key in the table of products of its class.
        packed: What the product made of the weights; None where it reads the buffers.
    """

    weight: Tensor
    products: ClassVar[Mapping[str, Product]] = {}

    def __init__(self, dim_in: int, dim_out: int, bias_O: Tensor | None) -> None:
        super().__init__()
        self.dim_in, self.dim_out = dim_in, dim_out
        self.bias = None if bias_O is None else nn.Parameter(bias_O, requires_grad=False)
        self.product_name = "widen"
        self.packed: Any = None

    def use(self, product_name: str) -> None:
        """Multiply in this way from now on; once packed, a layer stays as it is.

        Raises:
            RuntimeError: The product does not know this shape, type or machine.
        """
        product = type(self).products[product_name]
        if product.pack is not None:
            self.packed = product.pack(self)
        self.product_name = product_name

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias``, ``[..., D]`` to ``[..., O]`` in the type of ``x``."""
        product = type(self).products[self.product_name]
        y = product.apply(x.reshape(-1, self.dim_in), self)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.dim_out)

    @property
    def num_bytes(self) -> int:
        """Bytes of the stored weights, without the bias."""
        raise NotImplementedError

    def widened(self, rows: slice = _ALL) -> Tensor:
        """Rows of the weights as float32, ``[O, D]``; not once they are packed."""
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """Weights of 8 bits, one scale per row: ``weight = codes * absmax / 127``.

    The buffers are those of the released int8 checkpoints: ``weight`` int8 ``[O, D]`` and
    ``weight_scb`` float32 ``[O]``, the largest magnitude of each row.

    Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/utils/quantize.py.
    """

    weight_scb: Tensor

    def __init__(self, codes_OD: Tensor, absmax_O: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__(codes_OD.shape[1], codes_OD.shape[0], bias_O)
        self.register_buffer("weight", codes_OD)
        self.register_buffer("weight_scb", absmax_O)

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        return self.dim_in * self.dim_out + 4 * self.dim_out

    @property
    def scale_O(self) -> Tensor:
        """What a code of each row is worth."""
        return self.weight_scb / _LARGEST_CODE

    def widened(self, rows: slice = _ALL) -> Tensor:
        """Rows of the weights as float32, ``[O, D]``; not once they are packed."""
        return self.weight[rows].float() * self.scale_O[rows, None]

    def _codes(self) -> Tensor:
        if self.packed is None:
            return self.weight
        with _no_deprecation():
            weight: Tensor = torch.ops.quantized.linear_unpack(self.packed)[0]
            codes: Tensor = weight.int_repr()
        return codes

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save plain codes, also when the product has packed them."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._codes()


class Int4Linear(QuantizedLinear):
    """Weights of 4 bits, scale and bias per group: ``weight = code * scale + bias``.

    Buffers: ``weight`` uint8 ``[O, D / 2]``, the even element in the low half; ``weight_scales``
    and ``weight_biases`` bfloat16 ``[O, G]``: the affine form of the released MLX checkpoints.

    Args:
        codes_OD: uint8, 0 to 15.
        scales_OG: bfloat16.
        biases_OG: bfloat16.
        bias_O: Of the layer, or None.
    """

    weight_scales: Tensor
    weight_biases: Tensor

    def __init__(
        self,
        codes_OD: Tensor,
        scales_OG: Tensor,
        biases_OG: Tensor,
        bias_O: Tensor | None = None,
    ) -> None:
        super().__init__(codes_OD.shape[1], codes_OD.shape[0], bias_O)
        self.group_size = codes_OD.shape[1] // scales_OG.shape[1]
        self.register_buffer("weight", pack_codes(codes_OD, 4))
        self.register_buffer("weight_scales", scales_OG)
        self.register_buffer("weight_biases", biases_OG)

    @property
    def num_bytes(self) -> int:
        """Bytes of codes, scales and biases."""
        return self.dim_in * self.dim_out // 2 + 4 * self.weight_scales.numel()

    def codes(self, rows: slice = _ALL) -> Tensor:
        """Rows of codes 0 to 15, uint8 ``[O, D]``; not once they are packed."""
        return unpack_codes(self.weight[rows], 4)

    def widened(self, rows: slice = _ALL) -> Tensor:
        """Rows of the weights as float32, ``[O, D]``; not once they are packed."""
        codes_OGE = self.codes(rows).unflatten(1, (-1, self.group_size)).float()
        scales, biases = self.weight_scales[rows].float(), self.weight_biases[rows].float()
        wide_OGE: Tensor = codes_OGE * scales[..., None] + biases[..., None]
        return wide_OGE.flatten(1)


def quantize_int8(weight_OD: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows as the released int8 files are, some rows at a time.

    Args:
        weight_OD: Any floating type, on any device.

    Returns:
        Codes int8 ``[O, D]`` and largest magnitudes float32 ``[O]``; a row of zeros stays zeros.
    """
    codes_OD = torch.empty_like(weight_OD, dtype=torch.int8)
    absmax_O = torch.empty(weight_OD.shape[0], device=weight_OD.device)
    for rows in _pieces(weight_OD):
        codes_OD[rows], absmax_O[rows] = quantize_rows(weight_OD[rows])
    return codes_OD, absmax_O


def quantize_int4(weight_OD: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize groups as the released MLX files are, some rows at a time.

    Args:
        weight_OD: Any floating type; ``D`` a multiple of the group.
        group_size: Neighbours in a row that share scale and bias.

    Returns:
        Codes uint8 ``[O, D]``, scales and biases bfloat16 ``[O, G]``.
    """
    dim_out, dim_in = weight_OD.shape
    codes_OD = torch.empty_like(weight_OD, dtype=torch.uint8)
    scales_OG = weight_OD.new_empty(dim_out, dim_in // group_size, dtype=torch.bfloat16)
    biases_OG = torch.empty_like(scales_OG)
    for rows in _pieces(weight_OD):
        packed = quantize_affine(weight_OD[rows], 4, group_size)
        codes_OD[rows], scales_OG[rows] = packed.codes, packed.scales
        biases_OG[rows] = _present(packed.biases)
    return codes_OD, scales_OG, biases_OG


def relative_error(weight_OD: Tensor, layer: QuantizedLinear) -> float:
    """Norm of the difference over the norm of the weights; before the layer is packed."""
    off = norm = 0.0
    for rows in _pieces(weight_OD):
        wide = weight_OD[rows].float()
        off += float(torch.dist(wide, layer.widened(rows).to(wide.device))) ** 2
        norm += float(torch.linalg.vector_norm(wide)) ** 2
    return float((off / max(norm, 1e-60)) ** 0.5)


def choose_product(layer: QuantizedLinear, wanted: str, *, exact: bool) -> str:
    """Find the fastest product for a layer's shape on this machine, by trying.

    Products that this machine lacks, or that give a wrong result on the extremes of the codes,
    are left out. The first of the table is kept unless another is clearly faster, so that a run
    repeats.

    Args:
        layer: Not packed; its weights stay as they are.
        wanted: ``auto``, or the name of a product.
        exact: Round only weights, as ``numerics=reference`` demands.

    Returns:
        A key of the layer's table of products.

    Raises:
        ConfigError: No such product, or it does not run here.
    """
    table = type(layer).products
    if wanted != "auto" and wanted not in table:
        raise ConfigError(
            f"there is no quantized product '{wanted}'", wanted=closest(wanted, ["auto", *table])
        )
    offered = [n for n in table if not table[n].by_name and (table[n].exact or not exact)]
    names = [wanted] if wanted != "auto" else offered
    times = {name: seconds for name in names if (seconds := _try_product(layer, name)) is not None}
    if not times:
        raise ConfigError(
            f"the quantized product '{wanted}' does not run on this machine",
            fix="set quant_kernel=auto",
        )
    best, *others = times
    for name in others:
        if times[name] < _WORTH_IT * times[best]:
            best = name
    return best


def _try_product(layer: QuantizedLinear, name: str) -> float | None:
    """Seconds that a product takes; None where it fails or is wrong."""
    product = type(layer).products[name]
    device = layer.weight.device
    generator = torch.Generator().manual_seed(0)
    trial = _extreme_copy(layer, generator).to(device)
    some = slice(min(_COMPARED_ROWS, layer.dim_out))
    wide_OD = trial.widened(some)
    seconds = 0.0
    try:
        trial.use(name)
        for num_rows in _MEASURED_ROWS:
            x_MD = torch.randn(num_rows, layer.dim_in, generator=generator).to(device)
            x_MD[0] = x_MD[0].abs()  # sums as large as they can be: saturation would show
            wanted_MO, got_MO = x_MD @ wide_OD.t(), trial(x_MD)[:, some]
            error = torch.dist(got_MO, wanted_MO) / torch.linalg.vector_norm(wanted_MO)
            if not error <= product.tolerance:
                return None
            seconds += _least_time(trial, x_MD)
    except (RuntimeError, NotImplementedError, AttributeError, ImportError):
        return None
    return seconds


def _extreme_copy(layer: QuantizedLinear, generator: torch.Generator) -> QuantizedLinear:
    """A layer of the same shape with random codes, but for a first row of the largest."""
    shape = (layer.dim_out, layer.dim_in)
    if isinstance(layer, Int4Linear):
        codes_OD = torch.randint(_LARGEST_CODE4 + 1, shape, dtype=torch.uint8, generator=generator)
        codes_OD[0] = _LARGEST_CODE4
        scales_OG = torch.full(layer.weight_scales.shape, 0.01, dtype=torch.bfloat16)
        return Int4Linear(codes_OD, scales_OG, scales_OG * -_MIDDLE_CODE4)
    codes_OD = torch.randint(
        -_LARGEST_CODE, _LARGEST_CODE + 1, shape, dtype=torch.int8, generator=generator
    )
    codes_OD[0] = _LARGEST_CODE
    return Int8Linear(codes_OD, torch.ones(layer.dim_out))


def _least_time(layer: QuantizedLinear, x_MD: Tensor) -> float:
    times = []
    for _ in range(_REPEATS):
        _wait_for(x_MD.device)
        start = time.perf_counter()
        layer(x_MD)
        _wait_for(x_MD.device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("the affine form has biases")
    return tensor


def _pieces(weight_OD: Tensor) -> list[slice]:
    """Rows to be widened together."""
    rows, dim_in = weight_OD.shape
    piece = _PIECE if weight_OD.device.type == "cpu" else _PIECE_ON_GPU
    step = max(1, piece // max(1, dim_in))
    return [slice(start, start + step) for start in range(0, rows, step)]


@contextmanager
def _no_deprecation() -> Iterator[None]:
    """Torch 2.15 announces the end of its quantized tensors; without them another product is taken.

    They carry the weights into the packed form alone, which nothing else does as fast.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantized tensor creation")
        yield


def _free_weight(layer: Any) -> None:
    layer.weight = layer.weight.new_empty(0)


def _widen8(x_MD: Tensor, layer: Int8Linear) -> Tensor:
    return F.linear(x_MD, layer.weight.to(x_MD.dtype)) * layer.scale_O.to(x_MD.dtype)


def _pack_rows(layer: Int8Linear) -> Any:
    if layer.weight.device.type != "cpu":
        raise RuntimeError("a product of the CPU")
    zeros_O = torch.zeros(layer.dim_out, dtype=torch.int64)
    scale_O = layer.scale_O.clamp(min=1e-30).double()
    with _no_deprecation():
        weight = torch._make_per_channel_quantized_tensor(layer.weight, scale_O, zeros_O, 0)
        _free_weight(layer)
        return torch.ops.quantized.linear_prepack(weight, None)


def _rows(x_MD: Tensor, layer: Int8Linear) -> Tensor:
    """Round each row of ``x`` to 8 bits by its own largest magnitude; sums are of integers.

    So a row's result does not depend on the rows beside it, to the last bit.
    """
    x_MD = x_MD.float()
    unit_M1 = x_MD.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / _LARGEST_CODE
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    y_MO: Tensor = multiply(x_MD / unit_M1, 1.0, _LARGEST_CODE + 1, layer.packed)
    return y_MO * unit_M1


def _widen4(x_MD: Tensor, layer: Int4Linear) -> Tensor:
    return F.linear(x_MD, layer.widened().to(x_MD.dtype))


def _pack_int4pack(layer: Int4Linear) -> Tensor:
    if layer.weight.device.type != "cpu":
        raise RuntimeError("a product of the CPU")
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        layer.codes().to(torch.int32), 1
    )
    scales, biases = layer.weight_scales.float(), layer.weight_biases.float()
    pairs_GO2 = torch.stack([scales, biases + _MIDDLE_CODE4 * scales], dim=-1).transpose(0, 1)
    layer.weight_scales = pairs_GO2.to(torch.bfloat16).contiguous()
    layer.weight_biases = layer.weight_biases.new_empty(0)
    _free_weight(layer)
    return packed


def _int4pack(x_MD: Tensor, layer: Int4Linear) -> Tensor:
    y_MO: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x_MD.to(torch.bfloat16), layer.packed, layer.group_size, layer.weight_scales
    )
    return y_MO


def _triton8(x_MD: Tensor, layer: Int8Linear) -> Tensor:
    _require_gpu(x_MD)
    from moshi_pipe.nn.triton_products import multiply_int8

    return multiply_int8(x_MD, layer.weight, layer.scale_O)


def _triton4(x_MD: Tensor, layer: Int4Linear) -> Tensor:
    _require_gpu(x_MD)
    from moshi_pipe.nn.triton_products import multiply_int4

    scales, biases = layer.weight_scales, layer.weight_biases
    return multiply_int4(x_MD, layer.weight, scales, biases, layer.group_size)


def _require_gpu(x_MD: Tensor) -> None:
    if x_MD.device.type != "cuda":
        raise RuntimeError("a product of a GPU")


# Where two are as fast, the first is taken.
Int8Linear.products = {
    "rows": Product(_rows, tolerance=0.03, pack=_pack_rows),
    "widen": Product(_widen8, tolerance=1e-4, exact=True),
    "triton": Product(_triton8, tolerance=0.01, by_name=True),
}
Int4Linear.products = {
    "int4pack": Product(_int4pack, tolerance=0.02, pack=_pack_int4pack),
    "widen": Product(_widen4, tolerance=1e-4, exact=True),
    "triton": Product(_triton4, tolerance=0.01, by_name=True),
}
