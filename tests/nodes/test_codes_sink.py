"""Sink ``codes``: columns of codes in a safetensors file."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from support.disk import kill_after_ready, small_disk
from support.nodes import AUDIO, session_info

from moshi_pipe.errors import ConfigError, OutputError
from moshi_pipe.graph.format import Codes, Text
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.codes_sink import CodesSink
from moshi_pipe.nodes.options import CodesSinkOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from moshi_pipe.graph.node import SessionInfo

RATE = Fraction(25, 2)
CODES = Codes(num_codebooks=3, cardinality=2048, frame_rate=RATE)


def session(folder: Path, **formats: Any) -> SessionInfo:
    formats = formats or {"codes": CODES, "text": Text(300, RATE)}
    return replace(session_info("talk", folder, formats), seed=7)


def column(frame: int, output: str = "codes") -> Packet:
    payload = np.array([frame, 2047 - frame, 5], dtype=np.int64)
    return Packet(output, frame, frame * 80_000_000, payload)


def token(frame: int, value: int) -> Packet:
    return Packet("text", frame, frame * 80_000_000, value)


def run(
    info: SessionInfo, packets: list[Packet], num_frames: int, **options: Any
) -> Mapping[str, Any]:
    async def write() -> Mapping[str, Any]:
        sink = CodesSink(CodesSinkOptions(**options))
        await sink.open(info)
        for packet in packets:
            await sink.write(packet)
        return await sink.close(SessionEnd(num_frames, complete=True))

    return asyncio.run(write())


def test_every_frame_has_a_column_and_missing_ones_are_marked(tmp_path: Path) -> None:
    packets = [token(0, 3), column(1), token(1, 12), column(2), token(2, 0), column(5)]
    report = run(session(tmp_path), packets, 8)
    assert report == {"sink": "codes", "files": [str(tmp_path / "talk.safetensors")], "frames": 8}
    tensors = load_file(tmp_path / "talk.safetensors")
    assert tensors["codes"].dtype == np.int16
    assert tensors["codes"].tolist() == [
        [0, 1, 2, 0, 0, 5, 0, 0],
        [0, 2046, 2045, 0, 0, 2042, 0, 0],
        [0, 5, 5, 0, 0, 5, 0, 0],
    ]
    assert tensors["valid"].tolist() == [i in (1, 2, 5) for i in range(8)]
    assert tensors["text"].dtype == np.int32
    assert tensors["text"].tolist() == [3, 12, 0, -1, -1, -1, -1, -1]
    with safe_open(tmp_path / "talk.safetensors", framework="numpy") as file:
        assert file.metadata() == {"frame_rate": "12.5", "cardinality": "2048", "seed": "7"}
    assert list(tmp_path.iterdir()) == [tmp_path / "talk.safetensors"]


def test_text_is_left_out_where_there_is_none_or_it_is_not_wanted(tmp_path: Path) -> None:
    run(session(tmp_path, codes=CODES), [column(0)], 1)
    assert "text" not in load_file(tmp_path / "talk.safetensors")
    run(session(tmp_path), [column(0)], 1, text=False)
    assert "text" not in load_file(tmp_path / "talk.safetensors")
    assert list(CodesSink(CodesSinkOptions(text=False)).optional) == []


def test_large_codebooks_take_larger_numbers(tmp_path: Path) -> None:
    packet = Packet("codes", 0, 0, np.array([40_000, 1, 2]))
    run(session(tmp_path, codes=replace(CODES, cardinality=65_536)), [packet], 1)
    codes = load_file(tmp_path / "talk.safetensors")["codes"]
    assert codes.dtype == np.int32
    assert codes[0, 0] == 40_000


def test_what_the_user_said_can_be_written(tmp_path: Path) -> None:
    info = session(tmp_path, user_codes=CODES)
    run(info, [column(0, "user_codes")], 1, output="user_codes")
    assert load_file(tmp_path / "talk.safetensors")["valid"].all()


def test_a_session_without_frames_is_an_empty_table(tmp_path: Path) -> None:
    run(session(tmp_path), [], 0)
    assert load_file(tmp_path / "talk.safetensors")["codes"].shape == (3, 0)


def test_options_and_graphs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sink\.codes\.output has no such value"):
        CodesSink(CodesSinkOptions(output="user"))
    with pytest.raises(ConfigError, match="sink=codes needs the output 'codes'"):
        run(session(tmp_path, audio=AUDIO), [], 1)


def test_a_session_that_failed_before_its_first_frame_leaves_nothing(tmp_path: Path) -> None:
    async def fail() -> Mapping[str, Any]:
        sink = CodesSink(CodesSinkOptions())
        await sink.open(session(tmp_path))
        return await sink.close(SessionEnd(0, complete=False))

    assert asyncio.run(fail())["files"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_never_opened_closes_quietly() -> None:
    assert asyncio.run(CodesSink(CodesSinkOptions()).close(SessionEnd(3, complete=False))) == {}


def test_a_place_that_cannot_be_written_is_named_when_the_session_begins(tmp_path: Path) -> None:
    (tmp_path / "talk.safetensors.part").mkdir()

    async def start() -> None:
        await CodesSink(CodesSinkOptions()).open(session(tmp_path))

    with pytest.raises(OutputError, match=r"cannot write .*talk\.safetensors\n"):
        asyncio.run(start())


def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    code = """
import asyncio, sys, time
from fractions import Fraction
from pathlib import Path
import numpy as np
from moshi_pipe.graph.format import Codes
from moshi_pipe.graph.node import SessionInfo
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.codes_sink import CodesSink
from moshi_pipe.nodes.options import CodesSinkOptions

async def run():
    sink = CodesSink(CodesSinkOptions())
    formats = {"codes": Codes(3, 2048, Fraction(25, 2))}
    await sink.open(SessionInfo("talk", {"stem": "talk"}, Path(sys.argv[1]), formats, 0.08, 0))
    for frame in range(50):
        await sink.write(Packet("codes", frame, 0, np.zeros(3, dtype=np.int64)))
    print("ready", flush=True)
    time.sleep(60)

asyncio.run(run())
"""
    kill_after_ready(code, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8k") as disk:
        run(session(disk), [column(0)], 1)
        before = (disk / "talk.safetensors").read_bytes()
        with pytest.raises(OutputError) as caught:
            run(session(disk), [column(i) for i in range(2000)], 2000)
        assert caught.value.what == f"cannot write {disk / 'talk.safetensors'}"
        assert str(caught.value.got).startswith("No space left on device")
        assert [path.read_bytes() for path in disk.iterdir()] == [before]


def test_an_hour_takes_less_than_a_megabyte(tmp_path: Path) -> None:
    sink = CodesSink(CodesSinkOptions())
    asyncio.run(sink.open(session(tmp_path)))
    asyncio.run(sink.write(column(0)))
    asyncio.run(sink.close(SessionEnd(45_000, complete=True)))
    assert (tmp_path / "talk.safetensors").stat().st_size < 1e6
