"""Runs whose model is remote, against a server that does what the Rust one does on the wire."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("websockets")
sphn = pytest.importorskip("sphn")

from support.remote_runs import FRAMES, certificate, record, run  # noqa: E402
from support.rust_like_server import FRAME, SERIAL, Heard, RustLikeServer, pages_of  # noqa: E402

from moshi_pipe.cli import main  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]


def frames_of(talk: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    samples, _ = soundfile.read(talk, dtype="float32")
    return np.concatenate([samples, np.zeros(100, np.float32)]).reshape(-1, FRAME)


def test_the_client_sends_opus_in_audio_messages_and_nothing_else(talk: Path) -> None:
    with RustLikeServer() as server:
        assert run(server, talk) == 0

    heard = server.heard[0]
    writer = sphn.OpusStreamWriter(24000)
    expected = [b"\x01" + bytes(writer.append_pcm(frame)) for frame in frames_of(talk)]
    assert heard.messages == expected
    assert heard.close_code == 1000
    pages = list(pages_of(b"".join(message[1:] for message in heard.messages)))
    assert len(pages) == 2 + 2 * FRAMES  # two headers, and 40 ms a page
    assert {int.from_bytes(page[14:18], "little") for page in pages} == {SERIAL}


def test_settings_go_along_as_parameters(talk: Path) -> None:
    words = ["sampling.temperature=0.5", "sampling.text_top_k=30", "model.max_s=60"]
    with RustLikeServer() as server:
        assert run(server, talk, *words) == 0

    heard = server.heard[0]
    seed = str(record(talk)["settings"]["seed"])
    assert heard.path == "/api/chat"
    assert heard.query == {
        "audio_temperature": "0.5",
        "text_topk": "30",
        "max_s": "60",
        "max_steps": "750",
        "seed": seed,
        "audio_seed": seed,
        "text_seed": seed,
    }


def test_an_answer_is_recorded_beside_what_was_heard(talk: Path) -> None:
    with RustLikeServer() as server:
        assert run(server, talk, "sink.file.stereo=true") == 0

    there, heard = sphn.OpusStreamWriter(24000), sphn.OpusStreamReader(24000)
    back, answers = sphn.OpusStreamWriter(24000), sphn.OpusStreamReader(24000)
    sent = [heard.append_bytes(bytes(there.append_pcm(frame))) for frame in frames_of(talk)]
    expected = [
        answers.append_bytes(bytes(back.append_pcm(frame * np.float32(0.5)))) for frame in sent[2:]
    ]
    both, _ = soundfile.read(talk.parent / "out" / "talk.wav", dtype="float32")
    assert len(both) == FRAMES * FRAME - 100
    assert not both[: 2 * FRAME, 0].any()
    wanted = np.concatenate(expected)[:-100]
    np.testing.assert_allclose(both[2 * FRAME :, 0], wanted, atol=1.1 / 32768)
    np.testing.assert_array_equal(both[:, 1], frames_of(talk).reshape(-1)[:-100])


def test_pieces_become_words_with_times_and_without_ids(talk: Path) -> None:
    with RustLikeServer() as server:
        assert run(server, talk) == 0

    lines = (talk.parent / "out" / "talk.jsonl").read_text().splitlines()
    words = [json.loads(line) for line in lines]
    assert [word["text"] for word in words] == ["Hello,", "worldé", "Hello,", "world"]
    assert words[1]["start_s"] == 0.32
    assert words[0]["tokens"][0] == {"piece": "▁Hello", "time_s": 0.16}


def test_the_handshake_may_be_one_byte(talk: Path) -> None:
    with RustLikeServer(handshake=b"\x00", offset=1) as server:
        assert run(server, talk) == 0

    assert record(talk)["remote"]["handshake"] == 1


def test_the_language_model_of_moshi_server_is_understood(talk: Path) -> None:
    with RustLikeServer(style="lm") as server:
        words = [f"model.url={server.url}/api/lm", "sink.file.bits=32"]
        assert run(server, talk, *words) == 0
        assert server.heard[0].path == "/api/lm"
        lm = soundfile.read(talk.parent / "out" / "talk.wav")[0]
        lm_words = (talk.parent / "out" / "talk.txt").read_text()
    with RustLikeServer() as server:
        assert run(server, talk, "sink.file.bits=32") == 0

    np.testing.assert_array_equal(lm, soundfile.read(talk.parent / "out" / "talk.wav")[0])
    assert lm_words == (talk.parent / "out" / "talk.txt").read_text()
    assert "metadata" in record(talk)["remote"]


def test_a_penalty_goes_along_as_the_rust_server_wants_it(talk: Path) -> None:
    with RustLikeServer() as server:
        assert run(server, talk, "sampling.repetition_penalty=1.5") == 0

    query = server.heard[0].query
    assert (query["repetition_penalty"], query["repetition_penalty_context"]) == ("1.5", "64")


def test_parameters_of_the_address_are_kept_and_shown_to_nobody(
    talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RustLikeServer() as server:
        url = f"ws://me:secret@127.0.0.1:{server.port}/api/chat?pad_mult=1.5&auth_id=hidden"
        assert run(url, talk) == 0

    assert server.heard[0].query["pad_mult"] == "1.5"
    said = "".join(capsys.readouterr())
    assert "secret" not in said
    assert "hidden" not in said
    assert record(talk)["remote"]["url"] == f"ws://127.0.0.1:{server.port}/api/chat"


def test_what_the_server_is_is_in_the_record(talk: Path) -> None:
    with RustLikeServer() as server:
        assert run(server, talk) == 0

    remote = record(talk)["remote"]
    assert (remote["handshake"], remote["protocol"], remote["model_version"]) == (9, 0, 0)
    assert remote["metadata"]["text_temperature"] == "0.7"
    assert remote["connections"] == 1


def test_unknown_and_empty_messages_are_counted_and_do_no_harm(talk: Path) -> None:
    async def odd(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        for message in (b"\x09what", b"", "text", b"\x04no json", b"\x06"):
            await socket.send(message)
        await server.talk(socket, heard)

    with RustLikeServer(script=odd) as server:
        assert run(server, talk) == 0

    ignored = record(talk)["remote"]["ignored"]
    assert ignored == {"unknown_kind": 1, "empty": 1, "text": 1, "bad_metadata": 1}


def test_after_the_servers_limit_a_new_conversation_begins(talk: Path) -> None:
    with RustLikeServer(max_steps=5) as server:
        assert run(server, talk) == 0

    assert len(server.heard) > 1
    told = record(talk)
    assert told["status"] == "done"
    assert told["frames"] == FRAMES
    assert told["remote"]["reconnects"] == len(server.heard) - 1
    assert "a new conversation, which knows nothing of what was said" in told["warnings"][0]


def test_without_reconnecting_a_lost_conversation_fails(
    talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RustLikeServer(max_steps=5) as server:
        assert run(server, talk, "model.reconnect=0") == 7

    assert len(server.heard) == 1
    assert "the connection broke" in record(talk)["error"]
    assert "model.reconnect=N" in capsys.readouterr().err


def test_a_server_that_says_nothing_counts_as_lost(talk: Path) -> None:
    async def mute(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x00")
        async for message in socket:
            heard.messages.append(message)

    with RustLikeServer(script=mute) as server:
        words = ["model.reconnect=0", "model.silence_s=0.6", "engine.inbox_frames=4"]
        assert run(server, talk, *words) == 7

    assert "the server said nothing for 0.6 s" in record(talk)["error"]
    assert len(server.heard[0].messages) == 5  # four in flight, and the one without an answer
    assert record(talk)["remote"]["handshake"] == 1


def test_a_server_that_does_not_begin_is_given_up(talk: Path) -> None:
    async def busy(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.wait_closed()

    with RustLikeServer(script=busy) as server:
        assert run(server, talk, "model.wait_s=0.3") == 7

    assert "no handshake within 0.3 s" in record(talk)["error"]


def test_a_full_server_is_told_of_in_its_own_words(talk: Path) -> None:
    async def full(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b"\x05at_capacity: all 4 slots are in use; try again later")
        await socket.close(1013)

    with RustLikeServer(script=full) as server:
        assert run(server, talk) == 7

    error = record(talk)["error"]
    assert error.splitlines()[0].endswith("has no room for a further conversation")
    assert "all 4 slots are in use" in error
    assert len(server.heard) == 1


def test_waiting_is_shown_with_its_place(talk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def queue(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        await socket.send(b'\x04{"type":"queue","position":2,"waiting":5}')
        await server.talk(socket, heard)

    with RustLikeServer(script=queue) as server:
        assert run(server, talk) == 0

    assert "waiting at the server, place 2 of 5" in capsys.readouterr().err


def test_a_moshi_pipe_server_is_told_of_the_end_and_gives_the_conversation_back(
    talk: Path,
) -> None:
    async def ours(server: RustLikeServer, socket: Any, heard: Heard) -> None:
        first = len(server.heard) == 1
        await socket.send(b"\x00")
        session = {"type": "session", "resume": {"token": "T1", "s": 30}, "resumed": not first}
        await socket.send(b"\x04" + json.dumps(session).encode())
        async for message in socket:
            heard.messages.append(message)
            if message[:1] == b"\x01":
                heard.frames += 1
                if not first or heard.frames > 1:
                    await socket.send(b"\x01" + message[1:])
                if first and heard.frames == 6:
                    socket.transport.abort()
            elif message == b"\x03\x01":
                await socket.close(1000, "done")

    with RustLikeServer(script=ours) as server:
        # So few in flight that the sixth is sent only once an answer, and the token, were read.
        words = ["model.audio=pcm_f32le", "engine.inbox_frames=4"]
        assert run(server, talk, *words) == 0

    assert [heard.query.get("resume") for heard in server.heard] == [None, "T1"]
    assert server.heard[0].query["audio"] == "pcm_f32le"
    assert server.heard[1].messages[-1] == b"\x03\x01"
    told = record(talk)
    assert told["remote"]["session"]["resumed"] is True
    assert "the same conversation, if the server still holds it" in told["warnings"][0]


def test_a_self_signed_certificate_is_refused_unless_it_is_allowed(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = certificate(tmp_path)
    with RustLikeServer(tls=files) as server:
        assert run(server, talk) == 6
        assert "model.verify=false does not check it" in capsys.readouterr().err
        assert run(server, talk, "model.verify=false", "resume=false") == 0
        assert run(server, talk, f"model.verify={files[0]}", "resume=false") == 0


def test_secrets_come_from_the_environment(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "hunter2")
    monkeypatch.setenv("A_KEY", "public_token")
    words = ["model.token_env=A_TOKEN", "model.api_key_env=A_KEY"]
    with RustLikeServer() as server:
        assert run(server, talk, *words) == 0

    headers = {name.lower(): value for name, value in server.heard[0].headers.items()}
    assert headers["authorization"] == "Bearer hunter2"
    assert headers["kyutai-api-key"] == "public_token"
    assert "hunter2" not in (talk.parent / "out" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["model.url=ws://127.0.0.1:9"], 6, "no server answers at ws://127.0.0.1:9/api/chat"),
        (["model.token_env=NO_SUCH_VARIABLE"], 2, "names a variable that is not set"),
        (["model.url=ftp://host"], 2, "model.url cannot be 'ftp://host'"),
        (["model.audio=mp3"], 2, "model.audio cannot be 'mp3'"),
        (["model.pace=0"], 2, "model.pace cannot be 0.0"),
        (["device=cuda", "sampling.guidance=2"], 2, "got:    device, sampling.guidance"),
        (["graph=dialogue"], 2, "a graph around it has no other node"),
        (["sink=codes"], 2, "sink=codes needs the output 'codes'"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    words: Sequence[str], code: int, said: str, talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RustLikeServer() as server:
        assert run(server, talk, *words) == code

    assert said in capsys.readouterr().err
    assert server.heard == []


def test_a_model_that_runs_elsewhere_is_not_served_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["source=websocket", "sink=websocket", "server.port=0", f"output_dir={tmp_path}/out"]

    assert main(["model=remote", "model.url=host:1", *words]) == 2

    assert "source=websocket serves a model that runs here" in capsys.readouterr().err


def test_a_folder_is_held_on_several_connections(talk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.wav").write_bytes(talk.read_bytes())
    with RustLikeServer() as server:
        assert run(server, folder, "engine.slots=4") == 0

    assert len(server.heard) == 6
    assert len({heard.query["seed"] for heard in server.heard}) == 6


def test_what_is_done_is_not_sent_again(talk: Path) -> None:
    with RustLikeServer() as server:
        assert run(server, talk) == 0
        assert run(server, talk) == 0

    assert len(server.heard) == 1


def test_client_is_short_for_a_remote_model(talk: Path) -> None:
    out = talk.parent / "out"
    with RustLikeServer() as server:
        words = [f"source.path={talk}", f"output_dir={out}", "model.pace=null"]
        assert main(["client", f"127.0.0.1:{server.port}", "source=file", *words]) == 0

    assert server.heard[0].frames == FRAMES


def test_client_wants_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "source=file"]) == 2
    assert "client needs the address of one server" in capsys.readouterr().err


def test_a_recording_is_sent_at_the_pace_of_speech(talk: Path) -> None:
    with RustLikeServer() as server:
        assert run(server, talk, pace="4.0") == 0

    # Twelve frames of 20 ms each at four times the pace; the first is sent at once.
    assert record(talk)["wall_s"] >= 11 * 0.02


def test_torch_is_not_imported(talk: Path) -> None:
    with RustLikeServer() as server:
        words = ["model=remote", f"model.url={server.url}", f"source.path={talk}"]
        words += ["model.pace=null", f"output_dir={talk.parent / 'out'}"]
        code = f"import sys; from moshi_pipe.cli import main; c = main({words!r}); "
        code += "print(c, 'torch' in sys.modules)"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "0 False"
