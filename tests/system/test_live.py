"""Microphone in, speaker out: the real command on virtual sound devices, in real time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from support.audio import babble
from support.model import RANDOM
from support.pulse import RATE, Pulse, end, lag, missing_tools

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest.importorskip("pyaudio")
pytestmark = [
    pytest.mark.audio,
    pytest.mark.system,
    pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {missing_tools()}"),
]

FRAME = 1920
DEVICES = ["source.device=virt_mic", "sink.speaker.device=virt_speaker"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets allow about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="mp") as name:
        yield Path(name)


@pytest.fixture
def pulse(folder: Path, request: pytest.FixtureRequest) -> Iterator[Pulse]:
    server = Pulse(folder, **getattr(request, "param", {})).start()
    yield server
    server.stop()


def start(pulse: Pulse, folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "moshi_pipe", RANDOM, *words, f"output_dir={folder}/out"]
    return subprocess.Popen(
        command,
        env={**pulse.environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def wait_ready(process: subprocess.Popen[str]) -> str:
    """Read standard error until the models are ready."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "ready in" in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def results(
    folder: Path,
) -> tuple[dict[str, Any], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The session's report, what it said and what it heard."""
    (report,) = (folder / "out").glob("*.session.json")
    (audio,) = (folder / "out").glob("mic-*.wav")
    pcm_NC, rate = soundfile.read(audio, dtype="float32")
    assert rate == RATE
    return json.loads(report.read_text()), pcm_NC[:, 0], pcm_NC[:, 1]


def offline(folder: Path, heard_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same graph over what was heard, as fast as it goes."""
    soundfile.write(folder / "heard.wav", heard_N, RATE, subtype="FLOAT")
    words = [
        "graph=codec",
        "sink=file",
        "sink.file.bits=32",
        "first_frame=reset",
        f"output_dir={folder}/offline",
    ]
    command = [
        sys.executable,
        "-m",
        "moshi_pipe",
        RANDOM,
        f"source.path={folder}/heard.wav",
        *words,
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    said_N, _ = soundfile.read(folder / "offline" / "heard.wav", dtype="float32")
    return np.asarray(said_N, np.float32)


CARDS = [
    pytest.param({}, [], id="24 kHz mono"),
    pytest.param(
        {"mic_rate": 44_100, "mic_channels": 2, "speaker_rate": 44_100},
        ["source.sample_rate=44100", "source.channels=2", "sink.speaker.sample_rate=44100"],
        id="44.1 kHz stereo",
    ),
    pytest.param(
        {"mic_rate": 16_000}, ["source.sample_rate=16000", "source.channels=1"], id="16 kHz mono"
    ),
]


@pytest.mark.parametrize(("pulse", "words"), CARDS, indirect=["pulse"])
def test_the_speaker_plays_what_the_graph_makes_of_the_microphone(
    pulse: Pulse, folder: Path, words: list[str]
) -> None:
    speech_N = babble(14.0, seed=5) + 0.02 * np.random.default_rng(0).standard_normal(14 * RATE)
    ear, feed = pulse.record("virt_speaker"), pulse.record("mic_feed")
    process = start(
        pulse,
        folder,
        *("source=mic", "sink=[speaker,file]", "graph=codec", "sink.file.stereo=true"),
        *(
            "source.duration_s=10",
            "sink.file.bits=32",
            "sink.speaker.buffer_min_ms=80",
            *DEVICES,
            *words,
        ),
    )
    shown = wait_ready(process)
    player = pulse.feed(speech_N.astype(np.float32))
    _, err = process.communicate(timeout=60)
    end(player)
    heard_in_room, fed = ear.stop(), feed.stop()

    assert process.returncode == 0, shown + err
    assert "ALSA" not in shown + err
    report, said_N, heard_N = results(folder)
    assert report["frames"] == 125
    assert report["sinks"]["speaker"]["underruns"] <= 1
    assert np.array_equal(offline(folder, heard_N), said_N)
    at_ear, at_mic = lag(heard_in_room, said_N[2 * RATE :]), lag(fed, heard_N[2 * RATE :])
    assert _latencies(heard_in_room, said_N) < FRAME
    measured_ms = (at_ear - at_mic) / RATE * 1000
    speaker, source = report["sinks"]["speaker"], report["source"]
    reported_ms = source["latency_ms"] + 80 + speaker["audible"]["p50_ms"]
    assert abs(measured_ms - reported_ms) < 80
    _times_are_in_order(folder)
    if not words:
        _same_sound(heard_in_room, said_N)


def _latencies(heard_N: npt.NDArray[np.float32], said_N: npt.NDArray[np.float32]) -> int:
    """By how many samples the delay of the seconds differs, one of them left out.

    Other work on the machine can cost one second its sound, see `_same_sound`; a delay that grows
    or a clock that runs off shows in the others.
    """
    about = lag(heard_N, said_N[2 * RATE :]) - 2 * RATE
    lags = []
    for second in range(2, 9):
        part_N = said_N[second * RATE : (second + 1) * RATE]
        begin = max(0, about + second * RATE - RATE // 2)
        near_N = heard_N[begin : begin + 2 * RATE]
        lags.append(begin + lag(near_N, part_N) - second * RATE)
    lags.sort()
    return min(lags[-2] - lags[0], lags[-1] - lags[1])


def _times_are_in_order(folder: Path) -> None:
    """Delivered, then ticked, node after node, then heard."""
    (path,) = (folder / "out").glob("*.times.jsonl")
    frames = [json.loads(line) for line in path.read_text().splitlines()]
    assert [frame["frame"] for frame in frames] == list(range(125))
    for frame in frames[1:-8]:  # the first is not valid in this graph, the last are not played yet
        encode, decode = frame["nodes"]["encode"], frame["nodes"]["decode"]
        start, end = frame["tick_ms"]
        times = [frame["delivered_ms"], start, *encode, *decode, end, frame["audible_ms"]]
        assert times == sorted(times)


def _same_sound(heard_N: npt.NDArray[np.float32], said_N: npt.NDArray[np.float32]) -> None:
    """What is heard in the room is what the file says was said, tenth by tenth of a second.

    Where other work holds the machine up, the sound server drops or the speaker fades, and what
    follows is pulled back into time: most tenths have to be right, not all.
    """
    about = lag(heard_N, said_N[2 * RATE :]) - 2 * RATE
    alike = []
    for begin in range(3 * RATE, 9 * RATE, RATE // 10):
        part_N = said_N[begin : begin + RATE // 10]
        near = max(0, about + begin - 2 * FRAME)
        at = near + lag(heard_N[near : near + 4 * FRAME + part_N.size], part_N)
        alike.append(np.corrcoef(heard_N[at : at + part_N.size], part_N)[0, 1])
    assert np.median(alike) > 0.98


def test_a_device_that_is_pulled_away_for_three_seconds_comes_back(
    pulse: Pulse, folder: Path
) -> None:
    process = start(
        pulse,
        folder,
        "source=mic",
        "sink=[speaker,file]",
        "graph=codec",
        "sink.file.stereo=true",
        "source.duration_s=6",
        *DEVICES,
    )
    wait_ready(process)
    player = pulse.feed(babble(30.0))
    time.sleep(2)
    pulse.stop()
    player.wait()
    time.sleep(3)
    pulse.start()
    player = pulse.feed(babble(30.0))
    _, err = process.communicate(timeout=60)
    end(player)

    assert process.returncode == 0, err
    assert "the microphone virt_mic is gone; trying again" in err
    assert "the microphone is back after" in err
    assert "ALSA" not in err
    assert "Expression" not in err
    report, _, _ = results(folder)
    assert report["frames"] == 75
    assert report["source"]["reopened"] == 1
    assert report["source"]["lost_s"] >= 2.5
    assert report["sinks"]["speaker"]["reopened"] == 1


def test_ctrl_c_is_how_a_conversation_ends(pulse: Pulse, folder: Path) -> None:
    process = start(
        pulse,
        folder,
        "source=mic",
        "sink=[speaker,file,transcript]",
        "sink.file.stereo=true",
        "seed=1",
        *DEVICES,
    )
    wait_ready(process)
    player = pulse.feed(babble(10.0))
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    end(player)

    assert process.returncode == 0, err
    assert "1 done" in out
    assert "live         " in out
    report, said_N, heard_N = results(folder)
    assert report["status"] == "done"
    assert said_N.size == heard_N.size > RATE
    assert np.abs(heard_N).max() > 0.05
    transcript = folder / "out" / f"{report['id']}.jsonl"
    assert transcript.stat().st_size > 0


def test_without_a_sound_card_the_error_is_short_and_quiet(folder: Path) -> None:
    environment = {k: v for k, v in Pulse(folder).environment.items() if k != "ALSA_CONFIG_PATH"}
    command = [sys.executable, "-m", "moshi_pipe", "source=mic", "sink=speaker"]
    done = subprocess.run(
        [*command, f"output_dir={folder}/out"],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )

    assert done.returncode == 6
    assert "moshi-pipe: this machine has no sound input" in done.stderr
    assert "ALSA" not in done.stderr
    assert "Traceback" not in done.stderr
