"""Source ``file``: one session per recording."""

from __future__ import annotations

import asyncio
import json
import threading
import wave
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from support.audio import babble, write_babble

from moshi_pipe.engine.framing import Reframer
from moshi_pipe.errors import InputError
from moshi_pipe.nodes import file_source
from moshi_pipe.nodes.file_source import FileSource
from moshi_pipe.nodes.options import FileSourceOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from moshi_pipe.graph.node import SessionInput

RATE = 24_000


def inputs(path: Path | str, **options: Any) -> list[SessionInput]:
    async def collect() -> list[SessionInput]:
        source = FileSource(FileSourceOptions(path=str(path), **options))
        found = [item async for item in source.sessions()]
        assert source.num_sessions() == len(found)
        return found

    return asyncio.run(collect())


def read(item: SessionInput) -> npt.NDArray[np.float32]:
    async def collect() -> list[npt.NDArray[np.float32]]:
        async with aclosing(item.chunks()) as stream:  # type: ignore[type-var]
            return [piece async for piece in stream]

    return np.concatenate(asyncio.run(collect()), axis=1)


def manifest(folder: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "list.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder / "list.jsonl"


def test_a_file_is_one_session_named_by_its_stem(tmp_path: Path) -> None:
    path = write_babble(tmp_path / "monday" / "talk.wav", 2.0)
    (item,) = inputs(path)
    assert item.id == "talk"
    assert item.meta == {
        "stem": "talk",
        "path": str(path),
        "name": "talk.wav",
        "parent": "monday",
        "index": 0,
        "start_s": 0.0,
        "duration_s": None,
        "channel": None,
    }
    assert (item.sample_rate, item.num_samples, item.seed) == (RATE, 2 * RATE, None)
    np.testing.assert_allclose(read(item)[0], babble(2.0), atol=1e-4)
    assert item.warnings == []


def test_a_folder_gives_its_files_in_natural_order_under_different_names(tmp_path: Path) -> None:
    for name in ("t10.wav", "t9.wav", "t9.flac", "b/t10.wav"):
        write_babble(tmp_path / name, 0.1)
    assert [item.id for item in inputs(tmp_path)] == ["t9-flac", "t9-wav", "t10"]
    names = [item.id for item in inputs(tmp_path, recursive=True)]
    assert names == ["b-t10", "t9-flac", "t9-wav", f"{tmp_path.name}-t10"]


def test_a_session_may_be_read_twice(tmp_path: Path) -> None:
    (item,) = inputs(write_babble(tmp_path / "talk.wav", 1.3))
    np.testing.assert_array_equal(read(item), read(item))


@pytest.mark.parametrize("channel", [None, 0, 1])
def test_one_channel_can_be_chosen(tmp_path: Path, channel: int | None) -> None:
    both = np.stack([babble(1.0, seed=1), babble(1.0, seed=2)])
    soundfile.write(tmp_path / "talk.wav", both.T, RATE)
    (item,) = inputs(tmp_path / "talk.wav", channel=channel)
    wanted = both if channel is None else both[channel : channel + 1]
    np.testing.assert_allclose(read(item), wanted, atol=1e-4)


def test_a_channel_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (item,) = inputs(write_babble(tmp_path / "talk.wav", 0.1), channel=1)
    with pytest.raises(InputError) as caught:
        read(item)
    assert str(caught.value) == (
        f"{tmp_path / 'talk.wav'} has no channel 1\n"
        "  got:    1 channel\n"
        "  wanted: 0 to 0\n"
        "  do:     set source.channel=null to mix all of them"
    )


def test_a_file_that_cannot_be_read_fails_when_it_is_its_turn(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no audio")
    write_babble(tmp_path / "b.wav", 0.1)
    bad, good = inputs(tmp_path)
    with pytest.raises(InputError, match="cannot read"):
        _ = bad.sample_rate
    with pytest.raises(InputError, match="cannot read"):
        read(bad)
    assert read(good).shape == (1, RATE // 10)


def test_a_file_that_was_cut_off_is_read_with_a_warning_each_time(tmp_path: Path) -> None:
    path = write_babble(tmp_path / "talk.wav", 2.0)
    path.write_bytes(path.read_bytes()[: RATE * 2])
    (item,) = inputs(path)
    for _ in range(2):
        assert read(item).shape[1] == pytest.approx(RATE, abs=100)
        assert item.warnings == [f"{path} is cut off: only the first 1.0 s of 2.0 s were read"]


def test_values_that_are_no_numbers_are_refused_at_the_edge(tmp_path: Path) -> None:
    pcm = babble(1.0)
    pcm[5000] = np.inf
    soundfile.write(tmp_path / "talk.wav", pcm, RATE, "FLOAT")
    (item,) = inputs(tmp_path / "talk.wav")
    reframer = Reframer(RATE, RATE, 1920)
    with pytest.raises(InputError, match="NaN or infinite"):
        list(reframer.push(read(item)))


def test_a_manifest_lists_recordings_in_its_own_order(tmp_path: Path) -> None:
    write_babble(tmp_path / "b.wav", 2.0)
    write_babble(tmp_path / "sub" / "a.wav", 1.0)
    soundfile.write(
        tmp_path / "two.wav", np.stack([babble(1.0, seed=1), babble(1.0, seed=2)], axis=1), RATE
    )
    path = manifest(
        tmp_path,
        {"path": "b.wav", "seed": 7},
        "",
        {"path": "sub/a.wav", "id": "an/other"},
        {"path": str(tmp_path / "b.wav"), "id": 0, "start_s": 0.5, "duration_s": 1.25},
        {"path": "two.wav", "channel": 1, "seed": None},
        {"path": "b.wav", "id": "with\u2028a strange blank", "start_s": 1},
    )
    first, second, third, fourth, fifth = inputs(path)
    assert [item.seed for item in (first, second, fourth)] == [7, None, None]
    assert [item.id for item in (second, third)] == ["an-other", "0"]
    assert fourth.id == "two"
    assert read(second).shape == (1, RATE)
    assert third.num_samples == round(1.25 * RATE)
    np.testing.assert_allclose(read(third)[0], babble(2.0)[RATE // 2 :][: 5 * RATE // 4], atol=1e-4)
    np.testing.assert_allclose(read(fourth)[0], babble(1.0, seed=2), atol=1e-4)
    assert read(fifth).shape == (1, RATE)


def test_the_order_of_a_manifest_changes_no_name(tmp_path: Path) -> None:
    for name in ("1/x/a.wav", "2/x/a.wav", "b.wav"):
        write_babble(tmp_path / name, 0.1)
    lines = [{"path": name} for name in ("1/x/a.wav", "2/x/a.wav", "b.wav")]
    names = {str(item.meta["path"]): item.id for item in inputs(manifest(tmp_path, *lines))}
    turned = {str(item.meta["path"]): item.id for item in inputs(manifest(tmp_path, *lines[::-1]))}
    assert names == turned
    assert sorted(names.values()) == ["1-x-a", "2-x-a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{path: a.wav}", "line 2 of the manifest {path} is no JSON"),
        ("[]", "line 2 of the manifest {path} has no path"),
        ('{"id": "a"}', "line 2 of the manifest {path} has no path"),
        ('{"path": 3}', "line 2 of the manifest {path} has no path"),
        ('{"path": "a.wav", "strat_s": 3}', "has an unknown key 'strat_s'"),
        ('{"path": "a.wav", "start_s": "3"}', "has a wrong start_s"),
        ('{"path": "a.wav", "start_s": -1}', "has a wrong start_s"),
        ('{"path": "a.wav", "duration_s": NaN}', "has a wrong duration_s"),
        ('{"path": "a.wav", "duration_s": Infinity}', "has a wrong duration_s"),
        ('{"path": "a.wav", "seed": 1.5}', "has a wrong seed"),
        ('{"path": "a.wav", "seed": true}', "has a wrong seed"),
        ('{"path": "a.wav", "channel": -1}', "has a wrong channel"),
    ],
)
def test_a_wrong_line_of_a_manifest_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = manifest(tmp_path, {"path": "a.wav"}, line)
    with pytest.raises(InputError) as caught:
        inputs(path)
    assert message.replace("{path}", str(path)) in caught.value.what
    assert caught.value.what.startswith(f"line 2 of the manifest {path} ")


def test_an_unknown_key_of_a_manifest_gives_the_closest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'start_s'"):
        inputs(manifest(tmp_path, {"path": "a.wav", "strat_s": 3}))


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        inputs(manifest(tmp_path, "", "  "))


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read the manifest"):
        inputs(tmp_path / "list.jsonl")


def test_two_recordings_cannot_share_an_id(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"path": "a.wav", "id": "x"}, {"path": "b.wav", "id": "x"})
    with pytest.raises(InputError) as caught:
        inputs(path)
    assert caught.value.got == f"{tmp_path / 'a.wav'} and {tmp_path / 'b.wav'}"


@pytest.mark.parametrize("part", [{"start_s": 5}, {"duration_s": 0}])
def test_a_part_without_audio_is_refused(tmp_path: Path, part: dict[str, float]) -> None:
    write_babble(tmp_path / "a.wav", 1.0)
    (item,) = inputs(manifest(tmp_path, {"path": "a.wav", **part}))
    assert item.num_samples == 0
    with pytest.raises(InputError, match=r"a\.wav has no audio from \d s on"):
        read(item)


def test_a_part_that_ends_early_does_not_hide_that_the_file_is_short(tmp_path: Path) -> None:
    path = write_babble(tmp_path / "a.wav", 2.0)
    path.write_bytes(path.read_bytes()[: RATE * 2])
    early, late = inputs(
        manifest(
            tmp_path,
            {"path": "a.wav", "id": "early", "duration_s": 0.5},
            {"path": "a.wav", "id": "late", "start_s": 0.5, "duration_s": 1.5},
        )
    )
    assert read(early).shape == (1, RATE // 2)
    assert read(late).shape[1] == pytest.approx(RATE // 2, abs=100)
    assert list(early.warnings) == []
    assert len(late.warnings) == 1


def test_a_session_may_be_closed_after_any_piece(tmp_path: Path) -> None:
    (item,) = inputs(write_babble(tmp_path / "talk.wav", 3.0))

    async def first_piece() -> npt.NDArray[np.float32]:
        async with aclosing(item.chunks()) as stream:  # type: ignore[type-var]
            return await anext(aiter(stream))

    assert asyncio.run(first_piece()).shape == (1, RATE // 2)


def test_a_session_may_be_cancelled_while_a_piece_is_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = inputs(write_babble(tmp_path / "talk.wav", 3.0))
    reading, go_on = threading.Event(), threading.Event()
    closed = []

    def slow(*_: Any) -> Iterator[npt.NDArray[np.float32]]:
        try:
            reading.set()
            go_on.wait(10)
            yield np.zeros((1, 100), dtype=np.float32)
        finally:
            closed.append(True)

    monkeypatch.setattr(file_source, "read", slow)

    async def cancel() -> None:
        async def consume() -> None:
            async with aclosing(item.chunks()) as stream:  # type: ignore[type-var]
                async for _ in stream:
                    pass

        task = asyncio.create_task(consume())
        await asyncio.to_thread(reading.wait, 10)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert closed == [True]


def test_an_hour_takes_no_more_memory_than_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 3600 * RATE, "NONE", ""))
        file.writeframesraw(b"")
        file.writeframesraw(bytes(2))
    with path.open("r+b") as raw:  # a sparse file: its zeros take no room on the disk
        raw.seek(40)
        raw.write((3600 * RATE * 2).to_bytes(4, "little"))
        raw.truncate(44 + 3600 * RATE * 2)
    (item,) = inputs(path)

    async def run() -> tuple[int, list[int]]:
        frames, memory = 0, []
        reframer = Reframer(RATE, RATE, 1920)
        async with aclosing(item.chunks()) as stream:  # type: ignore[type-var]
            async for piece in stream:
                frames += sum(1 for _ in reframer.push(piece))
                if frames % (60 * RATE // 1920) < 7:
                    memory.append(resident_bytes())
        return frames, memory

    frames, memory = asyncio.run(run())
    assert frames == 3600 * RATE // 1920
    assert len(memory) > 50
    assert max(memory) - memory[0] < 20e6


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
