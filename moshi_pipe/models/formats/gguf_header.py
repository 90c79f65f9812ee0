"""Read and check the header of a GGUF file, without reading its data.

A file is ``magic | version | counts | metadata | tensor table | padding | data``; the table gives
each tensor's name, sizes (innermost first), type and offset. Of the block types only ``Q8_0`` is
known: it is what released models use.

Source: ggml-org/ggml docs/gguf.md; huggingface/candle candle-core/src/quantized/gguf_file.rs.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.layout import BLOCKS, TensorSpec
from moshi_pipe.models.safetensors_header import Entry, Header
from moshi_pipe.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAGIC: Final = b"GGUF"
TYPES: Final[Mapping[int, str]] = {0: "F32", 1: "F16", 8: "Q8_0", 28: "F64", 30: "BF16"}
"""Types that are read, by their number in the file."""

_OTHER_TYPES: Final[Mapping[int, str]] = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
}  # fmt: skip
_SCALARS: Final[Mapping[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
_ALIGNMENT: Final = 32  # bytes, where the metadata names none
_MOST: Final = 1_000_000  # tensors, metadata entries, or items of an array: more is damage
_LONGEST: Final = 10_000_000  # bytes of one string
_MOST_AXES: Final = 8


def read_gguf_header(path: Path) -> Header:
    """Read and check the header of a GGUF file; shapes are given outermost axis first.

    Raises:
        CheckpointError: It cannot be read, is truncated or damaged, or has types that are not read.
    """
    try:
        with path.open("rb") as file:
            return _parse(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights in {path}", got=error.strerror or str(error)
        ) from error
    except (EOFError, UnicodeDecodeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged",
            got=f"its header: {error}",
            wanted="a whole GGUF file",
            fix="download or copy the file again",
        ) from error


def _parse(path: Path, file: BinaryIO, file_size: int) -> Header:
    take = _Taker(file)
    if take.raw(4) != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file", wanted="a file that begins with GGUF")
    version = take.number("I")
    if version not in (1, 2, 3):
        raise CheckpointError(
            f"{path} is of a GGUF version that is not read", got=str(version), wanted="1, 2 or 3"
        )
    take.size = "I" if version == 1 else "Q"
    num_tensors, num_metadata = take.count(), take.count()
    metadata = {take.text(): take.value(take.number("I")) for _ in range(num_metadata)}
    table = [_TableRow(take) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _damaged(path, got=f"an alignment of {alignment}", wanted="a positive number")
    data_start = -(-file.tell() // alignment) * alignment
    _refuse_types(path, table)
    entries = {row.name: Entry(row.spec(path), data_start + row.offset) for row in table}
    if len(entries) != len(table):
        raise _damaged(path, got="two tensors of one name", wanted="one each")
    _check_ranges(path, entries, file_size)
    return Header(path, entries, {k: str(v) for k, v in metadata.items()}, file_size)


class _Taker:
    """Takes values off a file in the order in which they lie there.

    Attributes:
        size: Code of the type of sizes: 4 bytes in version 1, else 8.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = "Q"

    def raw(self, count: int) -> bytes:
        found = self._file.read(count)
        if len(found) < count:
            raise EOFError(f"it ends after {self._file.tell()} bytes")
        return found

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.raw(struct.calcsize(f"<{code}")))[0]

    def count(self, most: int = _MOST) -> int:
        count = int(self.number(self.size))
        if count > most:
            raise EOFError(f"a count of {count}")
        return count

    def text(self) -> str:
        return self.raw(self.count(_LONGEST)).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner = self.number("I")
            return [self.value(inner) for _ in range(self.count())]
        if kind not in _SCALARS:
            raise EOFError(f"a metadata value of unknown type {kind}")
        return self.number(_SCALARS[kind])


class _TableRow:
    """One row of the tensor table."""

    def __init__(self, take: _Taker) -> None:
        self.name = take.text()
        num_axes = take.number("I")
        if num_axes > _MOST_AXES:
            raise EOFError(f"'{self.name}' has {num_axes} axes")
        self.shape = tuple(int(take.number(take.size)) for _ in range(num_axes))[::-1]
        self.type = take.number("I")
        self.offset = int(take.number("Q"))

    def spec(self, path: Path) -> TensorSpec:
        dtype = TYPES[self.type]
        elements, _ = BLOCKS.get(dtype, (1, 0))
        if not self.shape or self.shape[-1] % elements:
            raise _damaged(
                path,
                got=f"'{self.name}' of type {dtype}, shape {list(self.shape)}",
                wanted=f"rows of whole blocks of {elements}",
            )
        return TensorSpec(self.shape, dtype)


def _refuse_types(path: Path, table: list[_TableRow]) -> None:
    wrong = sorted({row.type for row in table} - set(TYPES))
    if wrong:
        count = sum(row.type in wrong for row in table)
        names = ", ".join(_OTHER_TYPES.get(number, f"type {number}") for number in wrong)
        raise CheckpointError(
            f"{path} stores weights in a way that is not read",
            got=f"{count} of {len(table)} tensors are {names}",
            wanted=", ".join(TYPES.values()),
            fix="use the Q8_0 file of this model",
        )


def _check_ranges(path: Path, entries: Mapping[str, Entry], file_size: int) -> None:
    """Data must follow without overlap, and the file must hold all of it."""
    position, previous = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < position:
            raise _damaged(
                path,
                got=f"'{name}' overlaps '{previous}' by {position - entry.start} bytes",
                wanted="tensors one after the other",
            )
        position, previous = entry.start + entry.spec.num_bytes, name
    if file_size < position:
        raise CheckpointError(
            f"{path} is truncated",
            got=f"{file_size} bytes ({format_bytes(file_size)})",
            wanted=f"{position} bytes ({format_bytes(position)}), by its own header",
            fix="download or copy the file again",
        )


def _damaged(path: Path, *, got: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged", got=got, wanted=wanted, fix="download or copy the file again"
    )
