"""Tensors out of a weight file of any released format, as numbers or as they are packed.

Bytes are read into memory that the next tensor overwrites, and quantized matrices become numbers a
few rows at a time: reading takes some MB beside what is kept.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.formats.contents import AFFINE, INT8_ROWS, PLAIN, Contents, Rows, Stored
from moshi_pipe.nn.packing import Packed, split_blocks, unpack_codes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from torch import Tensor

    from moshi_pipe.nn.huge_pages import HugePages

TORCH_DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U32": torch.int32,  # the same bytes; torch knows little of unsigned ones
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""Types by the name that headers give them."""

CHUNK: Final = 1 << 20
"""Numbers that become float32 at once: 4 MB."""
_KEYS: Final = ("data", "scales", "biases")
_SMALL: Final = 4 * CHUNK  # bytes of the smallest buffer


class WeightReader:
    """Reads in-memory tensors from a file that was compared with its layout.

    Args:
        file: Open for reading, without a buffer.
        contents: What it holds.
        memory: Where tensors go that are read to stay on a CPU; None leaves it to torch.

    Attributes:
        path: The file, for messages.
        contents: What it holds.
    """

    def __init__(self, file: FileIO, contents: Contents, memory: HugePages | None = None) -> None:
        self._file = file
        self.contents = contents
        self._stored = contents.stored
        self.path = contents.header.path
        self._scratch: dict[str, Tensor] = {}
        self._pinned = False
        self._memory = memory
        self._largest = max((s.parts[0].spec.num_bytes for s in self._stored.values()), default=0)

    def names(self) -> list[str]:
        """In-memory names of all tensors, in the order of the file."""
        return list(self._stored)

    def stored(self, name: str) -> Stored:
        """How a tensor is stored."""
        return self._stored[name]

    def read(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Read one tensor as ``dtype`` on ``device``; straight into place where nothing changes.

        Raises:
            CheckpointError: The file became shorter, or copies of the tensor differ.
        """
        device = torch.device(device)
        self._pinned = device.type == "cuda"  # or the driver copies it once more
        stored = self._stored[name]
        self.refuse_different_copies(name)
        if stored.encoding == PLAIN:
            own = TORCH_DTYPES[stored.dtype]
            if own == dtype and device.type == "cpu":
                empty = self._empty(stored.shape, dtype, device)
                return fill(self._file, stored.parts[0].start, empty)
            raw = self._raw(stored.parts[0]).view(stored.shape)
            # Narrow types cross to a GPU before they widen; on a CPU this is the one copy.
            if device.type != "cpu":
                return raw.to(device).to(dtype)
            return self._empty(stored.shape, dtype, device).copy_(raw)
        whole = self._empty(stored.shape, dtype, device)
        for first, last in self.chunks(name):
            whole[first:last] = self.rows(name, first, last, device)
        return whole

    def read_stored(self, name: str) -> Tensor:
        """Read one tensor in the file's float type, float32 where it is quantized.

        Plain numbers hold until the next tensor is read.
        """
        stored = self._stored[name]
        if stored.encoding != PLAIN:
            return self.read(name, torch.float32)
        self.refuse_different_copies(name)
        return self._raw(stored.parts[0]).view(stored.shape)

    def read_int8(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Codes and the absmax of every row, of int8 rows; None where it is stored otherwise.

        The codes hold until the next tensor is read.
        """
        stored = self._stored[name]
        if stored.encoding != INT8_ROWS:
            return None
        self.refuse_different_copies(name)
        absmax_O = self._raw(stored.parts[1], key="scales").clone()
        return self._raw(stored.parts[0]), absmax_O

    def packed(self, name: str) -> Packed | None:
        """A whole matrix without loss, in memory of its own; None where its numbers are plain."""
        stored = self._stored[name]
        if stored.encoding == PLAIN:
            return None
        self.refuse_different_copies(name)
        return self.packed_rows(name, 0, stored.shape[0])

    def packed_rows(self, name: str, first: int, last: int) -> Packed:
        """Some rows of a quantized matrix without loss."""
        stored = self._stored[name]
        codes = self._raw(stored.parts[0], first, last)
        if stored.encoding == INT8_ROWS:
            absmax_O = self._raw(stored.parts[1], first, last, key="scales")
            # int8 = round(127 w / absmax of the row)
            return Packed(codes.clone(), (absmax_O / 127)[:, None], None, 8, stored.shape[1])
        if stored.encoding == AFFINE:
            scales = self._raw(stored.parts[1], first, last, key="scales").clone()
            biases = self._raw(stored.parts[2], first, last, key="biases").clone()
            unpacked = unpack_codes(codes, stored.bits)
            unpacked = unpacked.clone() if stored.bits == 8 else unpacked
            return Packed(unpacked, scales, biases, stored.bits, stored.group)
        return Packed(*split_blocks(codes), None, stored.bits, stored.group)

    def chunks(self, name: str) -> Iterator[tuple[int, int]]:
        """First and last row of pieces of a tensor that become float32 at once."""
        shape = self._stored[name].shape
        rows = self._stored[name].parts[0].num_rows
        width = max(1, torch.Size(shape).numel() // max(rows, 1))
        step = max(1, CHUNK // width)
        for first in range(0, rows, step):
            yield first, min(first + step, rows)

    def rows(self, name: str, first: int, last: int, device: torch.device | str = "cpu") -> Tensor:
        """Some rows of a tensor as numbers, plain ones in the file's type until the next read."""
        stored = self._stored[name]
        if stored.encoding == PLAIN:
            rows = self._raw(stored.parts[0], first, last).to(device)
            return rows.view(last - first, *stored.shape[1:]) if stored.shape else rows.view(())
        packed = self.packed_rows(name, first, last)
        if torch.device(device).type == "cpu":
            return packed.numbers()
        biases = None if packed.biases is None else packed.biases.to(device)
        there = (packed.codes.to(device), packed.scales.to(device), biases)
        return Packed(*there, packed.bits, packed.group).numbers()

    def bytes_of(self, name: str, first: int, last: int) -> list[Tensor]:
        """Some rows of a tensor's arrays as they lie in the file, until the next read."""
        return [
            self._bytes(
                part.start + first * part.row_bytes, (last - first) * part.row_bytes, key=key
            )
            for part, key in zip(self._stored[name].parts, _KEYS, strict=False)
        ]

    def refuse_different_copies(self, name: str) -> None:
        """Copies of a tensor that slices share must be equal: only one is kept.

        Raises:
            CheckpointError: They differ.
        """
        stored = self._stored[name]
        for copy in stored.copies:
            for ours, other in zip(stored.parts, copy, strict=True):
                self._refuse_different(ours, other)

    def _refuse_different(self, ours: Rows, other: Rows) -> None:
        for first in range(0, ours.spec.num_bytes, CHUNK):
            count = min(CHUNK, ours.spec.num_bytes - first)
            one = self._bytes(ours.start + first, count)
            two = self._bytes(other.start + first, count, key="copy")
            if not torch.equal(one, two):
                raise CheckpointError(
                    f"{self.path} does not hold the model that its config describes",
                    got=f"'{other.name}' differs from '{ours.name}'",
                    wanted="equal copies of a weight that codebooks share",
                    fix="check depformer_weights_per_step_schedule in config.json",
                )

    def _empty(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if self._memory is None or device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        return self._memory.zeros(shape, dtype)

    def _raw(
        self, part: Rows, first: int = 0, last: int | None = None, *, key: str = "data"
    ) -> Tensor:
        """Rows of one array in the file's type, until the next read; blocks as bytes."""
        last = part.num_rows if last is None else last
        place = part.start + first * part.row_bytes
        octets = self._bytes(place, (last - first) * part.row_bytes, key=key)
        if part.spec.dtype not in TORCH_DTYPES:
            return octets.view(last - first, part.row_bytes)
        typed = octets.view(TORCH_DTYPES[part.spec.dtype])
        return typed.view(last - first, *part.spec.shape[1:]) if part.spec.shape else typed

    def _bytes(self, start: int, count: int, *, key: str = "data") -> Tensor:
        """Read bytes into memory that the next ones of this key overwrite.

        A buffer per tensor would be freed between tensors that stay, and the C library keeps such
        holes: up to half of a model was seen.
        """
        known = self._scratch.get(key)
        if known is None or len(known) < count:
            # Tensors come in any order: room for the largest is made once, when it is needed.
            grow = self._largest if key == "data" and count > _SMALL else _SMALL
            known = self._scratch[key] = torch.empty(
                max(count, grow), dtype=torch.uint8, pin_memory=self._pinned
            )
        return fill(self._file, start, known[:count])


@contextmanager
def reading(path: Path) -> Iterator[FileIO]:
    """Open a weight file.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise CheckpointError(
            f"cannot read the weights in {path}", got=error.strerror or str(error)
        ) from error


def fill(file: FileIO, start: int, tensor: Tensor) -> Tensor:
    """Read bytes of the file into the memory of a tensor, without a copy between."""
    if tensor.numel() == 0:
        return tensor
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    rest = memoryview(array)
    file.seek(start)
    while rest:
        count = file.readinto(rest)  # at most 2 GiB at once
        if not count:
            raise CheckpointError(
                f"cannot read the weights in {file.name}",
                got="the file became shorter while it was read",
                fix="download or copy the file again",
            )
        rest = rest[count:]
    return tensor
