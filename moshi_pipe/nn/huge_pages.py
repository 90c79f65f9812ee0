"""Memory for what a processor reads from end to end at every step: weights, keys and values.

What it knows of where pages lie covers a few MB of 4 kB pages; beyond that it waits for page
tables, above all on a virtual machine (docs/log.md, 2026-11-29). Linux gives pages of 2 MB where it
is asked before the memory is touched, and neither torch nor the C library asks.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

_HUGE: Final = 2 << 20
_CHUNK: Final = 64 << 20  # memory that nobody touches is not taken
_COLLAPSE: Final = 25  # MADV_COLLAPSE, of Linux 6.1; Python has no name for it
_ENTRY: Final = 8  # bytes about a page in /proc/self/pagemap; its last bit: it is in memory
_PRESENT: Final = 63
_FULL: Final = 0.875  # of a huge page; the rest is filled, which takes memory
_ALIGN: Final = 64  # a cache line, and the widest vector


class HugePages:
    """Hands out memory for tensors, packed into pages of 2 MB where the system has such.

    A chunk of memory is freed with the last tensor in it: what is replaced later should not come
    from here.

    Args:
        chunk: Bytes that are asked for at once, or as many as a tensor needs.
    """

    def __init__(self, chunk: int = _CHUNK) -> None:
        self._size = chunk
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
        length = max(num_bytes, self._size)
        self._chunk = _map(length + _HUGE)
        address = torch.frombuffer(self._chunk, dtype=torch.uint8).data_ptr()
        self._next = -address % _HUGE
        self._end = self._next + length


@contextmanager
def gathered() -> Iterator[None]:
    """Move memory that is taken within into huge pages, where the system can be asked to.

    For weights that a library packs into memory that it takes itself. What was there before, and
    what fills no page of 2 MB, stay as they are.
    """
    before = _full_pages()
    yield
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for page in sorted(_full_pages() - before):
            advise(page, _HUGE, _COLLAPSE)  # a wish: a kernel may be too old or memory too short


def _full_pages() -> set[int]:
    """Huge pages' worths of private memory that are held; none where the system does not say."""
    full: set[int] = set()
    with suppress(OSError), Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        for first, end in _own_memory():
            pagemap.seek(first // mmap.PAGESIZE * _ENTRY)
            entries = pagemap.read((end - first) // mmap.PAGESIZE * _ENTRY)
            present = np.frombuffer(entries, dtype=np.uint64) >> np.uint64(_PRESENT)
            held = present.reshape(-1, _HUGE // mmap.PAGESIZE).mean(axis=1) >= _FULL
            full.update((first + _HUGE * np.flatnonzero(held)).tolist())
    return full


def _own_memory() -> list[tuple[int, int]]:
    """Addresses of private memory without a file, in whole huge pages."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        place, rights, _, _, inode, *name = line.split()
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            first, end = (int(address, 16) for address in place.split("-"))
            first, end = -(-first // _HUGE) * _HUGE, end // _HUGE * _HUGE
            found += [(first, end)] if first < end else []
    return found


def _map(length: int) -> mmap.mmap:
    """Private memory of the system, zeroed; of huge pages when it is touched, if there are such."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, length)
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        with suppress(OSError):  # a wish: a kernel may be built without
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
