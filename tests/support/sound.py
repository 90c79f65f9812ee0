"""A PortAudio that is not there: devices, streams and their deaths, driven by the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import pytest


@dataclass
class FakeDevice:
    """What the fake lists, and what it does when it is opened."""

    name: str
    inputs: int = 1
    outputs: int = 0
    rate: int = 48_000
    rates: tuple[int, ...] = (24_000, 44_100, 48_000)
    error: OSError | None = None


@dataclass
class FakeSound:
    """Stands in for the module ``pyaudio``.

    Attributes:
        devices: In PortAudio's order.
        default_input: Index; None for none.
        default_output: Likewise.
        streams: All that were opened, in order.
        hosts: How many times PortAudio was started and not ended.
        tries: How many times a device was to be opened.
    """

    devices: list[FakeDevice] = field(default_factory=list)
    default_input: int | None = None
    default_output: int | None = None
    streams: list[FakeStream] = field(default_factory=list)
    hosts: int = 0
    tries: int = 0
    paFloat32: int = 1
    paContinue: int = 0
    paAbort: int = 2

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeSound:
        """Be what ``import pyaudio`` finds."""
        module = SimpleNamespace(
            PyAudio=lambda: FakeHost(self),
            paFloat32=self.paFloat32,
            paContinue=self.paContinue,
            paAbort=self.paAbort,
        )
        monkeypatch.setattr("moshi_pipe.nodes.portaudio.import_pyaudio", lambda: module)
        monkeypatch.setattr("moshi_pipe.nodes.sound_stream.import_pyaudio", lambda: module)
        return self


class FakeHost:
    """``pyaudio.PyAudio``."""

    def __init__(self, sound: FakeSound) -> None:
        self._sound = sound
        sound.hosts += 1

    def terminate(self) -> None:
        self._sound.hosts -= 1

    def get_device_count(self) -> int:
        return len(self._sound.devices)

    def get_host_api_info_by_index(self, index: int) -> dict[str, Any]:
        return {"name": "Fake"}

    def get_device_info_by_index(self, index: int) -> dict[str, Any]:
        device = self._sound.devices[index]
        return {
            "index": index,
            "name": device.name,
            "hostApi": 0,
            "maxInputChannels": device.inputs,
            "maxOutputChannels": device.outputs,
            "defaultSampleRate": float(device.rate),
        }

    def get_default_input_device_info(self) -> dict[str, Any]:
        return self._default(self._sound.default_input, "Input")

    def get_default_output_device_info(self) -> dict[str, Any]:
        return self._default(self._sound.default_output, "Output")

    def _default(self, index: int | None, direction: str) -> dict[str, Any]:
        if index is None:
            raise OSError(f"No Default {direction} Device Available")
        return self.get_device_info_by_index(index)

    def open(self, **options: Any) -> FakeStream:
        index = options.get("input_device_index", options.get("output_device_index"))
        assert index is not None
        device = self._sound.devices[index]
        self._sound.tries += 1
        if device.error is not None:
            raise device.error
        if options["rate"] not in device.rates:
            raise OSError(-9997, "Invalid sample rate")
        if options["channels"] > max(device.inputs, device.outputs):
            raise OSError(-9998, "Invalid number of channels")
        stream = FakeStream(options)
        self._sound.streams.append(stream)
        return stream


class FakeStream:
    """An open stream; the test plays the part of the device."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.is_open = False
        self.answer: tuple[Any, int] | None = None

    def start_stream(self) -> None:
        self.is_open = True

    def stop_stream(self) -> None:
        self.is_open = False

    def close(self) -> None:
        self.is_open = False

    def get_input_latency(self) -> float:
        return 0.02

    def get_output_latency(self) -> float:
        return 0.03

    def hear(self, samples_NC: npt.NDArray[np.float32], flags: int = 0) -> int:
        """Deliver a block."""
        self.answer = self.options["stream_callback"](
            np.ascontiguousarray(samples_NC).tobytes(), len(samples_NC), {}, flags
        )
        return self.answer[1]

    def ask(self, num: int | None = None, flags: int = 0) -> npt.NDArray[np.float32]:
        """Ask for a block, float32 ``[N, C]``."""
        num = num or self.options["frames_per_buffer"]
        data, _ = self.answer = self.options["stream_callback"](None, num, {}, flags)
        return np.frombuffer(data, np.float32).reshape(num, -1)
