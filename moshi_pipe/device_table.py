"""``moshi-pipe devices``: the sound devices of this machine as a table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import BackendError, ConfigError
from moshi_pipe.nodes.portaudio import list_devices, portaudio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.nodes.portaudio import Device

NO_DEVICE: Final = (
    "plug one in; where PulseAudio or PipeWire runs, give it to ALSA: "
    "`sudo apt install libasound2-plugins` or `pipewire-alsa`. Files need no device: "
    "source.path=FILE"
)
"""What to do on a machine without a sound device."""

_SECTIONS: Final = (
    ("input", "Inputs: source=mic source.device=WHICH, an index or a part of a name"),
    ("output", "Outputs: sink=speaker sink.speaker.device=WHICH, likewise"),
)
_TITLES: Final = ("", "index", "channels", "rate in Hz", "host API", "name")
_RIGHT: Final = (1, 2, 3)  # columns of numbers
_GAP: Final = "  "


def devices(words: Sequence[str]) -> int:
    """List the sound devices; the command ``moshi-pipe devices``.

    Args:
        words: What follows the command: nothing.

    Returns:
        0.

    Raises:
        ConfigError: There are words.
        BackendError: PortAudio is missing, or there is no device at all.
    """
    if words:
        raise ConfigError("`moshi-pipe devices` takes no words", got=" ".join(words))
    with portaudio() as host:
        found = list_devices(host)
    if not found:
        raise BackendError(
            "this machine has no sound device", got="PortAudio lists none", fix=NO_DEVICE
        )
    encoding = sys.stdout.encoding or "utf-8"
    text = devices_text(found)
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    return 0


def devices_text(found: Sequence[Device]) -> str:
    """Inputs, then outputs, one device a line; ``*`` marks what is used when none is named.

    Names come last and whole: they are what a user copies, and some are very long.
    """
    sections = [
        "\n".join([title, *_table([d for d in found if d.channels(direction)], direction)])
        for direction, title in _SECTIONS
    ]
    has_default = any(device.default_input or device.default_output for device in found)
    last = "* is used when none is named" if has_default else "there is no default: name one"
    return "\n\n".join([*sections, last]) + "\n"


def one_line(name: str) -> str:
    """A device's name without what would break a line or move the cursor."""
    return "".join(c if c.isprintable() else "?" for c in name.strip()) or "(no name)"


def _table(found: Sequence[Device], direction: str) -> list[str]:
    if not found:
        return [f"  none: no device has a sound {direction}"]
    rows = [_TITLES, *(_row(device, direction) for device in found)]
    widths = [max(_width(row[i]) for row in rows) for i in range(len(_TITLES))]
    return [_GAP.join(map(_padded, range(len(row)), row, widths)).rstrip() for row in rows]


def _row(device: Device, direction: str) -> tuple[str, ...]:
    return (
        "*" if getattr(device, f"default_{direction}") else "",
        str(device.index),
        str(device.channels(direction)),
        str(device.sample_rate),
        one_line(device.host),
        one_line(device.name),
    )


def _padded(column: int, text: str, width: int) -> str:
    space = " " * (width - _width(text))
    return space + text if column in _RIGHT else text + space


def _width(text: str) -> int:
    """Places that a text takes in a terminal: a Chinese character takes two."""
    from rich.cells import cell_len

    return cell_len(text)
