"""Our client and our server hold conversations with the tiny model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn")
pytest.importorskip("websockets")

from support.audio import babble
from support.model import RANDOM
from support.proxy import Proxy
from support.serving import Server

from moshi_pipe.cli import main
from moshi_pipe.remote.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

RATE = 24_000
FRAMES = 30
SECRET = "correct-horse"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two slots on the CPU; nothing is dropped."""
    words = ["engine.slots=2", "engine.late=slow_down", "device=cpu", "numerics=reference"]
    with Server(tmp_path_factory.mktemp("server"), *words) as server:
        yield server


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.wav"
    samples_N = babble(FRAMES * 0.08, seed=5).astype(np.float32)
    soundfile.write(path, samples_N, RATE, subtype="FLOAT")
    return path


def client(url: str, talk: Path, *words: str) -> int:
    out = [f"output_dir={talk.parent}/there", "sink.file.bits=32", "seed=5"]
    address = url.replace("http", "ws", 1)
    return main(["client", address, f"source.path={talk}", "model.pace=null", *out, *words])


def words_of(folder: Path) -> dict[float, str]:
    """Words by the time of their beginning."""
    lines = (folder / "talk.jsonl").read_text().splitlines()
    return {word["start_s"]: word["text"] for word in map(json.loads, lines)}


def record(talk: Path) -> dict[str, Any]:
    return dict(json.loads((talk.parent / "there" / "talk.session.json").read_text()))


def test_a_model_behind_a_server_says_what_it_says_here(server: Server, talk: Path) -> None:
    assert client(server.url, talk, "model.audio=pcm_f32le") == 0
    here = talk.parent / "here"
    words = ["seed=5", "engine.slots=2", "device=cpu", "numerics=reference", "first_frame=reset"]
    assert (
        main([RANDOM, f"source.path={talk}", f"output_dir={here}", "sink.file.bits=32", *words])
        == 0
    )

    (said, _), (expected, _) = (
        soundfile.read(folder / "talk.wav", dtype="float32")
        for folder in (talk.parent / "there", here)
    )
    np.testing.assert_array_equal(said, expected)
    assert np.abs(said).max() > 0
    there_words, here_words = words_of(talk.parent / "there"), words_of(here)
    # A server sends no ids: the mark in front of a word without a space does not come along.
    assert "".join(there_words.values()) == "".join(here_words.values())
    assert len(there_words) > 3
    assert there_words.keys() <= here_words.keys()
    assert record(talk)["remote"]["session"]["seed"] == record(talk)["settings"]["seed"]


def test_opus_goes_both_ways(server: Server, talk: Path) -> None:
    assert client(server.url, talk) == 0

    told = record(talk)
    assert told["frames"] == FRAMES
    assert told["remote"]["unanswered_frames"] == 0


def test_a_conversation_that_is_cut_goes_on(
    server: Server, talk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = 0
    answer = Rows.answer

    async def counting(self: Rows, *args: Any, **keywords: Any) -> None:
        nonlocal answers
        answers += 1
        if answers == FRAMES // 3:
            proxy.cut()
        await answer(self, *args, **keywords)

    monkeypatch.setattr(Rows, "answer", counting)
    with Proxy(server.url) as proxy:
        assert client(proxy.url, talk, "model.audio=pcm_f32le", "engine.inbox_frames=4") == 0

    told = record(talk)
    assert told["remote"]["connections"] == 2
    assert told["remote"]["session"]["resumed"] is True
    assert told["remote"]["unanswered_frames"] <= 4
    assert told["frames"] >= FRAMES


def test_a_server_with_a_token_a_certificate_and_one_slot(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = pytest.importorskip("websockets.sync.client")
    import ssl

    words = ["server.self_signed=true", "server.token_env=SECRET", "server.max_waiting=0"]
    words += ["engine.slots=1", "engine.late=slow_down", "device=cpu"]
    environment = {"SECRET": SECRET, "XDG_CACHE_HOME": str(tmp_path)}
    with Server(tmp_path, *words, environment=environment) as server:
        (made,) = tmp_path.glob("**/moshi-pipe.crt")

        assert client(server.url, talk) == 6
        assert "is not trusted" in capsys.readouterr().err
        assert client(server.url, talk, f"model.verify={made}") == 6
        assert "HTTP 401" in capsys.readouterr().err
        monkeypatch.setenv("MY_TOKEN", SECRET)
        enter = ["model.token_env=MY_TOKEN", f"model.verify={made}", "resume=false"]
        assert client(server.url, talk, *enter) == 0

        address = server.url.replace("http", "ws", 1) + f"/api/chat?token={SECRET}"
        trusting = ssl.create_default_context(cafile=str(made))
        with sync.connect(address, ssl=trusting, compression=None) as somebody:
            assert somebody.recv(30) == b"\x00"
            assert client(server.url, talk, *enter) == 7
    assert "has no room for a further conversation" in record(talk)["error"]
