"""Weights straight from files into MLX, tensor by tensor: never two copies of a model.

A tensor of a file is not read before it is evaluated. Each is read, converted or quantized,
evaluated and let go before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import mlx.core as mx
import torch

from moshi_pipe.errors import BackendError, CheckpointError
from moshi_pipe.models.formats.names import CANDLE, naming_of
from moshi_pipe.models.layout import FLOAT_DTYPES, Layout, is_linear, lm_layout, mimi_layout
from moshi_pipe.models.weight_check import (
    check_weights,
    is_gguf,
    match_weights,
    read_any_header,
)
from moshi_pipe.nn.packing import Packed as TorchPacked
from moshi_pipe.nn.packing import pack_codes
from moshi_pipe.nn.weight_reader import WeightReader
from moshi_pipe.nn.weight_reader import reading as open_weights
from moshi_pipe_mlx.matrix import Dense, Matrix, Packed, Packing, Weights
from moshi_pipe_mlx.names import file_shape, is_mlx_file, mlx_names

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from moshi_pipe.models.safetensors_header import Header
    from moshi_pipe.models.spec import LMSpec, MimiSpec
    from moshi_pipe_mlx.place import Place

Progress = Callable[[int, int], None]

PACKINGS: Final = {"int8": Packing(8, 64), "int4": Packing(4, 32)}
"""How the released files are quantized, by the name that ``quant`` gives it."""

_BITS: Final = (2, 3, 4, 5, 6, 8)  # that MLX packs
_GROUPS: Final = (32, 64, 128)
_LISTED: Final = 20  # names per kind in one error


@dataclass(slots=True)
class _Store:
    """Where tensors go: converted, checked and evaluated.

    Attributes:
        path: The file, for messages.
        place: Device and types.
        packing: What to quantize to; None leaves what comes.
        check_finite: Refuse NaN and infinity.
        weights: What was stored.
    """

    path: Path
    place: Place
    packing: Packing | None = None
    check_finite: bool = True
    weights: Weights = field(default_factory=Weights)

    def put(self, name: str, tensor: mx.array) -> None:
        """Store a float tensor under its in-memory name."""
        if self.check_finite and not bool(mx.isfinite(tensor).all()):
            raise _not_finite(self.path, name)
        # Conditions are a few rows, computed once per session: they stay as they are trained.
        condition = name.startswith("condition_provider.")
        dtype = mx.float32 if condition else self.place.dtype
        if tensor.ndim != 2:
            # A slice of a larger tensor would keep all of that alive.
            self.weights.vectors[name] = mx.contiguous(tensor.astype(dtype))
            mx.eval(self.weights.vectors[name])
            return
        matrix: Matrix
        packing = self.packing
        if packing is not None and not condition and packing.fits(tensor.shape[1]):
            matrix = Packed.quantize(tensor, packing, dtype)
        elif self.place.in_major and is_linear(name):
            matrix = Dense(mx.contiguous(tensor.astype(dtype).T), in_major=True)
        else:
            matrix = Dense(mx.contiguous(tensor.astype(dtype)))
        self.put_matrix(name, matrix)

    def put_matrix(self, name: str, matrix: Matrix) -> None:
        """Store a matrix in its final form."""
        mx.eval(matrix.arrays)
        self.weights.matrices[name] = matrix


def read_lm(
    path: Path,
    lm: LMSpec,
    place: Place,
    *,
    quant: str = "none",
    check_finite: bool = True,
    hibiki: bool = False,
    progress: Progress | None = None,
) -> tuple[Weights, Packing | None]:
    """Read a language model in any released format; which one, its content tells.

    Packed tensors of an MLX file stay packed: their shapes tell bits and group, not the file's
    name. GGUF's blocks are repacked to 8 bits in groups of 32, the same numbers. ``quant``
    quantizes the others as the released files were: linear layers and embeddings, int8 in groups
    of 64 and int4 in groups of 32; conditions, and rows that do not divide into whole groups, stay
    as they are.

    Args:
        path: Safetensors or GGUF.
        lm: What it must hold.
        place: Device and types.
        quant: ``none``, ``int8`` or ``int4``.
        check_finite: Refuse NaN and infinity.
        hibiki: Read an end of stream that comes too early as padding.
        progress: Called with bytes done and bytes in all.

    Returns:
        The weights, and how most of the matrices are quantized.

    Raises:
        CheckpointError: The file is damaged, of another format or model, or not finite, or it is
            quantized in another way than ``quant`` says.
        BackendError: There is no such ``quant``.
    """
    if quant != "none" and quant not in PACKINGS:
        raise BackendError(
            f"backend mlx has no quantization '{quant}'",
            wanted=", ".join(["none", *PACKINGS]),
            fix="set quant=none, or backend=torch",
        )
    store = _Store(path, place, PACKINGS.get(quant), check_finite)
    header = read_any_header(path)
    with place.enter():
        if is_mlx_file(header.entries):
            _read_mlx(header, lm, store, quant, progress)
        elif is_gguf(path) or naming_of(header.entries) == CANDLE or lm.num_stored:
            _read_foreign(path, lm, store, quant, progress)
        else:
            _read_hub(check_weights(path, lm_layout(lm)), lm_layout(lm), store, progress)
        if hibiki:
            # Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/loaders.py, get_moshi.
            table = store.weights.matrix("text_emb.weight")
            table.copy_row(3, 2)
            mx.eval(table.arrays)
        mx.clear_cache()
    packings = [m.packing for m in store.weights.matrices.values() if isinstance(m, Packed)]
    return store.weights, max(packings, key=packings.count) if packings else None


def read_mimi(
    path: Path,
    mimi: MimiSpec,
    place: Place,
    *,
    check_finite: bool = True,
    progress: Progress | None = None,
) -> dict[str, mx.array]:
    """Read a codec in float32; its released files have one format.

    Raises:
        CheckpointError: The file is damaged, holds another codec or is not finite.
    """
    layout = mimi_layout(mimi)
    header = check_weights(path, layout)
    found: dict[str, mx.array] = {}
    with place.enter(), _reading(path):
        for name, tensor in _pieces(header, layout, progress):
            if check_finite and not bool(mx.isfinite(tensor).all()):
                raise _not_finite(path, name)
            found[name] = mx.contiguous(tensor.astype(mx.float32))
            mx.eval(found[name])
    return found


def _read_hub(header: Header, layout: Layout, store: _Store, progress: Progress | None) -> None:
    with _reading(header.path):
        for name, tensor in _pieces(header, layout, progress):
            store.put(name, tensor)


def _read_foreign(
    path: Path, lm: LMSpec, store: _Store, quant: str, progress: Progress | None
) -> None:
    """Read what MLX itself has no reader for, or other names: GGUF and candle's files."""
    contents = match_weights(path, lm_layout(lm))
    if contents.is_quantized and quant not in ("none", "int8"):
        raise CheckpointError(
            f"{path} cannot be loaded with quant={quant}",
            got=f"a file of {contents.quantization}",
            wanted="quant=none or int8, or weights that are not quantized",
            fix="leave quant at none to take the file as it is",
        )
    done = 0
    with open_weights(path) as file:
        reader = WeightReader(file, contents)
        for name, stored in contents.stored.items():
            packed = reader.packed(name) if stored.group in _GROUPS else None
            if packed is None:
                store.put(name, _array(reader.read_stored(name)))
            else:
                _put_packed(name, packed.affine(), store)
            done += stored.num_bytes
            if progress is not None:
                progress(done, contents.num_bytes)


