from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from rich.cells import cell_len

from moshi_pipe.device_table import devices, devices_text, one_line
from moshi_pipe.errors import BackendError, ConfigError
from moshi_pipe.nodes.portaudio import Device

MIC = Device(0, "USB mic", "ALSA", 1, 0, 16_000, default_input=True)
SPEAKER = Device(11, "Loudspeaker", "ALSA", 0, 2, 48_000, default_output=True)
BOTH = Device(2, "Headset", "PulseAudio", 1, 2, 44_100)


class FakePyAudio:
    """PortAudio with the devices of ``FakePyAudio.found``, set by :func:`install`."""

    found: tuple[Device, ...] = ()

    def get_device_count(self) -> int:
        return len(self.found)

    def get_device_info_by_index(self, index: int) -> dict[str, Any]:
        device = self.found[index]
        return {
            "name": device.name,
            "hostApi": index,
            "maxInputChannels": device.max_inputs,
            "maxOutputChannels": device.max_outputs,
            "defaultSampleRate": float(device.sample_rate),
        }

    def get_host_api_info_by_index(self, index: int) -> dict[str, Any]:
        return {"name": self.found[index].host}

    def get_default_input_device_info(self) -> dict[str, Any]:
        return self._default("default_input")

    def get_default_output_device_info(self) -> dict[str, Any]:
        return self._default("default_output")

    def terminate(self) -> None:
        pass

    def _default(self, field: str) -> dict[str, Any]:
        for index, device in enumerate(self.found):
            if getattr(device, field):
                return {"index": index}
        raise OSError("no default")


def install(monkeypatch: pytest.MonkeyPatch, *found: Device) -> None:
    module = ModuleType("pyaudio")
    module.PyAudio = type("PyAudio", (FakePyAudio,), {"found": found})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyaudio", module)


def test_inputs_come_before_outputs_with_a_star_at_the_defaults() -> None:
    lines = devices_text([MIC, SPEAKER, BOTH]).splitlines()

    assert lines == [
        "Inputs: source=mic source.device=WHICH, an index or a part of a name",
        "   index  channels  rate in Hz  host API    name",
        "*      0         1       16000  ALSA        USB mic",
        "       2         1       44100  PulseAudio  Headset",
        "",
        "Outputs: sink=speaker sink.speaker.device=WHICH, likewise",
        "   index  channels  rate in Hz  host API    name",
        "*     11         2       48000  ALSA        Loudspeaker",
        "       2         2       44100  PulseAudio  Headset",
        "",
        "* is used when none is named",
    ]


def test_the_command_lists_what_portaudio_lists(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, MIC, replace(SPEAKER, index=1))

    assert devices([]) == 0

    shown = capfd.readouterr().out
    assert shown == devices_text([MIC, replace(SPEAKER, index=1)])


def test_a_direction_without_devices_says_so() -> None:
    text = devices_text([SPEAKER])

    assert "likewise\n   index" in text
    assert "a name\n  none: no device has a sound input\n" in text


def test_without_a_default_a_user_is_told_to_name_one() -> None:
    text = devices_text([BOTH])

    assert "*" not in text
    assert text.endswith("\n\nthere is no default: name one\n")


def test_a_machine_without_devices_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)

    with pytest.raises(BackendError, match=r"^this machine has no sound device\n") as caught:
        devices([])

    assert "plug one in" in str(caught.value)
    assert "source.path=FILE" in str(caught.value)


def test_without_portaudio_a_user_is_told_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyaudio", None)

    with pytest.raises(BackendError, match="need PortAudio") as caught:
        devices([])

    assert "pip install 'moshi-pipe[mic]'" in str(caught.value)


def test_the_command_takes_no_words() -> None:
    with pytest.raises(ConfigError, match=r"^`moshi-pipe devices` takes no words\n  got:    all$"):
        devices(["all"])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("麦克风 (高清晰音频)", "麦克风 (高清晰音频)"),
        ("🎤 mic", "🎤 mic"),
        ("e\u0301couteurs", "e\u0301couteurs"),
        ("x" * 300, "x" * 300),
        ("two\nlines\tand \x1b[31mred", "two?lines?and ?[31mred"),
        ("half \ud83d", "half ?"),
        ("  ", "(no name)"),
    ],
    ids=["wide", "emoji", "combining", "long", "control", "surrogate", "empty"],
)
def test_odd_names_stay_whole_and_break_no_line(name: str, shown: str) -> None:
    lines = devices_text([replace(MIC, name=name), BOTH]).splitlines()

    assert one_line(name) == shown
    assert lines[2] == f"*      0         1       16000  ALSA        {shown}"
    assert len(lines) == 10


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    wide = replace(MIC, host="音频")

    lines = devices_text([wide, BOTH]).splitlines()[1:4]

    starts = [cell_len(line[: line.index(name)]) for line, name in zip(lines, NAMES, strict=True)]
    assert starts == [starts[0]] * 3


NAMES = ("name", "USB mic", "Headset")


def test_a_terminal_that_cannot_show_a_name_does_not_stop_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    install(monkeypatch, replace(MIC, name="麦克风"))
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert devices([]) == 0

    assert "ALSA      ???\n" in (tmp_path / "out").read_text(encoding="ascii")
