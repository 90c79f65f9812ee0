"""Reading audio files of any kind, whole and broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from support.audio import babble
from support.disk import run_as_nobody

from moshi_pipe.errors import InputError
from moshi_pipe.nodes.audio_reader import probe, read

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

RATE = 24_000
KINDS = [
    ("a.wav", "PCM_16", 1e-4),
    ("a.wav", "PCM_24", 1e-6),
    ("a.wav", "FLOAT", 0),
    ("a.wav", "ULAW", 0.02),
    ("a.flac", "PCM_16", 1e-4),
    ("a.aiff", "PCM_16", 1e-4),
    ("a.ogg", "VORBIS", 0.2),
    ("a.mp3", "MPEG_LAYER_III", 0.2),
]


def read_all(path: Path) -> tuple[npt.NDArray[np.float32], list[str]]:
    warnings: list[str] = []
    pieces = list(read(path, probe(path), warnings.append))
    return np.concatenate(pieces, axis=1), warnings


def make(path: Path, seconds: float = 3.0, subtype: str | None = None, **kwargs: Any) -> Path:
    soundfile.write(path, babble(seconds), RATE, subtype, **kwargs)
    return path


def cut(path: Path, num_bytes: int) -> Path:
    path.write_bytes(path.read_bytes()[:num_bytes])
    return path


def convert(path: Path, name: str) -> Path:
    made = path.with_name(name)
    codec = "libvorbis" if name == "a.webm" else "aac"
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-c:a", codec, str(made)]
    subprocess.run(command, check=True)
    return made


@pytest.mark.parametrize(("name", "subtype", "tolerance"), KINDS)
def test_what_was_written_is_read(
    tmp_path: Path, name: str, subtype: str, tolerance: float
) -> None:
    path = make(tmp_path / name, subtype=subtype)
    properties = probe(path)
    assert (properties.sample_rate, properties.channels) == (RATE, 1)
    assert properties.num_samples == 3 * RATE
    pcm_CN, warnings = read_all(path)
    assert pcm_CN.dtype == np.float32
    assert pcm_CN.shape == (1, 3 * RATE)
    np.testing.assert_allclose(pcm_CN[0], babble(3.0), atol=tolerance)
    assert warnings == []


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_channels_stay_apart(tmp_path: Path, name: str) -> None:
    left, right = babble(1.0, seed=1, sample_rate=44_100), babble(1.0, seed=2, sample_rate=44_100)
    soundfile.write(tmp_path / name, np.stack([left, right], axis=1), 44_100)
    pcm_CN, _ = read_all(tmp_path / name)
    assert pcm_CN.shape == (2, 44_100)
    np.testing.assert_allclose(pcm_CN, [left, right], atol=0.2)


def test_ogg_opus_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "a.opus", format="OGG", subtype="OPUS")
    pcm_CN, _ = read_all(path)
    assert pcm_CN.shape == (1, 3 * RATE)


def test_what_a_file_holds_counts_not_its_name(tmp_path: Path) -> None:
    for name in ("a.raw", "a.mp3", "noending"):
        path = make(tmp_path / "a.wav").rename(tmp_path / name)
        pcm_CN, _ = read_all(path)
        assert pcm_CN.shape == (1, 3 * RATE)


def test_a_name_with_strange_letters_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav").rename(tmp_path / os.fsdecode(b"\xff\xc3\xa9 (1) '[x].wav"))
    assert read_all(path)[0].shape == (1, 3 * RATE)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="makes the file with ffmpeg")
@pytest.mark.parametrize("seconds", [3.0, 65.0])
def test_what_only_the_second_decoder_knows_is_read(tmp_path: Path, seconds: float) -> None:
    pytest.importorskip("sphn")
    path = convert(make(tmp_path / "a.wav", seconds), "a.aac")
    assert probe(path).decoder == "sphn"
    pcm_CN, _ = read_all(path)
    assert pcm_CN.shape[1] == pytest.approx(seconds * RATE, abs=0.1 * RATE)
    assert 0.05 < float(np.abs(pcm_CN).mean()) < 0.3


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="makes the file with ffmpeg")
@pytest.mark.parametrize("name", ["a.mka", "a.webm"])
def test_a_video_container_is_refused_with_a_way_out(tmp_path: Path, name: str) -> None:
    path = convert(make(tmp_path / "a.wav"), name)
    with pytest.raises(InputError, match="cannot read") as caught:
        probe(path)
    assert caught.value.got == "a Matroska or WebM file"
    assert "ffmpeg" in str(caught.value.fix)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError) as caught:
        probe(tmp_path / name)
    assert caught.value.what == f"cannot read {tmp_path / name}"
    assert caught.value.got == "an empty file"


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.ogg", "a.aac"])
@pytest.mark.parametrize("text", ["This is no audio.\n", "é" * 300 + "\n", "x" * 511 + "é"])
def test_a_text_file_is_recognised(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        probe(tmp_path / name)
    assert caught.value.what == f"cannot read {tmp_path / name}"
    assert str(caught.value.got).startswith("a text file (libsndfile: ")


def test_bytes_that_are_no_audio_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(InputError, match="cannot read") as caught:
        probe(tmp_path / "a.wav")
    assert str(caught.value.got).startswith("bytes that no decoder knows (libsndfile: ")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(f"cannot read {tmp_path / 'a.wav'}")) as caught:
        probe(tmp_path / "a.wav")
    assert caught.value.got == "No such file or directory"
    with pytest.raises(InputError) as caught:
        probe(tmp_path)
    assert caught.value.got == "Is a directory"


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav", 0.1)
    path.chmod(0o600)
    imports = (
        "import sys\n"
        "from pathlib import Path\n"
        "from moshi_pipe.nodes.audio_reader import probe\n"
        "from moshi_pipe.errors import InputError\n"
    )
    code = (
        "try:\n"
        "    probe(Path(sys.argv[1]))\n"
        "except InputError as error:\n"
        "    sys.stdout.write(str(error))\n"
    )
    assert run_as_nobody(imports, code, path) == (
        f"cannot read {path}\n"
        "  got:    Permission denied\n"
        "  do:     check the path and its permissions"
    )


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wav_that_was_cut_off_gives_what_there_is_and_a_warning(
    tmp_path: Path, subtype: str
) -> None:
    path = make(tmp_path / "a.wav", subtype=subtype)
    cut(path, path.stat().st_size // 2)
    properties = probe(path)
    assert properties.num_samples == pytest.approx(3 * RATE, abs=2)
    pcm_CN, warnings = read_all(path)
    assert pcm_CN.shape[1] == pytest.approx(1.5 * RATE, abs=100)
    np.testing.assert_allclose(pcm_CN[0], babble(3.0)[: pcm_CN.shape[1]], atol=1e-4)
    assert warnings == [f"{path} is cut off: only the first 1.5 s of 3.0 s were read"]


def test_a_wav_whose_writer_did_not_know_the_length_gives_no_warning(tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav")
    data = bytearray(path.read_bytes())
    for size in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):
        data[40:44] = size
        path.write_bytes(data)
        pcm_CN, warnings = read_all(path)
        assert pcm_CN.shape == (1, 3 * RATE)
        assert warnings == []


@pytest.mark.parametrize("name", ["a.flac", "a.mp3"])
def test_other_files_that_were_cut_off_give_what_there_is_and_a_warning(
    tmp_path: Path, name: str
) -> None:
    path = make(tmp_path / name)
    cut(path, path.stat().st_size // 2)
    pcm_CN, (warning,) = read_all(path)
    assert 1.0 * RATE < pcm_CN.shape[1] < 2.0 * RATE
    assert warning.startswith(f"{path} is ")
    seconds = pcm_CN.shape[1] / RATE
    assert warning.endswith(f"only the first {seconds:.1f} s of 3.0 s were read")


def test_an_ogg_that_was_cut_off_gives_what_there_is(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ogg")
    cut(path, path.stat().st_size // 2)
    assert 0.5 * RATE < read_all(path)[0].shape[1] < 2.5 * RATE


def test_a_flac_gives_what_comes_before_the_damage(tmp_path: Path) -> None:
    path = make(tmp_path / "a.flac")
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] + b"\x55" * 2000 + data[middle + 2000 :])
    pcm_CN, (warning,) = read_all(path)
    assert 1.0 * RATE < pcm_CN.shape[1] < 2.0 * RATE
    np.testing.assert_allclose(pcm_CN[0], babble(3.0)[: pcm_CN.shape[1]], atol=1e-4)
    assert warning.startswith(f"{path} is damaged (")


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac"):
        path = make(tmp_path / name)
        cut(path, 44)
        with pytest.raises(InputError, match="holds no audio that can be decoded"):
            list(read(path, probe(path)))


def test_a_recording_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), RATE)
    with pytest.raises(InputError) as caught:
        list(read(tmp_path / "a.wav", probe(tmp_path / "a.wav")))
    assert str(caught.value) == (
        f"{tmp_path / 'a.wav'} holds no audio that can be decoded\n"
        "  got:    0 samples\n"
        "  wanted: at least one sample"
    )


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
@pytest.mark.parametrize("num_bytes", [1, 4, 12, 30, 100])
def test_a_stub_of_any_length_is_refused_or_short(
    tmp_path: Path, name: str, num_bytes: int
) -> None:
    path = cut(make(tmp_path / name, 1.0), num_bytes)
    num_samples = 0
    with suppress(InputError):
        num_samples = read_all(path)[0].shape[1]
    assert num_samples < 100


def test_values_that_are_no_numbers_are_passed_on(tmp_path: Path) -> None:
    pcm = babble(1.0)
    pcm[5000] = np.nan
    soundfile.write(tmp_path / "a.wav", pcm, RATE, "FLOAT")
    pcm_CN, warnings = read_all(tmp_path / "a.wav")
    np.testing.assert_array_equal(pcm_CN[0], pcm)
    assert warnings == []
