"""Sink ``file``: audio files aligned with time."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from support.audio import babble
from support.disk import kill_after_ready, run_as_nobody, small_disk
from support.nodes import session_info

from moshi_pipe.errors import ConfigError, OutputError
from moshi_pipe.graph.format import Audio, Text
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.file_sink import FileSink
from moshi_pipe.nodes.options import FileSinkOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from moshi_pipe.graph.format import Format
    from moshi_pipe.graph.node import SessionInfo

RATE, FRAME = 24_000, 1920
FORMATS = {"audio": Audio(RATE, FRAME), "user_audio": Audio(RATE, FRAME)}


def session(folder: Path) -> SessionInfo:
    return replace(session_info("talk", folder, FORMATS), frame_s=0.08, latency_ms=160.0)


def packet(frame: int, samples: npt.NDArray[np.floating], output: str = "audio") -> Packet:
    return Packet(output, frame, frame * 80_000_000, samples[None].astype(np.float32))


def run(
    folder: Path, packets: list[Packet], num_frames: int, complete: bool = True, **options: Any
) -> Mapping[str, Any]:
    async def write() -> Mapping[str, Any]:
        sink = FileSink(FileSinkOptions(**options))
        await sink.open(session(folder))
        try:
            for item in packets:
                await sink.write(item)
        except OutputError:
            with suppress(OutputError):
                await sink.close(SessionEnd(num_frames, complete=False))
            raise
        return await sink.close(SessionEnd(num_frames, complete=complete))

    return asyncio.run(write())


def frames_of(pcm: npt.NDArray[np.floating]) -> list[Packet]:
    return [packet(i, row) for i, row in enumerate(pcm.reshape(-1, FRAME))]


def test_each_frame_lies_in_its_place_to_the_sample(tmp_path: Path) -> None:
    pcm = np.round(babble(4.0) * 32_767) / 32_767
    report = run(tmp_path, frames_of(pcm), 50)
    back, rate = soundfile.read(tmp_path / "talk.wav", dtype="int16")
    assert rate == RATE
    np.testing.assert_array_equal(back, np.round(pcm * 32_767).astype(np.int16))
    assert report == {
        "sink": "file",
        "files": [str(tmp_path / "talk.wav")],
        "latency_ms": 160.0,
        "clipped_samples": 0,
    }


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_frames_that_did_not_come_are_silence_up_to_the_length(tmp_path: Path, kind: str) -> None:
    loud = np.full(FRAME, 0.5)
    run(tmp_path, [packet(2, loud), packet(5, loud), packet(6, -loud)], 40, format=kind)
    back, _ = soundfile.read(tmp_path / f"talk.{kind}", dtype="float32")
    assert back.size == 40 * FRAME
    wanted = np.zeros((40, FRAME))
    wanted[[2, 5]], wanted[6] = 0.5, -0.5
    middles = back.reshape(40, FRAME)[:, FRAME // 2 - 100 : FRAME // 2 + 100]
    tolerance = 0.3 if kind == "ogg" else 1e-4  # Vorbis rings at such edges
    np.testing.assert_allclose(middles.mean(axis=1), wanted[:, 0], atol=tolerance)
    if kind != "ogg":
        np.testing.assert_allclose(back, wanted.ravel(), atol=1e-4)


def test_a_session_without_sound_is_silence(tmp_path: Path) -> None:
    run(tmp_path, [], 10)
    back, _ = soundfile.read(tmp_path / "talk.wav")
    assert back.size == 10 * FRAME
    assert not back.any()


def test_samples_beyond_the_range_are_clipped_and_counted(tmp_path: Path) -> None:
    samples = np.zeros(FRAME)
    samples[:5] = [1.0, -1.0, 1.5, -3.0, 1.0001]
    assert run(tmp_path, [packet(0, samples)], 1)["clipped_samples"] == 3
    back, _ = soundfile.read(tmp_path / "talk.wav", dtype="int16")
    assert back[:6].tolist() == [32_767, -32_767, 32_767, -32_767, 32_767, 0]


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_stereo_has_the_model_left_and_the_user_right(tmp_path: Path, kind: str) -> None:
    model, user = babble(0.8, seed=1), babble(0.8, seed=2)
    packets = []
    for i in range(10):
        part = slice(i * FRAME, (i + 1) * FRAME)
        packets.append(packet(i, user[part], "user_audio"))
        if i != 4:
            packets.append(packet(i, model[part]))
    run(tmp_path, packets, 12, format=kind, stereo=True)
    back_NC, _ = soundfile.read(tmp_path / f"talk.{kind}")
    model[4 * FRAME : 5 * FRAME] = 0
    wanted_NC = np.pad(np.stack([model, user], axis=1), ((0, 2 * FRAME), (0, 0)))
    np.testing.assert_allclose(back_NC, wanted_NC, atol=0.3 if kind == "ogg" else 1e-4)


def test_the_user_can_be_written_alone(tmp_path: Path) -> None:
    sink = FileSink(FileSinkOptions(output="user_audio"))
    assert sink.takes == ("user_audio",)
    run(tmp_path, [packet(0, babble(0.08), "user_audio")], 1, output="user_audio")
    assert soundfile.info(tmp_path / "talk.wav").frames == FRAME


def test_an_interrupted_session_keeps_what_it_had(tmp_path: Path) -> None:
    run(tmp_path, frames_of(babble(0.8)), 10, complete=False)
    assert soundfile.info(tmp_path / "talk.wav").frames == 10 * FRAME


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_a_session_that_failed_before_its_first_frame_leaves_nothing(
    tmp_path: Path, kind: str
) -> None:
    assert run(tmp_path, [], 0, complete=False, format=kind)["files"] == []
    assert list(tmp_path.iterdir()) == []


def test_the_name_follows_the_template(tmp_path: Path) -> None:
    report = run(tmp_path, [], 1, path="by seed/{seed}/{stem}", format="flac")
    assert report["files"] == [str(tmp_path / "by seed" / "0" / "talk.flac")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "wave"}, "sink.file.format has no such value"),
        ({"output": "user"}, "sink.file.output has no such value"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        FileSink(FileSinkOptions(**options))  # type: ignore[arg-type]
    assert "did you mean" in str(caught.value)


def test_32_bits_keep_every_sample_as_it_is(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).uniform(-1, 1, FRAME).astype(np.float32)

    run(tmp_path, [packet(0, pcm)], 1, bits=32)

    got, _ = soundfile.read(tmp_path / "talk.wav", dtype="float32")
    assert np.array_equal(got, pcm)
    assert soundfile.info(tmp_path / "talk.wav").subtype == "FLOAT"


@pytest.mark.parametrize(("bits", "kind"), [(24, "wav"), (32, "flac")])
def test_bits_that_a_format_lacks_are_refused(bits: int, kind: str) -> None:
    with pytest.raises(ConfigError, match="16, or 32 for wav"):
        FileSink(FileSinkOptions(bits=bits, format=kind))


def test_an_output_that_the_graph_does_not_make_is_refused(tmp_path: Path) -> None:
    async def start(sink: FileSink) -> None:
        formats: dict[str, Format] = {
            "audio": FORMATS["audio"],
            "text": Text(32_000, Fraction(25, 2)),
        }
        await sink.open(replace(session(tmp_path), formats=formats))

    with pytest.raises(ConfigError, match="sink=file needs the output 'user_audio'"):
        asyncio.run(start(FileSink(FileSinkOptions(stereo=True))))
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_never_opened_closes_quietly() -> None:
    assert asyncio.run(FileSink(FileSinkOptions()).close(SessionEnd(3, complete=False))) == {}


CHILD = """
import asyncio, sys, time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
import numpy as np
from moshi_pipe.errors import OutputError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionInfo
from moshi_pipe.graph.node import SessionEnd
from moshi_pipe.graph.packet import Packet
from moshi_pipe.nodes.file_sink import FileSink
from moshi_pipe.nodes.options import FileSinkOptions
from support.audio import babble

