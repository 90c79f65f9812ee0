"""``moshi-pipe client`` on virtual sound devices, in real time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from support.audio import babble
from support.pulse import RATE, Pulse, end, lag, missing_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("pyaudio")
pytest.importorskip("websockets")
pytest.importorskip("sphn")

from support.rust_like_server import RustLikeServer

pytestmark = [
    pytest.mark.audio,
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {missing_tools()}"),
]

FRAME = 1920
SECONDS = 8


@pytest.fixture
def pulse() -> Iterator[Pulse]:
    with tempfile.TemporaryDirectory(prefix="mp") as name:  # sockets want a short path
        server = Pulse(Path(name)).start()
        yield server
        server.stop()


def test_microphone_and_speaker_talk_to_a_server(pulse: Pulse, tmp_path: Path) -> None:
    speech_N = babble(SECONDS + 4.0, seed=5)
    ear = pulse.record("virt_speaker")
    words = ["source=mic", "source.device=virt_mic", f"source.duration_s={SECONDS}"]
    words += ["sink=[speaker,file]", "sink.speaker.device=virt_speaker", "sink.file.stereo=true"]
    with RustLikeServer() as server:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "moshi_pipe", "client", server.url),
                *(*words, f"output_dir={tmp_path}/out"),
            ],
            env={**os.environ, **pulse.environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        shown = process.stdout.readline()
        player = pulse.feed(speech_N.astype(np.float32))
        shown += process.communicate(timeout=60)[0]
        end(player)
        heard_in_room = ear.stop()

    assert process.returncode == 0, shown
    (report_path,) = (tmp_path / "out").glob("*.session.json")
    report = json.loads(report_path.read_text())
    assert report["remote"]["handshake"] == 9
    assert server.heard[0].frames >= 0.9 * SECONDS * RATE / FRAME
    (audio,) = (tmp_path / "out").glob("*.wav")
    pcm_NC, _ = soundfile.read(audio, dtype="float32")
    said_N, heard_N = pcm_NC[:, 0], pcm_NC[:, 1]
    # The server says what it hears, so the one follows the other by what Opus takes: 6.5 ms each.
    middle = slice(2 * RATE, 4 * RATE)
    assert abs(lag(said_N, heard_N[middle]) - 2 * RATE) < FRAME / 2
    assert lag(heard_in_room, said_N[middle]) > 0
    at = lag(heard_in_room, said_N[middle])
    room_N = heard_in_room[at : at + RATE // 2]
    assert np.corrcoef(room_N, said_N[2 * RATE : 2 * RATE + RATE // 2])[0, 1] > 0.9
