"""A GGUF header is read and checked before any tensor is."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.formats.gguf_header import read_gguf_header
from moshi_pipe.models.layout import TensorSpec
from moshi_pipe.models.weight_check import read_any_header

if TYPE_CHECKING:
    from pathlib import Path


def text(value: str, size: str = "Q") -> bytes:
    return struct.pack(f"<{size}", len(value)) + value.encode()


def gguf(
    tensors: list[tuple[str, tuple[int, ...], int, int]],
    *,
    metadata: bytes = b"",
    num_metadata: int = 0,
    version: int = 3,
    data: int = 4096,
) -> bytes:
    """A file: tensors are name, sizes innermost first, type, offset."""
    size = "I" if version == 1 else "Q"
    parts = [b"GGUF", struct.pack(f"<I{size}{size}", version, len(tensors), num_metadata), metadata]
    for name, shape, kind, offset in tensors:
        parts += [text(name, size), struct.pack("<I", len(shape))]
        parts += [struct.pack(f"<{size}", axis) for axis in shape]
        parts += [struct.pack("<IQ", kind, offset)]
    header = b"".join(parts)
    return header + bytes(-len(header) % 32) + bytes(data)


def written(tmp_path: Path, *args: Any, **options: Any) -> Path:
    path = tmp_path / "model"
    path.write_bytes(gguf(*args, **options))
    return path


@pytest.mark.parametrize("version", [1, 2, 3])
def test_shapes_types_and_places_are_read(tmp_path: Path, version: int) -> None:
    path = written(
        tmp_path,
        [("a.weight", (64, 3), 8, 0), ("b", (5, 1, 1), 0, 224), ("c", (2,), 30, 256)],
        version=version,
    )

    header = read_any_header(path)

    specs = {name: entry.spec for name, entry in header.entries.items()}
    assert specs == {
        "a.weight": TensorSpec((3, 64), "Q8_0"),
        "b": TensorSpec((1, 1, 5), "F32"),
        "c": TensorSpec((2,), "BF16"),
    }
    assert specs["a.weight"].num_bytes == 3 * 2 * 34
    starts = [entry.start for entry in header.entries.values()]
    assert [start - starts[0] for start in starts] == [0, 224, 256]
    assert starts[0] % 32 == 0


def test_metadata_of_every_kind_is_passed_over(tmp_path: Path) -> None:
    values = [
        text("general.alignment") + struct.pack("<II", 4, 64),
        text("name") + struct.pack("<I", 8) + text("x"),
        text("list") + struct.pack("<IIQ", 9, 8, 2) + text("p") + text("q"),
        text("nested") + struct.pack("<IIQIQBB", 9, 9, 1, 0, 2, 1, 2),
        text("number") + struct.pack("<Id", 12, 0.5),
        text("flag") + struct.pack("<I?", 7, True),
    ]
    metadata = b"".join(values)

    header = read_gguf_header(
        written(tmp_path, [("a", (4,), 0, 0)], metadata=metadata, num_metadata=len(values))
    )

    assert header.metadata["list"] == "['p', 'q']"
    assert header.entries["a"].start % 64 == 0


WRONG = [
    ([("a", (32, 4), 0, 0)], {"data": 100}, "is truncated"),
    ([("a", (256, 4), 12, 0)], {}, "1 of 1 tensors are Q4_K"),
    ([("a", (256, 4), 99, 0)], {}, "tensors are type 99"),
    ([("a", (33, 4), 8, 0)], {}, "whole blocks of 32"),
    ([("a", (4,), 0, 0), ("b", (4,), 0, 8)], {}, "'b' overlaps 'a' by 8 bytes"),
    ([("a", (4,), 0, 0), ("a", (4,), 0, 32)], {}, "two tensors of one name"),
    ([("a", (1,) * 9, 0, 0)], {}, "has 9 axes"),
    ([], {"version": 7}, "a GGUF version that is not read"),
    ([], {"num_metadata": 1, "data": 0}, "truncated or damaged"),
    (
        [],
        {"num_metadata": 1, "metadata": text("k") + struct.pack("<I", 77)},
        "unknown type 77",
    ),
    (
        [],
        {"num_metadata": 1, "metadata": text("general.alignment") + struct.pack("<II", 4, 0)},
        "an alignment of 0",
    ),
]


@pytest.mark.parametrize(("tensors", "options", "what"), WRONG, ids=lambda v: str(v)[:25])
def test_what_is_wrong_is_said(
    tmp_path: Path, tensors: list[Any], options: dict[str, Any], what: str
) -> None:
    with pytest.raises(CheckpointError, match=what):
        read_gguf_header(written(tmp_path, tensors, **options))


def test_every_truncation_of_a_header_is_an_error_of_ours(tmp_path: Path) -> None:
    whole = gguf([("a.weight", (64, 3), 8, 0)], data=204)
    path = tmp_path / "cut"
    for size in range(4, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            read_any_header(path)


def test_a_huge_count_is_refused_without_trying(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))

    with pytest.raises(CheckpointError, match="a count of"):
        read_gguf_header(path)
