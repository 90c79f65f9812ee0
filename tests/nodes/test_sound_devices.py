"""Microphone, speaker and both in one, on a PortAudio that the test plays."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.sound import FakeDevice, FakeSound

from moshi_pipe.engine.clock import ManualClock
from moshi_pipe.errors import BackendError, ConfigError, MoshiPipeError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import SessionEnd, SessionInfo
from moshi_pipe.graph.packet import FrameTimes, Packet
from moshi_pipe.nodes.duplex import DuplexSource
from moshi_pipe.nodes.microphone import MicInput, MicSource
from moshi_pipe.nodes.options import DuplexOptions, MicOptions, SpeakerOptions
from moshi_pipe.nodes.portaudio import Device, find_device, list_devices, portaudio
from moshi_pipe.nodes.speaker import SpeakerSink

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MS = 1_000_000


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> FakeSound:
    """Two microphones and a speaker."""
    devices = [
        FakeDevice("Built-in Microphone", inputs=2),
        FakeDevice("USB Headset", inputs=1, outputs=2),
        FakeDevice("Speakers", inputs=0, outputs=2),
    ]
    return FakeSound(devices, default_input=0, default_output=2).install(monkeypatch)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 10))


def session_info() -> SessionInfo:
    formats = {"audio": Audio(24_000, 1920)}
    return SessionInfo("s", {"stem": "s"}, Path(), formats, 0.08, seed=0)


def block(value: float, num: int = 480, channels: int = 1) -> np.ndarray:
    return np.full((num, channels), value, np.float32)


# ---- which device


def devices() -> list[Device]:
    return [
        Device(0, "hw:0 Built-in", "ALSA", 2, 0, 48_000, default_input=True),
        Device(1, "USB Headset", "ALSA", 1, 2, 48_000),
        Device(2, "usb headset 2", "ALSA", 1, 2, 44_100, default_output=True),
    ]


@pytest.mark.parametrize(
    ("wanted", "direction", "index"),
    [
        (None, "input", 0),
        (None, "output", 2),
        ("1", "output", 1),
        (1, "input", 1),
        ("headset", "input", 1),
        ("HEADSET 2", "input", 2),
        ("usb headset", "output", 1),
    ],
)
def test_a_device_is_found_by_index_or_part_of_its_name(
    wanted: Any, direction: str, index: int
) -> None:
    assert find_device(devices(), wanted, direction).index == index


@pytest.mark.parametrize(
    ("wanted", "direction", "text"),
    [
        (
            "0",
            "output",
            "there is no sound output '0'\n  wanted: 1 (USB Headset), 2 (usb headset 2)",
        ),
        ("USB Hedset", "input", "did you mean 'USB Headset'?"),
    ],
)
def test_a_wrong_device_is_refused_with_those_there_are(
    wanted: str, direction: str, text: str
) -> None:
    with pytest.raises(ConfigError) as error:
        find_device(devices(), wanted, direction)

    assert text in str(error.value)
    assert "moshi-pipe devices" in str(error.value)


def test_no_device_and_no_default_are_told_apart() -> None:
    with pytest.raises(BackendError, match="has no sound output"):
        find_device(devices()[:1], None, "output")
    with pytest.raises(BackendError, match="no default sound input"):
        find_device(devices()[1:], None, "input")


def test_devices_are_listed_with_their_defaults(sound: FakeSound) -> None:
    with portaudio() as host:
        found = list_devices(host)

    assert [(d.name, d.default_input, d.default_output) for d in found] == [
        ("Built-in Microphone", True, False),
        ("USB Headset", False, False),
        ("Speakers", False, True),
    ]
    assert sound.hosts == 0


def test_a_missing_portaudio_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyaudio", None)

    with pytest.raises(BackendError) as error, portaudio():
        pass

    assert "apt install portaudio19-dev" in str(error.value)
    assert "brew install portaudio" in str(error.value)


# ---- the microphone


async def hear(
    sound: FakeSound, options: MicOptions, play: Callable[[MicSource, MicInput], Any]
) -> tuple[list[np.ndarray], MicInput]:
    """Open the microphone, let the test play the device, and collect what comes."""
    source = MicSource(options, ManualClock())
    got: list[np.ndarray] = []
    async for item in source.sessions():
        assert isinstance(item, MicInput)
        task = asyncio.create_task(_collect(item, got))
        await asyncio.sleep(0)
        result = play(source, item)
        if result is not None:
            await result
        await task
        return got, item
    raise AssertionError("no session")


async def _collect(item: MicInput, got: list[np.ndarray]) -> None:
    async for chunk in item.chunks():
        got.append(chunk)


def test_blocks_come_in_order_until_it_is_stopped(sound: FakeSound) -> None:
    def play(source: MicSource, _: MicInput) -> None:
        for i in range(5):
            assert sound.streams[0].hear(block(i / 10)) == sound.paContinue
        source.stop()

    got, item = run(hear(sound, MicOptions(), play))

    assert [float(chunk[0, 0]) for chunk in got] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert item.sample_rate == 24_000
    assert item.report()["device"] == "Built-in Microphone"
    assert sound.hosts == 0
    assert not sound.streams[0].is_open


def test_it_ends_on_the_sample_after_its_duration(sound: FakeSound) -> None:
    def play(source: MicSource, _: MicInput) -> None:
        for _i in range(5):
            sound.streams[0].hear(block(0.1))

    got, item = run(hear(sound, MicOptions(duration_s=0.05), play))

    assert sum(chunk.shape[1] for chunk in got) == 1200 == item.num_samples


def test_the_model_s_rate_comes_first_then_the_device_s(sound: FakeSound) -> None:
    sound.devices[0].rates = (48_000,)

    _, item = run(hear(sound, MicOptions(), lambda source, _: source.stop()))

    assert item.sample_rate == 48_000
    assert sound.streams[0].options["frames_per_buffer"] == 960


def test_channels_and_rate_as_asked(sound: FakeSound) -> None:
    options = MicOptions(sample_rate=44_100, channels=2, block_ms=10)

    def play(source: MicSource, _: MicInput) -> None:
        sound.streams[0].hear(np.stack([np.zeros(441), np.ones(441)], axis=1).astype(np.float32))
        source.stop()

    got, _ = run(hear(sound, options, play))

    assert got[0].shape == (2, 441)
    assert got[0].mean(axis=1).tolist() == [0, 1]


def test_mute_gives_silence_and_says_so(sound: FakeSound) -> None:
    async def play(source: MicSource, item: MicInput) -> None:
        press = source.keys()["m"].press
        for status in ("muted", ""):
            assert press() == status
            sound.streams[0].hear(block(0.5))
            await until(lambda: not item._blocks)
        source.stop()

    got, _ = run(hear(sound, MicOptions(), play))

    assert [float(chunk.max()) for chunk in got] == [0.0, 0.5]


def test_a_busy_device_and_a_broken_one_have_their_own_errors(sound: FakeSound) -> None:
    def refused(options: MicOptions) -> str:
        with pytest.raises(MoshiPipeError) as error:
            run(hear(sound, options, lambda *_: None))
        return str(error.value)

    sound.devices[0].error = OSError(-9985, "Device unavailable")
    assert "the microphone Built-in Microphone is busy" in refused(MicOptions())
    sound.devices[0].error = None
    assert "Invalid sample rate, asked for 11025 Hz" in refused(MicOptions(sample_rate=11_025))
    assert "there is no sound input '7'" in refused(MicOptions(device="7"))
    assert sound.hosts == 0


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks and threads go on until something is so."""
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