def _put_packed(name: str, packed: TorchPacked, store: _Store) -> None:
    if packed.biases is None:
        raise RuntimeError("MLX's form has biases")
    words = mx.array(pack_codes(packed.codes, packed.bits).numpy()).view(mx.uint32)
    arrays = [words, _array(packed.scales), _array(packed.biases)]
    _put_mlx(name, arrays, Packing(packed.bits, packed.group), Layout({}), store)


def _array(tensor: Tensor) -> mx.array:
    """A copy of a tensor on MLX; numpy between them knows no bfloat16."""
    if tensor.dtype == torch.bfloat16:
        return mx.array(tensor.view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.numpy())


def _pieces(
    header: Header, layout: Layout, progress: Progress | None
) -> Iterator[tuple[str, mx.array]]:
    """In-memory name and tensor of everything in a PyTorch file, in the file's order."""
    arrays = mx.load(str(header.path), format="safetensors")
    if not isinstance(arrays, dict):
        raise TypeError(f"mlx read {header.path} as {type(arrays).__name__}")
    done = 0
    for file_name, entry in sorted(header.entries.items(), key=lambda item: item[1].start):
        if file_name.endswith("_scb"):
            continue
        whole = arrays.pop(file_name)
        if entry.spec.dtype == "I8":
            scale = arrays.pop(f"{file_name}_scb")
            # int8 = round(127 w / absmax of the row)
            whole = whole.astype(mx.float32) * (scale.astype(mx.float32) / 127)[:, None]
        start = 0
        for name in layout.resolve(file_name):
            rows = layout.tensors[name].shape[0] if layout.tensors[name].shape else None
            yield name, whole if rows is None else whole[start : start + rows]
            start += rows or 0
        del whole
        done += entry.spec.num_bytes
        if progress is not None:
            progress(done, header.data_bytes)


def _read_mlx(
    header: Header, lm: LMSpec, store: _Store, quant: str, progress: Progress | None
) -> None:
    names, layout = mlx_names(lm), lm_layout(lm)
    packings = _check_mlx(header, names, layout)
    wrong = {str(p) for p in packings.values() if quant != "none" and p != PACKINGS[quant]}
    if wrong:
        raise CheckpointError(
            f"{header.path} cannot be loaded with quant={quant}",
            got=f"a file of {', '.join(sorted(wrong))}",
            wanted=f"{PACKINGS[quant]}, or weights that are not quantized",
            fix="leave quant at none to take the file as it is",
        )
    done = 0
    with _reading(header.path):
        arrays = mx.load(str(header.path), format="safetensors")
        if not isinstance(arrays, dict):
            raise TypeError(f"mlx read {header.path} as {type(arrays).__name__}")
        for name, copies in names.items():
            parts = _suffixes(copies[0], packed=copies[0] in packings)
            found = [[arrays.pop(part) for part in _siblings(copy, parts)] for copy in copies]
            done += sum(array.nbytes for copy in found for array in copy)
            _refuse_different(header.path, copies, found)
            _put_mlx(name, found[0], packings.get(copies[0]), layout, store)
            if progress is not None:
                progress(done, header.data_bytes)


