"""Whether a weight file holds the model that its config describes, by its header alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.formats.contents import (
    AFFINE,
    INT8_ROWS,
    PLAIN,
    Q8_0,
    Contents,
    Rows,
    Stored,
)
from moshi_pipe.models.formats.gguf_header import MAGIC, read_gguf_header
from moshi_pipe.models.formats.names import HUB, naming_of, slice_names
from moshi_pipe.models.layout import FLOAT_DTYPES, SCALE_SUFFIX, Layout, TensorSpec, lm_layout
from moshi_pipe.models.safetensors_header import Header, read_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BITS: Final = (2, 3, 4, 5, 6, 8)
"""Bits to which MLX packs."""
GROUPS: Final = (32, 64, 128)
"""Group sizes in which MLX packs."""

_LISTED: Final = 20  # names per kind in one error


def read_any_header(path: Path) -> Header:
    """Read the header of a weight file, safetensors or GGUF: its first bytes tell which.

    Raises:
        CheckpointError: It cannot be read, is damaged or of another format.
    """
    return read_gguf_header(path) if is_gguf(path) else read_header(path)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does; False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def check_weights(path: Path, layout: Layout) -> Header:
    """Compare a weight file's header with the layout that the config predicts.

    Returns:
        The file's header.

    Raises:
        CheckpointError: See :func:`match_weights`.
    """
    return match_weights(path, layout).header


def match_weights(path: Path, layout: Layout) -> Contents:
    """Find every tensor of a layout in a weight file of any released format.

    Fused and split names are both accepted, as are the older names of codebooks; a language model
    may be stored in any of the released encodings, whatever its config says of quantization.

    Raises:
        CheckpointError: Lists all missing, unknown and misshapen tensors; or the file is damaged.
    """
    header = read_any_header(path)
    naming = naming_of(header.entries) if layout.lm is not None else HUB
    kept = layout.weights
    if layout.lm is not None and layout.lm.num_stored:
        layout = lm_layout(layout.lm.as_stored())
    match = _Match(header, layout, naming)
    problems = match.problems()
    if problems:
        predicted = sum(spec.num_elements for spec in layout.weights.values())
        raise CheckpointError(
            f"{path} does not hold the model that its config describes",
            got=f"{len(header.entries)} tensors, {header.num_elements} elements\n"
            + "\n".join(problems),
            wanted=f"{match.num_expected} tensors, {predicted} elements, quantized or not",
            fix="use the config.json that belongs to this file",
        )
    found = {name: stored for name, stored in match.stored.items() if name in kept}
    order = sorted(found.items(), key=lambda item: item[1].parts[0].start)
    return Contents(header, naming, is_gguf(path), dict(order))


@dataclass
class _Match:
    """Entries of a file, assigned to the tensors of a layout.

    Attributes:
        header: The file's.
        layout: What it shall hold.
        naming: Whose names it has.
        stored: Found tensors by in-memory name.
    """

    header: Header
    layout: Layout
    naming: str
    stored: dict[str, Stored] = field(default_factory=dict)
    _missing: set[str] = field(default_factory=set)
    _unknown: list[str] = field(default_factory=list)
    _misshapen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        entries = self.header.entries
        names: Mapping[str, tuple[str, ...]] = {}
        if self.naming != HUB and self.layout.lm is not None:
            names = slice_names(self.layout.lm, self.naming)
        owners = {copy: (name,) for name, copies in names.items() for copy in copies}
        self.num_expected = len(owners) or len(self.layout.file_tensors())
        self._missing = set(owners) or set(self.layout.weights)
        for name, entry in entries.items():
            if _is_scale(name, entries):
                continue
            parts = owners.get(name, ()) if owners else self.layout.resolve(name)
            if not parts or parts[0].endswith(SCALE_SUFFIX):
                self._unknown.append(f"{name} {list(entry.spec.shape)}")
                continue
            self._missing.difference_update([name] if owners else parts)
            self._take(name, parts)

    def problems(self) -> list[str]:
        """Lines that list what does not fit; empty when all does."""
        return [
            *_problem("missing", sorted(self._missing)),
            *_problem("unknown", sorted(self._unknown)),
            *_problem("misshapen", sorted(self._misshapen)),
        ]

    def _take(self, name: str, parts: tuple[str, ...]) -> None:
        """Assign one array, with its scales, to the tensors whose rows it holds."""
        wanted = self.layout.stacked_spec(parts)
        found = self._encoding(name, wanted)
        if found is None:
            entry = self.header.entries[name]
            with_scales = " with scales" if len(_siblings(name, self.header.entries)) > 1 else ""
            self._misshapen.append(
                f"{name}: {entry.spec.dtype} {list(entry.spec.shape)}{with_scales}, "
                f"config says {wanted.dtype} {list(wanted.shape)}"
            )
            return
        encoding, arrays, bits, group = found
        first = 0
        for part in parts:
            shape = self.layout.tensors[part].shape
            rows = shape[0] if shape else 1
            cut = tuple(_cut(array, first, rows, len(parts) > 1) for array in arrays)
            first += rows
            before = self.stored.get(part)
            if before is None:
                self.stored[part] = Stored(encoding, shape, cut, (), bits, group)
            elif self.naming == HUB:
                self._unknown.append(f"{name}: holds '{part}' once more")
            elif (before.encoding, before.bits, before.group) != (encoding, bits, group):
                self._misshapen.append(f"{name}: stored otherwise than '{before.parts[0].name}'")
            else:
                copies = (*before.copies, cut)
                self.stored[part] = Stored(encoding, shape, before.parts, copies, bits, group)

    def _encoding(
        self, name: str, wanted: TensorSpec
    ) -> tuple[str, tuple[Rows, ...], int, int] | None:
        """How an array is stored, its arrays, bits and group; None where it does not fit."""
        entries = self.header.entries
        siblings = _siblings(name, entries)
        arrays = tuple(Rows(n, entries[n].spec, entries[n].start) for n in siblings)
        spec = arrays[0].spec
        if len(arrays) == 3:
            packing = packing_of(wanted.shape, [array.spec for array in arrays])
            return None if packing is None else (AFFINE, arrays, *packing)
        squeezed = spec.shape == wanted.shape or (
            # RMS norms have one axis in MLX files; GGUF may lose outer axes of size 1.
            self.naming != HUB and spec.shape == tuple(s for s in wanted.shape if s != 1)
        )
        if not squeezed:
            return None
        if spec.shape != wanted.shape:
            whole = TensorSpec(wanted.shape, spec.dtype)
            arrays = (Rows(name, whole, arrays[0].start), *arrays[1:])
        if spec.dtype == "Q8_0":
            return (Q8_0, arrays, 8, 32) if len(wanted.shape) == 2 else None
        if len(arrays) == 2:
            absmax = arrays[1].spec
            fits = absmax == TensorSpec(wanted.shape[:1], "F32") and len(wanted.shape) == 2
            return (INT8_ROWS, arrays, 8, wanted.shape[1]) if fits else None
        if spec.dtype in FLOAT_DTYPES and (wanted.dtype in FLOAT_DTYPES or self.layout.lm):
            return PLAIN, arrays, 0, 0
        exact = spec.dtype == wanted.dtype and wanted.dtype != "I8"
        return (PLAIN, arrays, 0, 0) if exact else None


def packing_of(shape: tuple[int, ...], specs: list[TensorSpec]) -> tuple[int, int] | None:
    """Tell bits and group of MLX's packed codes, scales and biases; None where they do not fit.

    Args:
        shape: Of the weight, unpacked.
        specs: Of codes, scales and biases.
    """
    codes, scales, biases = specs
    axes = [len(shape), len(codes.shape), len(scales.shape)]
    types = codes.dtype == "U32" and scales.dtype in FLOAT_DTYPES and scales == biases
    if not types or axes != [2, 2, 2] or 0 in (*shape, *codes.shape, *scales.shape):
        return None
    (rows, dim), words, groups = shape, codes.shape[1], scales.shape[1]
    bits, group = words * 32 // dim, dim // groups
    whole = words * 32 == dim * bits and groups * group == dim
    same_rows = rows == codes.shape[0] == scales.shape[0]
    return (bits, group) if whole and same_rows and bits in BITS and group in GROUPS else None


def _siblings(name: str, entries: Mapping[str, object]) -> list[str]:
    """An array with its scales, as they are named in the file."""
    stem, _, last = name.rpartition(".")
    packed = [f"{stem}.scales", f"{stem}.biases"]
    if last == "weight" and all(sibling in entries for sibling in packed):
        return [name, *packed]
    scale = f"{name}{SCALE_SUFFIX}"
    return [name, scale] if scale in entries else [name]


def _is_scale(name: str, entries: Mapping[str, object]) -> bool:
    """Whether an entry only scales another one that is there."""
    stem, _, last = name.rpartition(".")
    if last in ("scales", "biases"):
        return name in _siblings(f"{stem}.weight", entries) and f"{stem}.weight" in entries
    return name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in entries


def _cut(array: Rows, first: int, count: int, stacked: bool) -> Rows:
    """Some rows of an array that stacks several tensors; all of one that does not."""
    if not stacked:
        return array
    spec = TensorSpec((count, *array.spec.shape[1:]), array.spec.dtype)
    return Rows(array.name, spec, array.start + first * array.row_bytes)


def _problem(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"  and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return [f"{kind}, {len(names)}:", *(f"  {name}" for name in names[:_LISTED]), *more]
