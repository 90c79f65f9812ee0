"""Where each in-memory tensor goes in a new weight file of a released format."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import CheckpointError, ConfigError, closest
from moshi_pipe.models.formats.contents import AFFINE, FORMATS, INT8_ROWS, PLAIN, Q8_0
from moshi_pipe.models.formats.gguf_header import MAGIC, TYPES
from moshi_pipe.models.formats.names import CANDLE, HUB, MLX, file_shape, slice_names
from moshi_pipe.models.layout import (
    SCALE_SUFFIX,
    TensorSpec,
    data_order,
    header_bytes,
    is_linear,
    lm_layout,
)
from moshi_pipe.models.weight_check import GROUPS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.models.formats.contents import Contents, Stored
    from moshi_pipe.models.spec import LMSpec

FILE_NAMES: Final[Mapping[str, str]] = {
    "torch": "model.safetensors",
    "torch-q8": "model.q8.safetensors",
    "mlx": "model.safetensors",
    "mlx-q8": "model.q8.safetensors",
    "mlx-q4": "model.q4.safetensors",
    "candle": "model.safetensors",
    "gguf": "model.q8.gguf",
}
"""How the released repositories name the language model's file."""

_NAMINGS: Final = {"mlx": MLX, "candle": CANDLE, "gguf": CANDLE}
_PACKINGS: Final = {"mlx-q8": (8, 64), "mlx-q4": (4, 32)}
_BLOCK: Final = 32
_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class Target:
    """How one in-memory tensor is to be stored.

    Attributes:
        encoding: ``plain``, ``int8 rows``, ``affine`` or ``Q8_0``.
        dtypes: Type of each of its arrays.
        places: For every copy the names of its arrays in the file.
        first_row: Row of the arrays at which the tensor begins.
        bits: Of a code; 0 for plain numbers.
        group: Neighbours in a row that share a scale; 0 for plain numbers.
    """

    encoding: str
    dtypes: tuple[str, ...]
    places: tuple[tuple[str, ...], ...]
    first_row: int = 0
    bits: int = 0
    group: int = 0


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A weight file before its data are written.

    Attributes:
        header: All bytes before the data.
        arrays: Shape and type of each array.
        starts: Byte of the file at which each begins.
        targets: How each in-memory tensor is stored.
        num_bytes: Size of the file.
    """

    header: bytes
    arrays: Mapping[str, TensorSpec]
    starts: Mapping[str, int]
    targets: Mapping[str, Target]
    num_bytes: int


def plan_file(
    lm: LMSpec, contents: Contents, to: str, *, dtype: str | None = None, group: int | None = None
) -> FilePlan:
    """Lay out a file of another format for the tensors of one that is there.

    Args:
        lm: The model.
        contents: The file that is there: what is stored as the new format wants it is kept.
        to: One of :data:`FORMATS`.
        dtype: Type of numbers that are not quantized, as safetensors names it; None keeps those
            of a file that is not quantized, and takes BF16 for one that is. GGUF has F32.
        group: Of ``mlx-q8`` and ``mlx-q4``; None takes that of the released files, 64 and 32.

    Raises:
        ConfigError: There is no such format or group.
        CheckpointError: The format has no place for this model.
    """
    if to not in FORMATS:
        raise ConfigError(f"there is no format '{to}'", wanted=closest(to, FORMATS))
    if group is not None and (to not in _PACKINGS or group not in GROUPS):
        raise ConfigError(
            f"format {to} has no groups of {group}",
            wanted="to=mlx-q8 or mlx-q4 with group=" + ", ".join(map(str, GROUPS)),
        )
    layout = lm_layout(lm)
    naming = _NAMINGS.get(to.partition("-")[0], HUB)
    names: dict[str, tuple[str, ...]] = {name: (name,) for name in layout.weights}
    if naming != HUB:
        names = dict(slice_names(lm, naming))
    rows = {name: 0 for name in names}
    if naming == HUB:
        for fused, parts in layout.fused.items():
            first = 0
            for part in parts:
                if part in names:
                    names[part], rows[part] = (fused,), first
                    first += layout.tensors[part].shape[0]
    targets = {}
    arrays: dict[str, TensorSpec] = {}
    for name, copies in names.items():
        shape = layout.tensors[name].shape
        stored = contents.stored[name]
        plain = dtype or ("BF16" if contents.is_quantized else stored.dtype)
        form, suffixes = _form(name, shape, stored, to, plain, group)
        places = tuple(tuple(_array_name(copy, suffix) for suffix in suffixes) for copy in copies)
        targets[name] = Target(
            form.encoding, form.dtypes, places, rows[name], form.bits, form.group
        )
        for place in places:
            for array, spec in zip(place, _specs(shape, name, form, naming), strict=True):
                known = arrays.get(array)
                if known is not None and naming == HUB:
                    whole = (known.shape[0] + spec.shape[0], *spec.shape[1:])
                    spec = TensorSpec(whole, spec.dtype)
                arrays[array] = spec
    if to == "gguf":
        header, starts, num_bytes = _gguf(arrays)
    else:
        header, starts, num_bytes = _safetensors(arrays, naming)
    return FilePlan(header, arrays, starts, targets, num_bytes)


def _form(
    name: str, shape: tuple[int, ...], stored: Stored, to: str, plain: str, group: int | None
) -> tuple[Target, tuple[str, ...]]:
    """How a tensor is stored in a format, without its places, and what its arrays are called."""
    if to == "torch-q8" and is_linear(name):
        return Target(INT8_ROWS, ("I8", "F32"), (), 0, 8, shape[1]), ("", SCALE_SUFFIX)
    if to == "gguf":
        whole = len(shape) == 2 and shape[1] % _BLOCK == 0
        form = Target(Q8_0, ("Q8_0",), (), 0, 8, _BLOCK) if whole else Target(PLAIN, ("F32",), ())
        return form, ("",)
    if to in _PACKINGS and not name.startswith("condition_provider."):
        bits, released = _PACKINGS[to]
        size = group or released
        if len(shape) == 2 and shape[1] % size == 0 and shape[1] * bits % 32 == 0:
            scales = "BF16"
            if (stored.encoding, stored.bits, stored.group) == (AFFINE, bits, size):
                scales = stored.parts[1].spec.dtype
            elif stored.encoding == Q8_0 and (bits, size) == (8, _BLOCK):
                scales = "F16"  # the blocks' own
            form = Target(AFFINE, ("U32", scales, scales), (), 0, bits, size)
            return form, (".weight", ".scales", ".biases")
    return Target(PLAIN, (plain,), ()), ("",)


def _array_name(name: str, suffix: str) -> str:
    return name.removesuffix(".weight") + suffix if suffix.startswith(".") else name + suffix


def _specs(shape: tuple[int, ...], name: str, form: Target, naming: str) -> list[TensorSpec]:
    """Shapes and types of a tensor's arrays."""
    if form.encoding == AFFINE:
        words, groups = shape[1] * form.bits // 32, shape[1] // form.group
        sizes = [(shape[0], words), (shape[0], groups), (shape[0], groups)]
        return [TensorSpec(size, dtype) for size, dtype in zip(sizes, form.dtypes, strict=True)]
    if form.encoding == INT8_ROWS:
        return [TensorSpec(shape, "I8"), TensorSpec(shape[:1], "F32")]
    return [TensorSpec(file_shape(shape, name, naming), form.dtypes[0])]


