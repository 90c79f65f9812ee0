"""The sink over known layouts, with a model that hears loudness; then silero's on speech."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import torch
from moshi_pipe_vad.detector import Detector
from moshi_pipe_vad.options import VadOptions
from moshi_pipe_vad.sink import VadSink

from moshi_pipe.errors import ConfigError, OutputError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo
from moshi_pipe.graph.packet import Packet
from moshi_pipe.metrics.activity import load_silero

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

RATE, FRAME = 24_000, 1920
FORM = Audio(RATE, FRAME)
WINDOW_S = 0.032


class Loudness:
    """Stands in for the model: what is loud is speech."""

    def reset_states(self) -> None:
        """It has none."""

    def __call__(self, window_N: torch.Tensor, sample_rate: int) -> torch.Tensor:
        assert (len(window_N), sample_rate) == (512, 16_000)
        return (window_N.square().mean().sqrt() > 0.05).float()


def talk(seconds: float, *spans: tuple[float, float]) -> npt.NDArray[np.float32]:
    """A tone in the spans, silence elsewhere, ``[N]`` at 24 kHz."""
    t = np.arange(round(seconds * RATE)) / RATE
    heard = np.any([(start <= t) & (t < end) for start, end in spans], axis=0) if spans else 0
    return (0.5 * np.sin(2 * np.pi * 300 * t) * heard).astype(np.float32)


def session(folder: Path, *, lead_s: float = 0.0, model: bool = True) -> SessionInfo:
    formats = {"user_audio": FORM, "audio": FORM} if model else {"user_audio": FORM}
    return SessionInfo("s", {"stem": "s"}, folder, formats, FRAME / RATE, 0, lead_s=lead_s)


async def play(
    sink: VadSink,
    info: SessionInfo,
    sides: Mapping[str, npt.NDArray[np.float32]],
    *,
    lost: frozenset[int] = frozenset(),
    end: SessionEnd | None = None,
) -> Mapping[str, Any]:
    """Write both sides frame by frame, without those that are lost, and close."""
    await sink.open(info)
    frames = len(sides["user_audio"]) // FRAME
    for frame in range(frames):
        for output, pcm_N in sides.items():
            if frame not in lost:
                samples = pcm_N[None, frame * FRAME : (frame + 1) * FRAME]
                await sink.write(Packet(output, frame, frame * 80_000_000, samples))
    return await sink.close(end or SessionEnd(frames))


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "s.turns.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def options(**changes: Any) -> VadOptions:
    return VadOptions(**{"pad_ms": 0, **changes})


def test_both_sides_their_turns_and_their_overlap_are_written(tmp_path: Path) -> None:
    sides = {
        "user_audio": talk(8, (1, 2), (5, 6)),
        "audio": talk(8, (2.5, 4), (5.5, 7)),
    }

    report = asyncio.run(play(VadSink(options(), Loudness), session(tmp_path), sides))

    written = lines(tmp_path)
    spoken = [line for line in written if line["event"] == "segment"]
    wanted = [("user", 1, 2), ("model", 2.5, 4), ("user", 5, 6), ("model", 5.5, 7)]
    assert [line["speaker"] for line in spoken] == [speaker for speaker, _, _ in wanted]
    for line, (_, start_s, end_s) in zip(spoken, wanted, strict=True):
        assert line["start_s"] == pytest.approx(start_s, abs=WINDOW_S)
        assert line["end_s"] == pytest.approx(end_s, abs=WINDOW_S)
    turns = [line for line in written if line["event"] == "turn"]
    assert [(turn["speaker"], turn["after"]) for turn in turns] == [
        ("user", None),
        ("model", "user"),
        ("user", "model"),
        ("model", "user"),
    ]
    assert turns[1]["gap_ms"] == pytest.approx(500, abs=2000 * WINDOW_S)
    assert turns[3]["gap_ms"] == pytest.approx(-500, abs=2000 * WINDOW_S)
    (overlap,) = (line for line in written if line["event"] == "overlap")
    assert (overlap["speaker"], overlap["took_turn"]) == ("model", True)
    assert report["turns"] == 4
    assert report["responses"] == 2
    assert report["overlap_s"] == pytest.approx(0.5, abs=2 * WINDOW_S)
    assert report["user"]["speech_s"] == pytest.approx(2.0, abs=0.1)
    assert report["files"] == [str(tmp_path / "s.turns.jsonl")]


def test_a_word_in_between_that_ends_first_takes_no_turn(tmp_path: Path) -> None:
    sides = {"user_audio": talk(7, (1, 5)), "audio": talk(7, (2, 3))}

    asyncio.run(play(VadSink(options(), Loudness), session(tmp_path), sides))

    events = [(line["event"], line["speaker"]) for line in lines(tmp_path)]
    assert events == [
        ("segment", "model"),
        ("segment", "user"),
        ("turn", "user"),
        ("overlap", "model"),
    ]
    assert lines(tmp_path)[3]["took_turn"] is False


def test_short_pauses_belong_to_a_segment_and_short_noises_are_none(tmp_path: Path) -> None:
    sides = {"user_audio": talk(5, (1, 2), (2.2, 3), (4, 4.1)), "audio": talk(5)}

    asyncio.run(play(VadSink(options(), Loudness), session(tmp_path), sides))

    (segment,) = (line for line in lines(tmp_path) if line["event"] == "segment")
    assert segment["start_s"] == pytest.approx(1, abs=WINDOW_S)
    assert segment["end_s"] == pytest.approx(3, abs=WINDOW_S)


def test_frames_that_were_dropped_are_silence_and_times_stay_right(tmp_path: Path) -> None:
    sides = {"user_audio": talk(6, (0, 3), (4.5, 5.5)), "audio": talk(6)}
    lost = frozenset(range(13, 38))  # 1.04 s to 3.04 s

    asyncio.run(play(VadSink(options(), Loudness), session(tmp_path), sides, lost=lost))

    spoken = [line for line in lines(tmp_path) if line["event"] == "segment"]
    assert [line["start_s"] for line in spoken] == pytest.approx([0, 4.5], abs=WINDOW_S)
    assert spoken[0]["end_s"] == pytest.approx(1.04, abs=2 * WINDOW_S)


def test_times_are_those_of_the_input_without_the_silence_put_before_it(tmp_path: Path) -> None:
    sides = {"user_audio": talk(4, (1.5, 3)), "audio": talk(4)}

    info = session(tmp_path, lead_s=1.0)
    asyncio.run(play(VadSink(options(), Loudness), info, sides))

    assert lines(tmp_path)[0]["start_s"] == pytest.approx(0.5, abs=WINDOW_S)
    assert lines(tmp_path)[1]["start_s"] == pytest.approx(0.5, abs=WINDOW_S)


def test_speech_that_lasts_to_the_end_ends_with_the_input(tmp_path: Path) -> None:
    sides = {"user_audio": talk(2, (1, 2)), "audio": talk(2)}
    end = SessionEnd(25, padding_s=0.05)

    asyncio.run(play(VadSink(options(), Loudness), session(tmp_path), sides, end=end))

    assert lines(tmp_path)[0]["end_s"] == pytest.approx(1.95, abs=0.001)


def test_a_line_is_on_disk_before_the_session_ends(tmp_path: Path) -> None:
    sink = VadSink(options(), Loudness)
    user_N, model_N = talk(4, (0.5, 1.5)), talk(4, (2, 3))

    async def go() -> list[int]:
        await sink.open(session(tmp_path))
        sizes = []
        for frame in range(50):
            for output, pcm_N in (("user_audio", user_N), ("audio", model_N)):
                samples = pcm_N[None, frame * FRAME : (frame + 1) * FRAME]
                await sink.write(Packet(output, frame, 0, samples))
            sizes.append(len(lines(tmp_path)))
        await sink.close(SessionEnd(50, complete=False))
        return sizes

    sizes = asyncio.run(go())

    assert sizes[17] == 0  # 1.44 s: the user still speaks
    assert sizes[24] == 2  # 2.0 s: segment and turn of the user
    assert sizes[49] == 4  # 4.0 s: those of the model too


def test_a_graph_without_a_voice_gives_the_user_alone(tmp_path: Path) -> None:
    sides = {"user_audio": talk(3, (1, 2))}

    info = session(tmp_path, model=False)
    report = asyncio.run(play(VadSink(options(), Loudness), info, sides))

    assert report["user"]["segments"] == 1
    assert "model" not in report


def test_a_session_that_never_began_leaves_no_file(tmp_path: Path) -> None:
    async def go() -> Mapping[str, Any]:
        sink = VadSink(options(), Loudness)
        await sink.open(session(tmp_path))
        return await sink.close(SessionEnd(0, complete=False))

    assert asyncio.run(go())["files"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_pass_on_what_it_hears_is_refused(tmp_path: Path) -> None:
    info = SessionInfo("s", {"stem": "s"}, tmp_path, {"audio": FORM}, 0.08, 0)

    with pytest.raises(ConfigError, match=r"^sink=vad needs the output 'user_audio'"):
        asyncio.run(VadSink(options(), Loudness).open(info))


def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    sink = VadSink(options(), Loudness)
    (tmp_path / "s.turns.jsonl").symlink_to("/dev/full")
    info = session(tmp_path)
    monkeypatch.setattr(sink, "outputs", lambda _: [tmp_path / "s.turns.jsonl"])

    with pytest.raises(OutputError, match="cannot write"):
        asyncio.run(play(sink, info, {"user_audio": talk(3, (0, 1)), "audio": talk(3)}))
    with pytest.raises(OutputError, match="cannot write"):
        asyncio.run(sink.close(SessionEnd(37, complete=False)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 0.1}, r"^sink\.vad\.threshold cannot be 0\.1"),
        ({"threshold": 1.0}, r"^sink\.vad\.threshold cannot be 1\.0"),
        ({"min_silence_ms": -1}, r"^sink\.vad\.min_silence_ms cannot be -1"),
        ({"pad_ms": -5}, r"^sink\.vad\.pad_ms cannot be -5"),
    ],
)
def test_options_that_no_speech_could_meet_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        VadSink(options(**changes))


def test_any_chunking_gives_the_same_segments() -> None:
    pcm_N = talk(6, (0.5, 1.7), (2.4, 3.3), (4, 5.9))
    found = []
    for size in (FRAME, 777, 20_000):
        detector = Detector(options(), RATE, Loudness)
        segments = []
        for at in range(0, pcm_N.size, size):
            segments += detector.push(pcm_N[at : at + size])
        found.append(segments + detector.finish())

    assert len(found[0]) == 3
    assert found[0] == found[1] == found[2]


def test_what_lists_the_sink_imports_nothing_heavy() -> None:
    code = (
        "import sys, moshi_pipe_vad.sink, moshi_pipe_vad.options\n"
        "print([m for m in ('numpy', 'torch', 'silero_vad') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_model_leaves_the_threads_of_torch_alone() -> None:
    code = (
        "import torch; torch.set_num_threads(3)\n"
        "from moshi_pipe.metrics.activity import load_silero; load_silero()\n"
        "print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "3"


def speech(text: str) -> npt.NDArray[np.float32]:
    """Synthesized, at 24 kHz."""
    import soxr

    said = subprocess.run(["espeak-ng", "--stdout", text], capture_output=True, check=True).stdout
    pcm_N, rate = soundfile.read(io.BytesIO(said), dtype="float32")
    resampled_N: npt.NDArray[np.float32] = soxr.resample(pcm_N, rate, RATE)
    loud = np.flatnonzero(np.abs(resampled_N) > 0.02)
    return resampled_N[loud[0] : loud[-1]]


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng makes the speech")
def test_silero_finds_speech_of_both_sides_and_no_noise(tmp_path: Path) -> None:
    question_N = speech("Good morning, how are you today? I would like a cup of tea.")
    answer_N = speech("Of course. Would you like some milk with it, or sugar perhaps?")
    question_s, answer_s = question_N.size / RATE, answer_N.size / RATE
    rng = np.random.default_rng(0)
    seconds = 4 + question_s + answer_s
    user_N, model_N = (
        0.002 * rng.standard_normal(round(seconds * RATE)).astype(np.float32) for _ in range(2)
    )
    at_s = 1.0
    user_N[round(at_s * RATE) : round(at_s * RATE) + question_N.size] += question_N
    reply_s = at_s + question_s + 0.8
    model_N[round(reply_s * RATE) : round(reply_s * RATE) + answer_N.size] += answer_N

    sides = {"user_audio": user_N, "audio": model_N}
    report = asyncio.run(play(VadSink(VadOptions()), session(tmp_path), sides))

    written = lines(tmp_path)
    users = [e for e in written if e["event"] == "segment" and e["speaker"] == "user"]
    models = [e for e in written if e["event"] == "segment" and e["speaker"] == "model"]
    assert users[0]["start_s"] == pytest.approx(at_s, abs=0.15)
    assert users[-1]["end_s"] == pytest.approx(at_s + question_s, abs=0.3)
    assert models[0]["start_s"] == pytest.approx(reply_s, abs=0.15)
    assert models[-1]["end_s"] == pytest.approx(reply_s + answer_s, abs=0.3)
    assert report["turns"] == 2
    assert report["response_median_ms"] == pytest.approx(800, abs=300)
    assert report["overlaps"] == 0


def test_the_sides_have_models_of_their_own() -> None:
    window_N = torch.from_numpy(np.random.default_rng(1).standard_normal(512).astype(np.float32))
    one, other = load_silero(), load_silero()

    first = float(one(window_N, 16_000).item())
    one(window_N * 0.1, 16_000)

    assert float(other(window_N, 16_000).item()) == first


def test_a_whole_run_writes_the_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moshi_pipe.cli import main

    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "talk.wav", talk(2.0, (0.5, 1.5)), RATE)

    assert (
        main(["model=embedded", "graph=codec", "source.path=talk.wav", "sink=[vad]", "seed=1"]) == 0
    )

    report = json.loads(Path("moshi-out/talk.session.json").read_text(encoding="utf-8"))
    assert report["sinks"]["vad"]["files"] == [str(tmp_path / "moshi-out" / "talk.turns.jsonl")]
    assert Path("moshi-out/talk.turns.jsonl").is_file()
