"""Our client and the reference package's own server hold a conversation over Opus."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import sphn

pytest.importorskip("websockets")
pytest.importorskip("aiohttp")

from support.reference_server import ReferenceServer

from moshi_pipe.cli import main
from moshi_pipe.models.make_checkpoint import make_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

FRAME = 1920
FRAMES = 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, preset="tiny")
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ReferenceServer]:
    with ReferenceServer(folder) as server:
        yield server


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """A recording of two seconds."""
    rng = np.random.default_rng(3)
    samples = 0.3 * np.sin(np.cumsum(rng.normal(0.05, 0.05, FRAMES * FRAME)))
    path = tmp_path / "talk.wav"
    soundfile.write(path, samples.astype(np.float32), 24000, subtype="FLOAT")
    return path


def read(path: Path) -> npt.NDArray[np.float32]:
    samples: npt.NDArray[np.float32] = soundfile.read(path, dtype="float32")[0]
    return samples


def through_opus(samples_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the other side hears of samples that are sent frame by frame."""
    writer, reader = sphn.OpusStreamWriter(24000), sphn.OpusStreamReader(24000)
    frames = samples_N.reshape(-1, FRAME)
    return np.concatenate([reader.append_bytes(bytes(writer.append_pcm(f))) for f in frames])


def loudness(samples_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Root of the mean square of every frame."""
    power: npt.NDArray[np.float32] = (samples_N.reshape(-1, FRAME) ** 2).mean(1)
    return np.sqrt(power)


def words_of(path: Path) -> list[tuple[str, float]]:
    lines = path.read_text().splitlines()
    return [(word["text"], word["start_s"]) for word in map(json.loads, lines)]


def test_the_reference_server_answers_our_client_as_the_model_does_here(
    server: ReferenceServer, folder: Path, talk: Path, tmp_path: Path
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    sent = ["source=file", f"source.path={talk}", "model.pace=null", f"output_dir={there}"]
    assert main(["client", server.url, *sent, "sink.file.bits=32"]) == 0
    heard = tmp_path / "heard" / "talk.wav"
    heard.parent.mkdir()
    soundfile.write(heard, through_opus(read(talk)), 24000, subtype="FLOAT")
    same = ["sampling=greedy", "dtype=bfloat16", "numerics=reference", "first_frame=reset"]
    model = ["model=local", f"model.path={folder}", f"source.path={heard}", f"output_dir={here}"]
    assert main([*model, *same, "sink.file.bits=32"]) == 0

    assert words_of(there / "talk.jsonl") == words_of(here / "talk.jsonl")
    assert len(words_of(here / "talk.jsonl")) > 3
    answer, expected = read(there / "talk.wav"), read(here / "talk.wav")
    assert answer.shape == expected.shape
    assert not answer[:FRAME].any()
    # The codecs agree within some 1e-7, by the form that products have on this processor; from the
    # second frame on Opus makes another noise of the same loudness out of that.
    ours, theirs = answer[FRAME:], through_opus(expected[FRAME:])
    np.testing.assert_allclose(ours[:FRAME], theirs[:FRAME], atol=1e-6)
    np.testing.assert_allclose(loudness(ours), loudness(theirs), rtol=0.2)


def test_the_next_conversation_begins_anew(
    server: ReferenceServer, talk: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        words = ["model=remote", f"model.url={server.url}", "model.pace=null", "seed=1"]
        assert main([*words, f"source.path={talk}", f"output_dir={folder}"]) == 0

    first, second = (read(folder / "talk.wav") for folder in folders)
    np.testing.assert_array_equal(first, second)
    record = json.loads((folders[1] / "talk.session.json").read_text())
    assert record["remote"]["handshake"] == 1
    assert record["remote"]["connections"] == 1
