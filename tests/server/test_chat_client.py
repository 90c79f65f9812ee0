"""The client that the protocol's page shows, as its user would run it."""

from __future__ import annotations

import asyncio
import sys
import wave
from pathlib import Path

import numpy as np
from support.edge import N, edge, run

CLIENT = Path(__file__).resolve().parents[2] / "examples" / "chat_client.py"


def test_the_example_sends_a_recording_and_keeps_the_answer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sent = rng.integers(-9000, 9000, 4 * N - 500).astype("<i2")
    with wave.open(str(tmp_path / "question.wav"), "wb") as question:
        question.setparams((1, 2, 24_000, 0, "NONE", ""))
        question.writeframes(sent.tobytes())

    async def talk() -> None:
        async with edge() as one:
            client = await asyncio.create_subprocess_exec(
                sys.executable,
                str(CLIENT),
                f"ws://127.0.0.1:{one.port}",
                "question.wav",
                "answer.wav",
                cwd=tmp_path,
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await client.communicate()
            assert client.returncode == 0
            assert said.decode().strip() == "▁0▁1▁2▁3"

    run(talk)
    with wave.open(str(tmp_path / "answer.wav")) as answer:
        got = np.frombuffer(answer.readframes(answer.getnframes()), "<i2")
    assert np.array_equal(got, -np.pad(sent, (0, 500)))