async def run(folder, kind, num_frames):
    sink = FileSink(FileSinkOptions(format=kind))
    formats = {"audio": Audio(24_000, 1920)}
    await sink.open(SessionInfo("talk", {"stem": "talk"}, folder, formats, 0.08, seed=0))
    pcm = babble(num_frames * 0.08).reshape(num_frames, 1, 1920)
    for i in range(num_frames):
        await sink.write(Packet("audio", i, i * 80_000_000, pcm[i]))
    return sink
"""


@pytest.mark.parametrize(("kind", "lost_s"), [("wav", 0.08), ("flac", 0.25), ("ogg", 1.0)])
def test_a_kill_leaves_a_file_up_to_the_last_second(
    tmp_path: Path, kind: str, lost_s: float
) -> None:
    code = CHILD + (
        "sink = asyncio.run(run(Path(sys.argv[1]), sys.argv[2], 75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    kill_after_ready(code, tmp_path, kind)
    back, _ = soundfile.read(tmp_path / f"talk.{kind}", dtype="float32")
    assert back.size >= (6.0 - lost_s) * RATE
    tolerance = 0.2 if kind == "ogg" else 1e-4
    np.testing.assert_allclose(back, babble(6.0)[: back.size], atol=tolerance)


def test_a_full_disk_is_named_with_its_free_space_and_keeps_what_fits(tmp_path: Path) -> None:
    pcm = babble(4.0)
    with small_disk(tmp_path / "disk") as disk:

        async def write() -> None:
            sink = FileSink(FileSinkOptions())
            await sink.open(session(disk))
            try:
                for item in frames_of(pcm):
                    await sink.write(item)
            finally:
                report = await sink.close(SessionEnd(50, complete=False))
                assert report["files"] == [str(disk / "talk.wav")]

        with pytest.raises(OutputError) as caught:
            asyncio.run(write())
        assert str(caught.value) == (
            f"cannot write {disk / 'talk.wav'}\n"
            f"  got:    No space left on device ({disk}: writable, 0 B free)\n"
            "  do:     free some space, or choose another folder with output_dir="
        )
        back, _ = soundfile.read(disk / "talk.wav", dtype="float32")
        assert back.size > 32_000
        np.testing.assert_allclose(back, pcm[: back.size], atol=1e-4)


@pytest.mark.parametrize("kind", ["flac", "ogg"])
def test_a_full_disk_is_named_by_encoders_too(tmp_path: Path, kind: str) -> None:
    noise = (0.2 * np.random.default_rng(0).standard_normal(300 * FRAME)).astype(np.float32)
    with (
        small_disk(tmp_path / "disk") as disk,
        pytest.raises(OutputError, match=f"cannot write {disk / f'talk.{kind}'}") as caught,
    ):
        run(disk, frames_of(noise), 300, format=kind)
    assert "writable, 0 B free" in str(caught.value)


def test_a_folder_that_may_not_be_written_is_named() -> None:
    code = (
        "try:\n"
        "    asyncio.run(run(Path(sys.argv[1]), 'wav', 1))\n"
        "except OutputError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        said = run_as_nobody(CHILD, code, folder)
        assert said.startswith(
            f"cannot write {folder}/talk.wav\n  got:    Permission denied ({folder}: not writable, "
        )
        Path(folder).chmod(0o700)
        said = run_as_nobody(CHILD, code, folder)
        assert said.startswith(f"cannot write {folder}/talk.wav\n  got:    Permission denied (")