def _safetensors(
    arrays: Mapping[str, TensorSpec], naming: str
) -> tuple[bytes, dict[str, int], int]:
    header = header_bytes(arrays, {"format": "mlx" if naming == MLX else "pt"})
    starts, position = {}, len(header)
    for name in data_order(arrays):
        starts[name] = position
        position += arrays[name].num_bytes
    return header, starts, position


def _gguf(arrays: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int], int]:
    """A header of version 3; sizes go innermost first."""
    numbers = {dtype: number for number, dtype in TYPES.items()}

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    string, metadata = 8, {"general.architecture": "moshi"}
    parts = [MAGIC, struct.pack("<IQQ", 3, len(arrays), len(metadata))]
    parts += [text(k) + struct.pack("<I", string) + text(v) for k, v in metadata.items()]
    offset, offsets = 0, {}
    for name, spec in arrays.items():
        offsets[name] = offset
        parts += [text(name), struct.pack("<I", len(spec.shape))]
        parts += [struct.pack("<Q", size) for size in reversed(spec.shape)]
        parts += [struct.pack("<IQ", numbers[spec.dtype], offset)]
        offset = _aligned(offset + spec.num_bytes)
    header = b"".join(parts)
    header += bytes(_aligned(len(header)) - len(header))
    starts = {name: len(header) + place for name, place in offsets.items()}
    if not starts:
        raise CheckpointError("a model without tensors cannot be written")
    return header, starts, len(header) + offset


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT
