"""Conversations as moshi-finetune reads them: stereo sound, and the words with their times.

Left is the model, right the user. Source: kyutai-labs/moshi-finetune, README.md, "Prepare dataset".
"""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from moshi_pipe_nano.codec_train import make_pools
from moshi_pipe_nano.conversation import Planner, Stage
from moshi_pipe_nano.espeak import SAMPLE_RATE
from moshi_pipe_nano.run import pick_device, set_up_torch

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe_nano.options import Options

FOLDER: Final = "data_stereo"
_LIST: Final = "data.jsonl"


def write_recordings(options: Options) -> None:
    """Write ``data.jsonl`` and ``data_stereo/``; the same options give the same bytes."""
    set_up_torch(options.threads)
    folder, data = Path(options.out), options.data
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    pools = make_pools(options, pick_device(options.device))
    planner = Planner(pools.own, pools.user, data.num_frames)
    stage = Stage(pools.own, pools.user, data.num_frames, options.seed)
    lines = []
    for i in range(data.num_conversations):
        rng = np.random.default_rng([options.seed, 9, i])
        plan = planner.draw(rng)
        path = folder / FOLDER / f"{i:06d}.wav"
        seconds = _write_wav(path, stage.sound([plan], rng)[0])
        words = {"alignments": stage.alignments(plan)}
        path.with_suffix(".json").write_text(json.dumps(words) + "\n", encoding="utf-8")
        lines.append(json.dumps({"path": f"{FOLDER}/{path.name}", "duration": seconds}))
    (folder / _LIST).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_wav(path: Path, sound_CN: Tensor) -> float:
    """Write 16-bit sound; returns its length in seconds."""
    pcm = (sound_CN.T.cpu().numpy() * 32_767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(pcm.shape[1])
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
    return len(pcm) / SAMPLE_RATE
