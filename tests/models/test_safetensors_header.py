"""A weight file is refused with the reason before a byte of its data is read."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.layout import TensorSpec, header_bytes
from moshi_pipe.models.safetensors_header import read_header

if TYPE_CHECKING:
    from pathlib import Path


def with_header(path: Path, header: bytes | dict[str, Any], data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(
    begin: int, end: int, shape: tuple[int, ...] = (2,), dtype: str = "F32"
) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_reads_what_the_safetensors_library_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors: dict[str, Any] = {"b": np.zeros((2, 3), np.float32), "a": np.ones(5, np.int8)}
    save_file(tensors, path, metadata={"format": "pt"})

    header = read_header(path)

    assert header.entries["b"].spec == TensorSpec((2, 3), "F32")
    assert header.entries["a"].spec == TensorSpec((5,), "I8")
    assert header.metadata == {"format": "pt"}
    assert header.data_bytes == 29
    assert header.num_elements == 11


def test_writes_the_header_that_the_safetensors_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors: dict[str, Any] = {
        "b": np.zeros(3, np.float32),
        "z": np.zeros(2, np.float32),
        "a": np.ones(4, np.int8),
    }
    save_file(tensors, path)
    specs = {
        "a": TensorSpec((4,), "I8"),
        "b": TensorSpec((3,), "F32"),
        "z": TensorSpec((2,), "F32"),
    }

    written = header_bytes(specs)

    assert path.read_bytes()[: len(written)] == written


@pytest.mark.parametrize("length", [640, 640 + 128], ids=["like pickle 2", "like pickle 3"])
def test_a_header_whose_length_looks_like_another_format_is_read(
    tmp_path: Path, length: int
) -> None:
    text = json.dumps({"a": entry(0, 8)}).encode().ljust(length)
    path = with_header(tmp_path / "a.safetensors", text, bytes(8))

    assert list(read_header(path).entries) == ["a"]


def test_alignment_padding_between_tensors_is_fine(tmp_path: Path) -> None:
    path = with_header(
        tmp_path / "a.safetensors", {"a": entry(0, 8), "b": entry(64, 72)}, bytes(72)
    )

    assert len(read_header(path).entries) == 2


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_a_pickle_is_refused_with_the_reason_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"a": list(range(100))}))

    with pytest.raises(CheckpointError, match="a PyTorch pickle, which can run code") as caught:
        read_header(path)

    assert "save_file" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04" + bytes(40), "pickle"),
        (b"GGUF" + bytes(40), "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "a text file"),
        (b"hello, world, this is text", "begins with"),
        (b"abc", "begins with"),
    ],
    ids=["empty", "zip", "gguf", "lfs", "html", "text", "short"],
)
def test_other_formats_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=reason):
        read_header(path)


def test_a_truncated_file_says_how_long_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(1000, np.float32)}, path)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(CheckpointError, match="is truncated") as caught:
        read_header(path)

    assert caught.value.wanted is not None
    assert caught.value.wanted.startswith(f"{whole} bytes")


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"{" + b"x" * 20, b"", "not JSON"),
        ({"a": entry(0, 12)}, bytes(12), "8 bytes for F32"),
        ({"a": entry(0, 8, dtype="Q4")}, bytes(8), "type Q4"),
        ({"a": entry(0, 8, shape=(-2,))}, bytes(8), "shape \\[-2\\]"),
        ({"a": {"dtype": "F32"}}, b"", "dtype, shape and data_offsets"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "overlaps 'a' by 4 bytes"),
        ({"a": entry(0, 8), "b": entry(9000, 9008)}, bytes(9008), "unused before it"),
        ({"a": entry(0, 8)}, bytes(9000), "behind the last tensor"),
    ],
    ids=["json", "size", "dtype", "shape", "keys", "overlap", "gap", "rest"],
)
def test_a_header_that_does_not_fit_its_data_is_refused(
    tmp_path: Path, header: bytes | dict[str, Any], data: bytes, reason: str
) -> None:
    path = with_header(tmp_path / "a.safetensors", header, data)

    with pytest.raises(CheckpointError, match=reason):
        read_header(path)


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b"{}")

    with pytest.raises(CheckpointError, match="a header of 1000 bytes in a file of 10"):
        read_header(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        read_header(tmp_path / "nothing.safetensors")
