"""Sound devices through PortAudio: which there are, how one is named, what its errors mean."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, ConfigError, closest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INSTALL: Final = (
    "install PortAudio and its binding: `sudo apt install portaudio19-dev gcc python3-dev` "
    "(macOS: `brew install portaudio`), then `pip install 'moshi-pipe[mic]'`"
)
_DIRECTIONS: Final = ("input", "output")

# PortAudio is one per process and takes one caller at a time. Some drivers never come back from
# closing a device that is gone; nobody waits for those longer than this.
_ALONE: Final = threading.Lock()
_ALONE_WITHIN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Device:
    """One sound device as PortAudio lists it.

    Attributes:
        index: PortAudio's number for it; changes when devices come and go.
        name: As the system names it.
        host: The system's sound interface, such as ALSA or Core Audio.
        max_inputs: Channels that can be recorded; 0 for a device that only plays.
        max_outputs: Channels that can be played.
        sample_rate: Its own rate in Hz.
        default_input: Whether it is recorded from when none is named.
        default_output: Whether it is played to when none is named.
    """

    index: int
    name: str
    host: str
    max_inputs: int
    max_outputs: int
    sample_rate: int
    default_input: bool = False
    default_output: bool = False

    def channels(self, direction: str) -> int:
        """Channels of ``input`` or ``output``."""
        return self.max_inputs if direction == "input" else self.max_outputs


def import_pyaudio() -> Any:
    """Return the module ``pyaudio``.

    Raises:
        BackendError: It or PortAudio is not installed; says how to install them.
    """
    try:
        import pyaudio
    except (ImportError, OSError) as error:
        raise BackendError(
            "the microphone and the speaker need PortAudio, which is not here",
            got=str(error),
            fix=INSTALL,
        ) from error
    return pyaudio


@contextmanager
def portaudio() -> Iterator[Any]:
    """Open PortAudio and close it again; what its drivers print on the way is not shown.

    Yields:
        A ``pyaudio.PyAudio``.

    Raises:
        BackendError: It is not installed or does not start.
    """
    pyaudio = import_pyaudio()
    try:
        with quiet():
            host = pyaudio.PyAudio()
    except OSError as error:
        raise BackendError("PortAudio does not start", got=str(error), fix=INSTALL) from error
    try:
        yield host
    finally:
        with quiet():
            host.terminate()


def list_devices(host: Any) -> list[Device]:
    """All devices of an open PortAudio, in its order."""
    defaults = [_default(host, direction) for direction in _DIRECTIONS]
    devices = []
    for index in range(host.get_device_count()):
        info = host.get_device_info_by_index(index)
        devices.append(
            Device(
                index=index,
                name=str(info["name"]),
                host=str(host.get_host_api_info_by_index(info["hostApi"])["name"]),
                max_inputs=int(info["maxInputChannels"]),
                max_outputs=int(info["maxOutputChannels"]),
                sample_rate=int(info["defaultSampleRate"]),
                default_input=index == defaults[0],
                default_output=index == defaults[1],
            )
        )
    return devices


def find_device(devices: Sequence[Device], wanted: str | int | None, direction: str) -> Device:
    """Choose a device.

    Args:
        devices: Those there are.
        wanted: An index, a part of a name (letter case does not matter; a whole name wins over a
            part, the first of several parts is taken), or None for the default.
        direction: ``input`` or ``output``.

    Raises:
        BackendError: There is no device at all in this direction, or no default.
        ConfigError: None is called so; lists those there are.
    """
    able = [device for device in devices if device.channels(direction)]
    listed = ", ".join(f"{device.index} ({device.name})" for device in able)
    if not able:
        raise BackendError(
            f"this machine has no sound {direction}",
            got=f"PortAudio lists {len(devices)} devices, none for {direction}",
            fix="plug one in, or see `moshi-pipe devices` for what is there",
        )
    if wanted is None:
        default = f"default_{direction}"
        chosen = next((device for device in able if getattr(device, default)), None)
        if chosen is None:
            raise BackendError(
                f"the system has no default sound {direction}",
                wanted=f"one of: {listed}",
                fix="choose one by index or name: see `moshi-pipe devices`",
            )
        return chosen
    text = str(wanted)
    if text.isdigit():
        found = [device for device in able if device.index == int(text)]
    else:
        low = text.casefold()
        found = [device for device in able if device.name.casefold() == low]
        found = found or [device for device in able if low in device.name.casefold()]
    if not found:
        raise ConfigError(
            f"there is no sound {direction} '{wanted}'",
            wanted=listed if text.isdigit() else closest(text, [d.name for d in able]),
            fix="see `moshi-pipe devices`",
        )
    return found[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Be the only one inside PortAudio while the block runs, and let its drivers write nothing.

    Sound drivers report on standard error every device that they try and do not find. What
    Python writes there in the meantime is lost too: keep the block short.
    """
    alone = _ALONE.acquire(timeout=_ALONE_WITHIN_S)
    try:
        with _silence():
            yield
    finally:
        if alone:
            _ALONE.release()


@contextmanager
def _silence() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def native_noise_apart() -> Iterator[None]:
    """Keep what C libraries write on standard error away from the terminal while the block runs.

    Unlike :func:`quiet` this is for long: Python's own ``sys.stderr`` still reaches the terminal.
    Does nothing where standard error is no file of the system, as in a notebook.
    """
    stderr = sys.stderr
    try:
        is_plain = stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        is_plain = False
    if not is_plain:
        yield
        return
    stderr.flush()
    with os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace") as terminal:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        sys.stderr = terminal
        try:
            yield
        finally:
            sys.stderr = stderr
            terminal.flush()
            os.dup2(terminal.fileno(), 2)


def _default(host: Any, direction: str) -> int | None:
    """Index of the default device; None when the system names none."""
    find = getattr(host, f"get_default_{direction}_device_info")
    try:
        return int(find()["index"])
    except OSError:
        return None
