"""Memory for weights is memory like any other."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path

import pytest
import torch

from moshi_pipe.nn.huge_pages import HugePages, _full_pages, gathered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8])
def test_tensors_hold_what_was_put(dtype: torch.dtype) -> None:
    memory = HugePages()
    shapes = [(3, 5), (), (0, 4), (1 << 25,), (7,), (1 << 20, 3), (2, 3, 4)]
    given = [torch.randint(0, 100, shape).to(dtype) for shape in shapes]

    kept = [memory.keep(tensor) for tensor in given]
    del memory
    gc.collect()

    for wanted, got in zip(given, kept, strict=True):
        assert torch.equal(got, wanted)
        assert got.is_contiguous()
        assert got.data_ptr() % 64 == 0
        assert got.numel() == 0 or got.untyped_storage().nbytes() == got.nbytes  # saved alone


def test_a_view_becomes_contiguous() -> None:
    wide = torch.arange(12.0).view(3, 4)

    assert torch.equal(HugePages().keep(wide.t()), wide.t())
    assert HugePages().keep(wide.t()).is_contiguous()


def test_another_device_keeps_its_memory() -> None:
    there = torch.zeros(3, device="meta")

    assert HugePages().keep(there) is there


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="asks Linux")
def test_gathering_moves_what_was_taken_within_and_changes_no_number() -> None:
    before = torch.ones(1 << 24)  # 64 MB
    with gathered():
        held = torch.arange(1 << 24, dtype=torch.float32)
        old = _full_pages()

    assert torch.equal(held, torch.arange(1 << 24, dtype=torch.float32))
    middle = (held.data_ptr() + (32 << 20)) // (2 << 20) * (2 << 20)
    assert middle in old
    assert bool((before == 1).all())


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="asks Linux")
def test_memory_that_is_hardly_used_is_left_alone() -> None:
    sparse = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with gathered():
        for start in range(0, len(sparse), 2 << 20):
            sparse[start] = 1
        taken = _resident()

    assert _resident() < taken + (16 << 20)


def test_a_system_that_says_nothing_about_memory_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object, **words: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "open", refuse)
    with gathered():
        held = torch.ones(8)

    assert held.sum() == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_process_has_memory_of_its_own() -> None:
    held = HugePages().keep(torch.ones(1024))
    child = os.fork()
    if child == 0:
        held.fill_(7.0)
        os._exit(0)
    os.waitpid(child, 0)

    assert bool((held == 1).all())


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * mmap.PAGESIZE