def test_a_device_that_vanishes_is_opened_again(
    sound: FakeSound, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()

    async def go() -> tuple[list[np.ndarray], MicInput]:
        source = MicSource(MicOptions(), clock)
        got: list[np.ndarray] = []
        item = await anext(source.sessions())
        assert isinstance(item, MicInput)
        task = asyncio.create_task(_collect(item, got))
        sound.streams[0].hear(block(0.1))
        await until(lambda: len(got) == 1 and bool(clock._sleepers))
        sound.devices[0].error = OSError(-9985, "Device unavailable")
        tries = sound.tries
        clock.advance(2_000 * MS)  # nothing was heard for two seconds
        for waited in range(1, 4):
            await until(lambda waited=waited: sound.tries == tries + waited)  # type: ignore[misc]
            await until(lambda: bool(clock._sleepers))
            clock.advance(8_000 * MS)
        sound.devices[0].error = None
        await until(lambda: item.report()["reopened"] == 1)
        sound.streams[1].hear(block(0.2))
        await until(lambda: len(got) == 2)
        source.stop()
        await task
        return got, item

    with caplog.at_level(logging.WARNING):
        got, item = run(go())

    assert [round(float(chunk[0, 0]), 1) for chunk in got] == [0.1, 0.2]
    assert item.report()["reopened"] == 1
    assert item.report()["lost_s"] >= 26
    assert "results leave that time out" in item.warnings[0]
    assert [r.getMessage().split(";")[0].split(" after")[0] for r in caplog.records] == [
        "the microphone Built-in Microphone is gone",
        "the microphone is back",
    ]


def test_overflows_are_counted(sound: FakeSound) -> None:
    def play(source: MicSource, _: MicInput) -> None:
        sound.streams[0].hear(block(0.1), flags=0x02)
        source.stop()

    _, item = run(hear(sound, MicOptions(), play))

    assert item.report()["overflows"] == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (MicOptions(duration_s=-1), "source.duration_s cannot be -1"),
        (MicOptions(block_ms=0), "block_ms of the microphone cannot be 0"),
        (MicOptions(channels=0), "channels of the microphone cannot be 0"),
        (MicOptions(sample_rate=-5), "sample_rate of the microphone cannot be -5"),
    ],
)
def test_options_without_sense_are_refused_at_once(options: MicOptions, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        MicSource(options)


# ---- the speaker


def packet(frame: int, value: float) -> Packet:
    return Packet(
        "audio",
        frame,
        frame * 80 * MS,
        np.full((1, 1920), value, np.float32),
        FrameTimes(delivered_ns=0, start_ns=0, end_ns=5 * MS, model_ns=4 * MS),
    )


def test_frames_are_played_after_the_reserve_on_all_channels(sound: FakeSound) -> None:
    clock = ManualClock()

    async def go() -> tuple[np.ndarray, Any]:
        sink = SpeakerSink(SpeakerOptions(channels=2, buffer_ms=20), clock)
        await sink.open(session_info())
        stream = sound.streams[0]
        heard = [stream.ask()]
        for frame in range(3):
            clock.advance(5 * MS)
            await sink.write(packet(frame, 0.25))
            for _ in range(4):
                heard.append(stream.ask())
                clock.advance(20 * MS)
        return np.concatenate(heard), await sink.close(SessionEnd(3, complete=False))

    heard, report = run(go())

    assert heard.shape[1] == 2
    assert np.array_equal(heard[:, 0], heard[:, 1])
    begin = int(np.argmax(heard[:, 0] > 0.2))
    assert 480 + 480 <= begin <= 480 + 3 * 480
    assert report["device"] == "Speakers"
    assert report["ours"]["count"] == 3
    assert report["audible"]["count"] >= 2
    assert sound.hosts == 0


def test_underruns_are_counted_and_the_end_is_none(sound: FakeSound) -> None:
    clock = ManualClock()

    async def go() -> tuple[int, Any]:
        sink = SpeakerSink(SpeakerOptions(), clock)
        await sink.open(session_info())
        await sink.write(packet(0, 0.1))
        for _ in range(20):
            sound.streams[0].ask()
            clock.advance(20 * MS)
        underruns = sink.num_underruns
        await sink.write(packet(1, 0.1))
        return underruns, await sink.close(SessionEnd(2, complete=False))

    underruns, report = run(go())

    assert underruns == 1
    assert report["underruns"] == 1
    assert report["gap_ms"] > 100


def test_recordings_wait_until_there_is_room(sound: FakeSound) -> None:
    clock = ManualClock()

    async def go() -> tuple[int, Any]:
        sink = SpeakerSink(SpeakerOptions(), clock)
        await sink.open(session_info())
        written = 0

        async def write() -> None:
            nonlocal written
            for frame in range(20):
                await sink.write(packet(frame, 0.1))
                written += 1

        task = asyncio.create_task(write())
        await until(lambda: bool(clock._sleepers) and written > 0)
        before = written
        while not task.done():
            sound.streams[0].ask()
            clock.advance(20 * MS)
            await asyncio.sleep(0)
        return before, await sink.close(SessionEnd(20, complete=False))

    before, report = run(go())

    assert before <= 6
    assert report["dropped_samples"] == 0
    assert report["underruns"] == 0


def test_samples_beyond_full_scale_are_clipped(sound: FakeSound) -> None:
    async def go() -> np.ndarray:
        sink = SpeakerSink(SpeakerOptions(buffer_ms=0, buffer_min_ms=0), ManualClock())
        await sink.open(session_info())
        await sink.write(packet(0, 7.0))
        heard = sound.streams[0].ask(1920)
        await sink.close(SessionEnd(1, complete=False))
        return heard

    assert run(go()).max() == 1.0


def test_a_sink_that_never_opened_closes_quietly() -> None:
    assert run(SpeakerSink(SpeakerOptions()).close(SessionEnd(0, complete=False))) == {}


# ---- both in one


def test_duplex_brings_its_speaker_and_ducks(sound: FakeSound) -> None:
    clock = ManualClock()

    async def go() -> list[np.ndarray]:
        source = DuplexSource(DuplexOptions(echo="duck", buffer_ms=0, buffer_min_ms=0), clock)
        item = await anext(source.sessions())
        assert isinstance(item, MicInput)
        got: list[np.ndarray] = []
        task = asyncio.create_task(_collect(item, got))
        (speaker,) = item.sinks
        assert isinstance(speaker, SpeakerSink)
        await speaker.open(session_info())
        microphone, loud = sound.streams
        loud.ask()
        microphone.hear(block(0.5))
        await speaker.write(packet(0, 0.5))
        for _ in range(3):
            loud.ask()
            microphone.hear(block(0.5))
        await until(lambda: not item._blocks)
        source.stop()
        await task
        await speaker.close(SessionEnd(1, complete=False))
        return got

    got = run(go())

    assert got[0][0, -1] == pytest.approx(0.5)
    assert got[-1][0, -1] == pytest.approx(0.5 * 0.03, rel=0.01)
    assert sound.hosts == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (DuplexOptions(echo="cancle"), "did you mean 'cancel'?"),
        (DuplexOptions(block_ms=15), "a multiple of 10"),
        (DuplexOptions(sample_rate=44_100), "16000, 24000, 32000, 48000"),
    ],
)
def test_options_of_duplex_are_checked(options: DuplexOptions, text: str) -> None:
    pytest.importorskip("pywebrtc_audio")
    with pytest.raises(ConfigError) as error:
        DuplexSource(options)

    assert text in str(error.value)
