"""A PulseAudio server with a virtual microphone and a virtual speaker, for whole live runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pathlib import Path

TOOLS = ("pulseaudio", "pactl", "pacat", "parec")
RATE = 24_000


def missing_tools() -> list[str]:
    """What is not installed."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


@dataclass
class Pulse:
    """A server in a folder of its own; the folder's path must be short, it holds a socket.

    Attributes:
        folder: Sockets, settings and logs.
        mic_rate: Hz of the microphone.
        mic_channels: Its channels.
        speaker_rate: Hz of the speaker.
    """

    folder: Path
    mic_rate: int = RATE
    mic_channels: int = 1
    speaker_rate: int = RATE
    _server: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For programs that shall use it."""
        folder = str(self.folder)
        return {
            **os.environ,
            "XDG_RUNTIME_DIR": folder,
            "PULSE_RUNTIME_PATH": f"{folder}/rt",
            "PULSE_STATE_PATH": f"{folder}/st",
            "HOME": folder,
            "PULSE_SERVER": f"unix:{folder}/pulse.sock",
            "ALSA_CONFIG_PATH": f"{folder}/asound.conf",
        }

    def start(self) -> Pulse:
        """Start the server and wait until it answers."""
        (self.folder / "rt").mkdir(exist_ok=True)
        (self.folder / "st").mkdir(exist_ok=True)
        socket = self.folder / "pulse.sock"
        mic = f"rate={self.mic_rate} channels={self.mic_channels} format=s16le norewinds=1"
        speaker = f"rate={self.speaker_rate} channels=1 format=s16le norewinds=1"
        (self.folder / "virtual.pa").write_text(
            f"load-module module-native-protocol-unix auth-anonymous=1 socket={socket}\n"
            f"load-module module-null-sink sink_name=mic_feed {mic}\n"
            "load-module module-remap-source master=mic_feed.monitor source_name=virt_mic\n"
            f"load-module module-null-sink sink_name=virt_speaker {speaker}\n"
            "set-default-sink virt_speaker\nset-default-source virt_mic\n"
        )
        server = f'type pulse server "unix:{socket}"'
        (self.folder / "asound.conf").write_text(
            f"pcm.!default {{ {server} }}\n"
            f'pcm.virt_mic {{ {server} device "virt_mic" }}\n'
            f'pcm.virt_speaker {{ {server} device "virt_speaker" }}\n'
        )
        command = [
            *("pulseaudio", "-n", "-F", str(self.folder / "virtual.pa")),
            *("--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"),
            *("--disable-shm=yes", "--log-target=stderr", "--log-level=error"),
        ]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, env=self.environment, stderr=log)
        for _ in range(100):
            ask = subprocess.run(["pactl", "info"], env=self.environment, capture_output=True)
            if ask.returncode == 0:
                return self
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def stop(self) -> None:
        """End the server; what uses it sees its devices vanish."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def feed(self, pcm_N: npt.NDArray[np.float32]) -> subprocess.Popen[bytes]:
        """Play mono samples at 24 kHz into the microphone."""
        path = self.folder / "feed.raw"
        (np.clip(pcm_N, -1, 1) * 32_767).astype("<i2").tofile(path)
        command = ["pacat", "--playback", "-d", "mic_feed", *_format(), str(path)]
        return subprocess.Popen(command, env=self.environment)

    def record(self, source: str) -> Recorder:
        """Record the monitor of ``mic_feed`` or ``virt_speaker``."""
        path = self.folder / f"{source}.raw"
        out = path.open("wb")
        command = ["parec", "-d", f"{source}.monitor", *_format()]
        process = subprocess.Popen(command, env=self.environment, stdout=out)
        return Recorder(process, path, out)


@dataclass
class Recorder:
    """A recording that goes on until it is stopped."""

    process: subprocess.Popen[bytes]
    path: Path
    out: IO[bytes]

    def stop(self) -> npt.NDArray[np.float32]:
        """End it and return its samples, float32 ``[N]`` at 24 kHz."""
        self.process.terminate()
        self.process.wait()
        self.out.close()
        samples_N: npt.NDArray[np.float32] = np.fromfile(self.path, "<i2").astype(np.float32)
        return samples_N / np.float32(32_768)


def end(player: subprocess.Popen[bytes]) -> None:
    """Stop a player, or see that it has stopped."""
    player.kill()
    player.wait()


def _format() -> list[str]:
    return ["--raw", f"--rate={RATE}", "--channels=1", "--format=s16le", "--latency-msec=20"]


def lag(long_N: npt.NDArray[np.float32], part_N: npt.NDArray[np.float32]) -> int:
    """Where a part lies in a longer recording, in samples, by cross-correlation."""
    size = 1 << (long_N.size + part_N.size).bit_length()
    product = np.fft.rfft(long_N, size) * np.conj(np.fft.rfft(part_N, size))
    at = int(np.argmax(np.fft.irfft(product, size)))
    return at if at < long_N.size else at - size
