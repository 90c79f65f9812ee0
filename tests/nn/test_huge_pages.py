"""Memory for weights is memory like any other."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from moshi_pipe.nn.huge_pages import HugePages, _own_memory, gather


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


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux")
def test_gathering_changes_no_number() -> None:
    held = torch.arange(1 << 24, dtype=torch.float32)  # 64 MB, which torch asks for by itself

    gather()

    assert torch.equal(held, torch.arange(1 << 24, dtype=torch.float32))
    assert any(first <= held.data_ptr() + (32 << 20) < end for first, end in _own_memory())
