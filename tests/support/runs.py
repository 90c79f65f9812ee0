"""Folders of runs as a run leaves them, made by hand: known numbers, and nothing is computed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

RATE = 24_000

Spans = list[tuple[float, float]]


def voice(spans: Spans, seconds: float, level: float = 0.3) -> npt.NDArray[np.float32]:
    """A tone in some spans of time, and silence between them. ``[N]``."""
    t = np.arange(round(seconds * RATE)) / RATE
    on = sum(((t >= begin) & (t < end)).astype(float) for begin, end in spans)
    return (level * np.sin(2 * np.pi * 220 * t) * on).astype(np.float32)


def write_run(
    folder: Path,
    *,
    seed: int = 1,
    temperature: float = 0.8,
    session: str = "talk",
    user: Spans | None = None,
    model: Spans | None = None,
    words: Sequence[tuple[float, float, str]] = (),
    metrics: Mapping[str, Any] | None = None,
    seconds: float = 4.8,
    status: str = "done",
) -> Path:
    """Write a run of one session and return its folder.

    Args:
        folder: Where.
        seed: Of the run.
        temperature: The only key that tests let differ.
        session: Its id.
        user: When the user speaks.
        model: When the model speaks.
        words: Begin, end and text of what the model says.
        metrics: What a metric sink measured; None leaves its file out.
        seconds: How long it lasts.
        status: How the session ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    heard = folder.parent / "in" / "talk.wav"
    heard.parent.mkdir(exist_ok=True)
    soundfile.write(heard, voice(user or [(0.0, 2.0)], seconds), RATE)
    spoken, written = folder / "talk.wav", folder / "talk.jsonl"
    soundfile.write(spoken, voice(model or [(2.4, 4.0)], seconds), RATE)
    lines = [{"start_s": a, "end_s": b, "text": text} for a, b, text in words]
    written.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    report = {
        "id": session,
        "status": status,
        "frames": round(seconds / 0.08),
        "audio_s": seconds,
        "wall_s": 1.0,
        "input": str(heard),
        "files": [str(spoken), str(written)],
        "sinks": {
            "file": {"sink": "file", "files": [str(spoken)]},
            "transcript": {"sink": "transcript", "files": [str(written)]},
        },
    }
    run = {
        "model": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "seed": seed,
        "output_dir": str(folder),
        "audio_s": seconds,
        "speed": seconds,
        "interrupted": False,
        "exit_code": 0,
        "signature": f"s{seed}-{temperature}",
        "nodes": [{"name": "encode", "mean_ms": 3.0}, {"name": "lm", "mean_ms": 4.5}],
        "timing": {
            "tick": [[5.0, 10], [10.0, 30], [20.0, 10]],
            "over_time": {"ticks_per_window": 1, "mean_ms": [8.0] * 50, "max_ms": [9.0] * 50},
        },
        "sessions": [report],
        "versions": {"moshi-pipe": "1.2.3"},
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (folder / "config.yaml").write_text(
        f"output_dir: {folder}\nseed: {seed}\nsampling: {{temperature: {temperature}}}\n"
        "sink: {file: {output: audio, stereo: false}}\n",
        encoding="utf-8",
    )
    if metrics is not None:
        (folder / f"{session}.metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder
