"""Read and check the header of a safetensors file, without reading its data.

A file is ``u64 header length | JSON header | data``; the header gives each tensor's type, shape and
byte range. Everything is checked before any tensor is read, so a truncated download, a pickle
under another name or a header that does not fit its data is refused with the reason.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.layout import DTYPE_BYTES, TensorSpec
from moshi_pipe.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LARGEST_HEADER: Final = 100_000_000  # bytes, the limit of the safetensors library
_LARGEST_GAP: Final = 4096  # bytes; alignment padding between tensors

_PICKLE_FIX: Final = (
    "convert it to safetensors where it was made: "
    "safetensors.torch.save_file(state_dict, 'model.safetensors')"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes:
        spec: Shape and type.
        start: Byte of the file at which its data begins.
    """

    spec: TensorSpec
    start: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says about itself.

    Attributes:
        path: The file.
        entries: Every tensor by its name.
        metadata: The free text entries, ``{}`` without any.
        file_size: Bytes of the whole file.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    file_size: int

    @property
    def num_elements(self) -> int:
        """Elements of all tensors."""
        return sum(entry.spec.num_elements for entry in self.entries.values())

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(entry.spec.num_bytes for entry in self.entries.values())


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Args:
        path: The file, whatever its name ends in.

    Raises:
        CheckpointError: It cannot be read, is another format, is truncated, has bytes that belong
            to no tensor, or a tensor whose bytes do not fit its type and shape.
    """
    try:
        with path.open("rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            start = file.read(16)
            refuse_other_formats(path, start)
            length = int.from_bytes(start[:8], "little")
            if length > min(_LARGEST_HEADER, file_size - 8):
                raise _damaged(
                    path,
                    got=f"a header of {length} bytes in a file of {file_size}",
                    wanted="a header that fits into the file",
                )
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights in {path}",
            got=error.strerror or str(error),
            fix="check the path and its permissions",
        ) from error
    return _parse(path, text, data_start=8 + length, file_size=file_size)


def refuse_other_formats(path: Path, start: bytes) -> None:
    """Refuse what is not safetensors, by its first bytes.

    Args:
        path: The file, for the message.
        start: Its first 16 bytes, or all of a shorter one.

    Raises:
        CheckpointError: It is empty, a pickle, GGUF, HDF5, an archive, a Git LFS pointer or text.
    """
    fix = "download it again, or give the safetensors file of this model"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LARGEST_HEADER:
        return
    if not start:
        kind = "an empty file"
    elif start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        kind, fix = "a PyTorch pickle, which can run code when it is loaded", _PICKLE_FIX
    elif start[:4] == b"GGUF":
        kind = "a GGUF file"
    elif start[:8] == b"\x89HDF\r\n\x1a\n":
        kind = "an HDF5 file"
    elif start[:12] == b"version http":
        kind, fix = "a Git LFS pointer, not the weights themselves", "run: git lfs pull"
    elif start[:1] in (b"<", b"{"):
        kind = "a text file"
    else:
        kind = f"a file that begins with {start[:10]!r}"
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
            fix = _PICKLE_FIX
    raise CheckpointError(
        f"{path} is not a safetensors file", got=kind, wanted="safetensors", fix=fix
    )


def _parse(path: Path, text: bytes, *, data_start: int, file_size: int) -> Header:
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise _damaged(path, got=f"a header that is not JSON: {error}", wanted="JSON") from error
    if not isinstance(raw, dict):
        raise _damaged(path, got="a header that is not a table", wanted="a table of tensors")
    metadata = raw.pop("__metadata__", None) or {}
    entries = {str(name): _entry(path, name, item, data_start) for name, item in raw.items()}
    _check_ranges(path, entries, data_start, file_size)
    return Header(path, entries, metadata, file_size)


def _entry(path: Path, name: str, item: dict[str, Any], data_start: int) -> Entry:
    try:
        dtype, shape = str(item["dtype"]), tuple(int(size) for size in item["shape"])
        begin, end = (int(offset) for offset in item["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(
            path, got=f"'{name}': {item!r}"[:200], wanted="dtype, shape and data_offsets"
        ) from error
    if dtype not in DTYPE_BYTES or min(shape, default=0) < 0:
        raise _damaged(
            path,
            got=f"'{name}' of type {dtype}, shape {list(shape)}",
            wanted=f"one of {', '.join(DTYPE_BYTES)}, sizes of 0 or more",
        )
    spec = TensorSpec(shape, dtype)
    if begin < 0 or end - begin != spec.num_bytes:
        raise _damaged(
            path,
            got=f"'{name}' takes bytes {begin} to {end}, {end - begin} in all",
            wanted=f"{spec.num_bytes} bytes for {dtype} {list(shape)}",
        )
    return Entry(spec, data_start + begin)


def _check_ranges(path: Path, entries: dict[str, Entry], data_start: int, file_size: int) -> None:
    """Data must follow without overlap, gaps beyond alignment, or a rest that nobody owns."""
    position, previous = data_start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[0])):
        gap = entry.start - position
        if entry.spec.num_bytes and not 0 <= gap <= _LARGEST_GAP:
            what = f"overlaps {previous} by {-gap}" if gap < 0 else f"leaves {gap} unused before it"
            raise _damaged(path, got=f"'{name}' {what} bytes", wanted="tensors one after the other")
        position = max(position, entry.start + entry.spec.num_bytes)
        previous = f"'{name}'"
    if file_size < position:
        raise CheckpointError(
            f"{path} is truncated",
            got=f"{file_size} bytes ({format_bytes(file_size)})",
            wanted=f"{position} bytes ({format_bytes(position)}), by its own header",
            fix="download or copy the file again",
        )
    if file_size > position + _LARGEST_GAP:
        raise _damaged(
            path,
            got=f"{file_size - position} bytes behind the last tensor",
            wanted=f"{position} bytes in all",
        )


def _damaged(path: Path, *, got: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged", got=got, wanted=wanted, fix="download or copy the file again"
    )
