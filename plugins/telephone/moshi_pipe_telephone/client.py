"""The other end of a call: plays a recording into it and keeps what comes back.

For trying ``source=telephone`` without a telephone.

Shape letters: N PCM sample.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.errors import ConfigError, InputError, OutputError
from moshi_pipe.units import NS_PER_MS
from moshi_pipe_telephone import mulaw
from moshi_pipe_telephone.call import PACKET

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKET_MS: Final = 20
_TAIL_S: Final = 2.0  # silence after the recording, for the answer
_SID: Final = "MZ00000000000000000000000000000000"
_TOKEN: Final = "MOSHI_PIPE_TELEPHONE_TOKEN"


def main(words: Sequence[str]) -> int:
    """Run ``moshi-pipe phone``; returns the exit code.

    Raises:
        ConfigError: Not three words.
        MoshiPipeError: The recording, the server or the result cannot be used.
    """
    if len(words) != 3:
        raise ConfigError(
            "moshi-pipe phone takes three words",
            got=" ".join(words) or "none",
            wanted="URL IN.wav OUT.wav, such as ws://127.0.0.1:8765/media question.wav answer.wav",
        )
    url, source, target = words
    said = mulaw.encode(_read(Path(source)))
    heard = asyncio.run(call(url, said, token=os.environ.get(_TOKEN, "")))
    _write(Path(target), heard)
    sys.stdout.write(f"{len(heard) / mulaw.SAMPLE_RATE:.2f} s of answer in {target}\n")
    return 0


async def call(url: str, said: bytes, *, token: str = "", clock: Clock | None = None) -> bytes:
    """Call a server as Twilio does, in real time, and hang up after the recording and a pause.

    Args:
        url: Of the server.
        said: What the caller says, mu-law at 8 kHz.
        token: Sent as the custom parameter ``token``; empty for none.
        clock: Paces the packets.

    Returns:
        What came back, mu-law at 8 kHz.

    Raises:
        InputError: The server cannot be reached, or ends the call before its time.
    """
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, ConnectionClosedError, WebSocketException

    said += bytes([mulaw.SILENCE]) * round(_TAIL_S * mulaw.SAMPLE_RATE)
    try:
        async with connect(url, ping_interval=None, max_size=None) as connection:
            speaking = asyncio.create_task(_speak(connection, said, token, clock or SystemClock()))
            heard = bytearray()
            try:
                async for data in connection:
                    message = json.loads(data)
                    if message["event"] == "media":
                        heard += base64.b64decode(message["media"]["payload"])
                    elif message["event"] == "mark":  # heard at once: nothing is played here
                        await connection.send(data)
            except ConnectionClosedError as error:
                reason = error.rcvd.reason if error.rcvd is not None else str(error)
                raise InputError(f"{url} ended the call", got=reason) from error
            finally:
                speaking.cancel()
                await asyncio.gather(speaking, return_exceptions=True)
            return bytes(heard)
    except (OSError, WebSocketException) as error:
        if isinstance(error, ConnectionClosed):
            raise InputError(f"{url} ended the call", got=str(error)) from error
        raise InputError(
            f"cannot call {url}",
            got=str(error),
            fix="start it with `moshi-pipe source=telephone`",
        ) from error


async def _speak(connection: Any, said: bytes, token: str, clock: Clock) -> None:
    """Say who calls, then a packet every 20 ms, then good-bye."""
    start = {
        "streamSid": _SID,
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"token": token} if token else {},
    }
    await _say(connection, "connected", protocol="Call", version="1.0.0")
    await _say(connection, "start", streamSid=_SID, start=start)
    at_ns = clock.now_ns()
    for number, at in enumerate(range(0, len(said), PACKET), 1):
        part = {
            "track": "inbound",
            "chunk": str(number),
            "timestamp": str((number - 1) * _PACKET_MS),
            "payload": base64.b64encode(said[at : at + PACKET]).decode(),
        }
        await _say(connection, "media", streamSid=_SID, media=part)
        at_ns += _PACKET_MS * NS_PER_MS
        await clock.sleep_until(at_ns)
    await _say(connection, "stop", streamSid=_SID, stop={})


async def _say(connection: Any, event: str, **rest: Any) -> None:
    await connection.send(json.dumps({"event": event, **rest}))


def _read(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A recording as the telephone hears it, float32 ``[N]`` at 8 kHz."""
    import soxr

    from moshi_pipe.nodes.audio_reader import probe, read

    properties = probe(path)
    parts = [piece_CN.mean(axis=0, dtype=np.float32) for piece_CN in read(path, properties)]
    if not parts:
        raise InputError(f"{path} has no audio")
    resampled_N: np.ndarray[Any, np.dtype[np.float32]] = soxr.resample(
        np.concatenate(parts), properties.sample_rate, mulaw.SAMPLE_RATE
    )
    return resampled_N


def _write(path: Path, heard: bytes) -> None:
    import soundfile

    try:
        soundfile.write(path, mulaw.decode(heard), mulaw.SAMPLE_RATE, subtype="PCM_16")
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise OutputError(f"cannot write {path}", got=str(error)) from error
