"""Source ``codes``: files of codes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.nodes import session_info

from moshi_pipe.errors import InputError
from moshi_pipe.graph.format import Codes
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.codes_sink import CodesSink
from moshi_pipe.nodes.codes_source import CodesSource
from moshi_pipe.nodes.options import CodesSinkOptions, CodesSourceOptions

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from moshi_pipe.graph.node import SessionInput


def inputs(path: Path, *, recursive: bool = False) -> list[SessionInput]:
    async def collect() -> list[SessionInput]:
        source = CodesSource(CodesSourceOptions(path=str(path), recursive=recursive))
        found = [item async for item in source.sessions()]
        assert source.num_sessions() == len(found)
        return found

    return asyncio.run(collect())


def read(item: SessionInput) -> npt.NDArray[np.int64]:
    async def collect() -> list[npt.NDArray[np.int64]]:
        async with aclosing(item.chunks()) as stream:  # type: ignore[type-var]
            return [np.asarray(piece) async for piece in stream]

    return np.concatenate(asyncio.run(collect()), axis=1)


def test_what_the_sink_wrote_is_read_without_the_columns_that_are_missing(tmp_path: Path) -> None:
    columns = np.random.default_rng(0).integers(0, 2048, (1000, 8))
    info = session_info("talk", tmp_path, {"codes": Codes(8, 2048, Fraction(25, 2))})

    async def write() -> None:
        sink = CodesSink(CodesSinkOptions())
        await sink.open(replace(info, frame_s=0.08))
        for frame, column in enumerate(columns):
            if frame != 500:
                await sink.write(Packet("codes", frame, 0, column))
        await sink.close(SessionEnd(1003, complete=True))

    asyncio.run(write())
    (item,) = inputs(tmp_path / "talk.safetensors")
    assert item.id == "talk"
    codes_KT = read(item)
    assert codes_KT.dtype == np.int64
    np.testing.assert_array_equal(codes_KT, np.delete(columns, 500, axis=0).T)


def test_a_folder_gives_its_files_in_natural_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("c10", "c9", "sub/c1"):
        save_file({"codes": np.zeros((1, 1), dtype=np.int32)}, tmp_path / f"{name}.safetensors")
    assert [item.id for item in inputs(tmp_path)] == ["c9", "c10"]
    assert [item.id for item in inputs(tmp_path, recursive=True)] == ["c9", "c10", "c1"]
    assert inputs(tmp_path)[1].meta["index"] == 1


def test_any_file_with_codes_will_do(tmp_path: Path) -> None:
    save_file({"codes": np.arange(6, dtype=np.uint16).reshape(2, 3)}, tmp_path / "a.safetensors")
    (item,) = inputs(tmp_path)
    assert read(item).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("tensors", "got"),
    [
        ({"weight": np.zeros(3)}, "weight"),
        ({"codes": np.zeros((2, 3), dtype=np.float32)}, "codes of type float32 [2, 3]"),
        ({"codes": np.zeros(3, dtype=np.int64)}, "codes of type int64 [3]"),
        ({"codes": np.zeros((2, 0), dtype=np.int64)}, "no column that is valid"),
        (
            {"codes": np.zeros((2, 3), dtype=np.int64), "valid": np.zeros(3, dtype=np.bool_)},
            "no column that is valid",
        ),
        (
            {"codes": np.zeros((2, 3), dtype=np.int64), "valid": np.ones(2, dtype=np.bool_)},
            "valid of type bool [2]",
        ),
        (
            {"codes": np.zeros((2, 3), dtype=np.int64), "valid": np.ones(3, dtype=np.int8)},
            "valid of type int8 [3]",
        ),
    ],
)
def test_a_file_without_usable_codes_is_refused(
    tmp_path: Path, tensors: dict[str, npt.NDArray[np.int64]], got: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    (item,) = inputs(tmp_path)
    with pytest.raises(InputError) as caught:
        read(item)
    assert caught.value.what == f"{tmp_path / 'a.safetensors'} holds no codes that can be used"
    assert caught.value.got == got


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "gone"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"codes": np.zeros((8, 100), dtype=np.int16)}, path)
    (item,) = inputs(path)
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"empty": b"", "text": b"no codes\n", "cut": data[:-10]}[damage])
    with pytest.raises(InputError, match=rf"^cannot read {path}\n") as caught:
        read(item)
    assert caught.value.wanted == "a safetensors file with codes"
