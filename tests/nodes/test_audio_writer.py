"""Audio files that are valid while they grow."""

from __future__ import annotations

import subprocess
import wave
from shutil import which
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from support.audio import babble
from support.disk import kill_after_ready, small_disk

from moshi_pipe.errors import ConfigError
from moshi_pipe.nodes.audio_reader import probe, read
from moshi_pipe.nodes.audio_writer import FORMATS, open_writer

if TYPE_CHECKING:
    from pathlib import Path

RATE = 24_000
ATOL = {"wav": 5e-5, "flac": 5e-5, "ogg": 0.2}


def write(path: Path, pcm_CN: np.ndarray, piece: int = 1920) -> None:
    writer = open_writer(path, path.suffix[1:], sample_rate=RATE, channels=pcm_CN.shape[0])
    try:
        for start in range(0, pcm_CN.shape[1], piece):
            writer.write(pcm_CN[:, start : start + piece])
    finally:
        writer.close()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.08, 4096 / RATE, 3.21])
def test_what_is_written_is_read(tmp_path: Path, kind: str, channels: int, seconds: float) -> None:
    pcm_CN = np.stack([babble(seconds, seed=i) for i in range(channels)])
    write(tmp_path / f"a.{kind}", pcm_CN)
    back_NC, rate = soundfile.read(tmp_path / f"a.{kind}", dtype="float32", always_2d=True)
    assert rate == RATE
    np.testing.assert_allclose(back_NC.T, pcm_CN, atol=ATOL[kind])


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_the_pieces_do_not_matter(tmp_path: Path, kind: str) -> None:
    pcm_CN = babble(2.0)[None]
    write(tmp_path / f"a.{kind}", pcm_CN, 1920)
    write(tmp_path / f"b.{kind}", pcm_CN, 777)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_the_ends_of_the_range_do_not_wrap(tmp_path: Path) -> None:
    for kind, lowest in (("wav", -32_767), ("flac", -32_768)):
        write(tmp_path / f"a.{kind}", np.array([[1.0, -1.0, 0.0, 0.5]], dtype=np.float32))
        back, _ = soundfile.read(tmp_path / f"a.{kind}", dtype="int16")
        assert back.tolist() == [32_767, lowest, 0, 16_384]


def test_the_standard_library_reads_our_wav(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros((2, 100), dtype=np.float32))
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert file.getparams()[:4] == (2, 2, RATE, 100)


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    for kind in FORMATS:
        path = tmp_path / f"a.{kind}"
        write(path, babble(3.0)[None])
        write(path, babble(1.0)[None])
        assert soundfile.info(path).frames == RATE


def test_an_unknown_kind_gives_the_closest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_writer(tmp_path / "a", "flak", sample_rate=RATE, channels=1)
    assert str(caught.value) == (
        "cannot write audio as 'flak'\n  wanted: did you mean 'flac'? (there are: flac, ogg, wav)"
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_a_place_that_is_not_there_says_why(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OSError, match="No such file or directory"):
        open_writer(tmp_path / "no" / f"a.{kind}", kind, sample_rate=RATE, channels=1)


def test_a_rate_that_the_encoder_does_not_know_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the encoder cannot start"):
        open_writer(tmp_path / "a.flac", "flac", sample_rate=2_000_000, channels=1)


WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
import numpy as np
from moshi_pipe.nodes.audio_writer import open_writer
from support.audio import babble
path, seconds, loud = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
pcm = babble(seconds) * loud
writer = open_writer(path, path.suffix[1:], sample_rate=24_000, channels=1)
for start in range(0, pcm.size, 1920):
    writer.write(pcm[None, start : start + 1920])
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("loud", [0, 1])
@pytest.mark.parametrize(("kind", "lost_s"), [("wav", 0.0), ("flac", 0.2), ("ogg", 1.25)])
def test_a_kill_leaves_all_but_the_last_moment(
    tmp_path: Path, kind: str, lost_s: float, loud: int
) -> None:
    path = tmp_path / f"a.{kind}"
    kill_after_ready(WRITE_AND_WAIT, path, 6, loud)
    back, _ = soundfile.read(path, dtype="float32")
    assert 6 - lost_s <= back.size / RATE <= 6
    np.testing.assert_allclose(back, babble(6.0)[: back.size] * loud, atol=ATOL[kind])
    warnings: list[str] = []
    ours = np.concatenate(list(read(path, probe(path), warnings.append)), axis=1)
    np.testing.assert_array_equal(ours[0], back)
    assert warnings == []


@pytest.mark.skipif(which("ffmpeg") is None, reason="asks ffmpeg")
@pytest.mark.parametrize("kind", FORMATS)
def test_other_programs_read_what_a_kill_left(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    kill_after_ready(WRITE_AND_WAIT, path, 3, 1)
    command = ["ffmpeg", "-v", "warning", "-i", str(path), "-f", "s16le", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert len(done.stdout) / 2 >= 1.75 * RATE
    assert b"rror" not in done.stderr


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_keeps_what_fits(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    pcm_CN = (0.2 * rng.standard_normal((1, 30 * RATE))).astype(np.float32)
    with small_disk(tmp_path / "disk") as disk:
        path = disk / f"a.{kind}"
        with pytest.raises(OSError, match=r"No space left on device|could not write"):
            write(path, pcm_CN)
        back, _ = soundfile.read(path, dtype="float32")
        assert back.size > {"wav": 32_000, "flac": 28_000, "ogg": 30_000}[kind]
        np.testing.assert_allclose(back[:20_000], pcm_CN[0, :20_000], atol=5 * ATOL[kind])
