"""Memory for what a processor reads from end to end at every step: weights, keys and values.

What it knows of where pages lie covers a few MB of 4 kB pages; beyond that it waits for page
tables, above all on a virtual machine (docs/log.md, 2026-11-29). Linux gives pages of 2 MB where it
is asked before the memory is touched, and neither torch nor the C library asks.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_HUGE: Final = 2 << 20
_CHUNK: Final = 64 << 20  # memory that nobody touches is not taken
_COLLAPSE: Final = 25  # MADV_COLLAPSE, of Linux 6.1; Python has no name for it
_LARGE: Final = 16 << 20
_ALIGN: Final = 64  # a cache line, and the widest vector


class HugePages:
    """Hands out memory for tensors, packed into pages of 2 MB where the system has such.

    A chunk of memory is freed with the last tensor in it: what is replaced later should not come
    from here.
    """

    def __init__(self) -> None:
        self._chunk = _map(mmap.PAGESIZE)
        self._next = self._end = 0  # offsets in the chunk

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Make a contiguous tensor of zeros on the CPU; the system has zeroed the memory."""
        count = torch.Size(shape).numel()
        num_bytes = -(-count * dtype.itemsize // _ALIGN) * _ALIGN
        if count == 0:
            return torch.zeros(shape, dtype=dtype)
        if num_bytes > self._end - self._next:
            self._grow(num_bytes)
        start, self._next = self._next, self._next + num_bytes
        return torch.frombuffer(self._chunk, dtype=dtype, count=count, offset=start).view(shape)

    def keep(self, tensor: Tensor) -> Tensor:
        """Copy a tensor here; one on another device is given back as it is."""
        if tensor.device.type != "cpu":
            return tensor
        return self.zeros(tensor.shape, tensor.dtype).copy_(tensor)

    def _grow(self, num_bytes: int) -> None:
        length = max(num_bytes, _CHUNK)
        self._chunk = _map(length + _HUGE)
        address = torch.frombuffer(self._chunk, dtype=torch.uint8).data_ptr()
        self._next = -address % _HUGE
        self._end = self._next + length


def gather() -> None:
    """Move large memory of this process into huge pages, where that can be asked.

    For weights that a library packed into memory that it took itself. Stacks of threads are
    smaller than what is moved.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for first, end in _own_memory():
        advise(first, end - first, mmap.MADV_HUGEPAGE)
        for page in range(first, end, _HUGE):
            advise(page, _HUGE, _COLLAPSE)  # refused where nothing is held: that is fine


def _own_memory() -> list[tuple[int, int]]:
    """Addresses of large private memory without a file, in whole huge pages."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        place, rights, _, _, inode, *name = line.split()
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            first, end = (int(address, 16) for address in place.split("-"))
            first, end = -(-first // _HUGE) * _HUGE, end // _HUGE * _HUGE
            found += [(first, end)] if end - first >= _LARGE else []
    return found


def _map(length: int) -> mmap.mmap:
    """Memory of the system, zeroed; of huge pages when it is touched, if there are such."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return mmap.mmap(-1, length)
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a wish: a kernel may be built without
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