def _put_mlx(
    name: str, arrays: list[mx.array], packing: Packing | None, layout: Layout, store: _Store
) -> None:
    if packing is None:
        store.put(name, arrays[0].reshape(layout.tensors[name].shape))
        return
    weight, scales, biases = arrays
    for part in (scales, biases):
        if store.check_finite and not bool(mx.isfinite(part).all()):
            raise _not_finite(store.path, name)
    condition = name.startswith("condition_provider.")
    dtype = mx.float32 if condition else store.place.dtype
    store.put_matrix(name, Packed.wrap(weight, scales, biases, packing, dtype))


def _check_mlx(
    header: Header, names: dict[str, tuple[str, ...]], layout: Layout
) -> dict[str, Packing]:
    """Compare an MLX file's header with what the config predicts.

    Returns:
        The packing of every packed tensor, by its name in the file.

    Raises:
        CheckpointError: Lists what is missing, unknown or misshapen.
    """
    packings: dict[str, Packing] = {}
    missing, misshapen = [], []
    unknown = set(header.entries)
    for name, copies in names.items():
        shape = file_shape(layout.tensors[name].shape, name)
        for copy in copies:
            packed = f"{_stem(copy)}.scales" in header.entries
            parts = _siblings(copy, _suffixes(copy, packed=packed))
            absent = [part for part in parts if part not in header.entries]
            missing += absent
            unknown.difference_update(parts)
            if absent:
                continue
            specs = [header.entries[part].spec for part in parts]
            if packed:
                packing = _packing(shape, [spec.shape for spec in specs], specs[0].dtype)
                if packing is not None:
                    packings[copy] = packing
                    continue
            elif specs[0].shape == shape and specs[0].dtype in FLOAT_DTYPES:
                continue
            got = ", ".join(f"{spec.dtype} {list(spec.shape)}" for spec in specs)
            misshapen.append(f"{copy}: {got}; config says {list(shape)}")
    lists = {"missing": missing, "unknown": sorted(unknown), "misshapen": misshapen}
    problems = [
        f"{kind}, {len(items)}:\n  " + "\n  ".join(items[:_LISTED])
        for kind, items in lists.items()
        if items
    ]
    if problems:
        raise CheckpointError(
            f"{header.path} does not hold the model that its config describes",
            got=f"{len(header.entries)} tensors in the MLX format\n" + "\n".join(problems),
            wanted=f"{sum(map(len, names.values()))} tensors, packed or not",
            fix="use the config.json that belongs to this file",
        )
    return packings


def _packing(shape: tuple[int, ...], found: list[tuple[int, ...]], dtype: str) -> Packing | None:
    """Tell bits and group of a packed tensor from its shapes; None where they do not fit."""
    weight, scales, biases = found
    if dtype != "U32" or len(shape) != 2 or scales != biases or 0 in (*weight, *scales):
        return None
    rows, dim_in = shape
    if len(weight) != 2 or len(scales) != 2 or weight[0] != rows or scales[0] != rows:
        return None
    bits, group = weight[1] * 32 // dim_in, dim_in // scales[1]
    whole = weight[1] * 32 == dim_in * bits and scales[1] * group == dim_in
    return Packing(bits, group) if whole and bits in _BITS and group in _GROUPS else None


def _refuse_different(path: Path, copies: tuple[str, ...], found: list[list[mx.array]]) -> None:
    """Copies of a shared weight must be equal: only one is kept."""
    for name, arrays in zip(copies[1:], found[1:], strict=True):
        same = len(arrays) == len(found[0]) and all(
            a.dtype == b.dtype and bool(mx.array_equal(a, b))
            for a, b in zip(arrays, found[0], strict=True)
        )
        if not same:
            raise CheckpointError(
                f"{path} does not hold the model that its config describes",
                got=f"'{name}' differs from '{copies[0]}'",
                wanted="equal copies of a weight that codebooks share",
                fix="check depformer_weights_per_step_schedule in config.json",
            )


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _suffixes(name: str, *, packed: bool) -> list[str]:
    return ["weight", "scales", "biases"] if packed else [name.rpartition(".")[2]]


def _siblings(name: str, suffixes: list[str]) -> list[str]:
    return [f"{_stem(name)}.{suffix}" for suffix in suffixes]


def _not_finite(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path} has weights that are not finite",
        got=f"NaN or infinity in '{name}'",
        wanted="finite numbers",
        fix="download or copy the file again",
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what MLX says of a file into an error that names it."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"MLX cannot read the weights in {path}", got=str(error).strip().splitlines()[0]
        ) from error
