"""Send a recording to a server as if it were spoken, and keep what the model says.

    pip install websockets
    python examples/chat_client.py ws://127.0.0.1:8998 examples/question.wav answer.wav

The recording is a WAV file of 16 bits, mono. See docs/protocol.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import wave

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

RATE = 24_000
FRAME_S = 0.08


async def chat(url: str, rate: int, samples: bytes, answer: wave.Wave_write) -> str:
    """Hold the conversation; returns what the model said, and writes how it sounded."""
    address = f"{url.rstrip('/')}/api/chat?audio=pcm_s16le&rate={rate}"
    token = os.environ.get("MOSHI_PIPE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    said = ""
    speaking: asyncio.Task[None] | None = None
    async with connect(address, additional_headers=headers, max_size=None) as socket:
        try:
            while True:
                message = await socket.recv(decode=False)
                kind, payload = message[0], message[1:]
                if kind == 0:  # the handshake: now talk
                    speaking = asyncio.create_task(speak(socket, rate, samples))
                elif kind == 1:
                    answer.writeframes(payload)
                elif kind == 2:
                    said += payload.decode()
                elif kind == 4:
                    tell(json.loads(payload))
                elif kind == 5:
                    print(payload.decode(), file=sys.stderr)
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != 1000:
                raise
        finally:
            if speaking is not None:
                speaking.cancel()
    return said


async def speak(socket: ClientConnection, rate: int, samples: bytes) -> None:
    """Send the samples in real time, then say that there are no more."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    size = round(rate * FRAME_S) * 2
    for start in range(0, len(samples), size):
        await asyncio.sleep(due - loop.time())
        due += FRAME_S
        await socket.send(b"\x01" + samples[start : start + size])
    await socket.send(b"\x03\x01")


def tell(metadata: dict[str, object]) -> None:
    """Show what the server says about the conversation."""
    if metadata["type"] == "queue":
        print(f"{metadata['position']}. in line", file=sys.stderr)
    elif metadata["type"] == "session":
        print(metadata.get("server"), metadata.get("model"), file=sys.stderr)


def main() -> None:
    """Send, listen, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("recording")
    parser.add_argument("answer")
    options = parser.parse_args()
    with wave.open(options.recording) as recording, wave.open(options.answer, "wb") as answer:
        if (recording.getnchannels(), recording.getsampwidth()) != (1, 2):
            raise SystemExit("the recording must be mono, 16 bits")
        answer.setparams((1, 2, RATE, 0, "NONE", ""))
        samples = recording.readframes(recording.getnframes())
        print(asyncio.run(chat(options.url, recording.getframerate(), samples, answer)).strip())


if __name__ == "__main__":
    main()
