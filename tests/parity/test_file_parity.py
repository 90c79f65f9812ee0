"""One checkpoint and one recording, through the reference package and through our command.

Greedy, float32, 30 s: text tokens and codes are equal with each first-frame policy. The recording
is spoken by espeak-ng; set ``MOSHI_PIPE_RECORDING`` to a 24 kHz mono WAV to take another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from moshi_pipe.cli import main
from moshi_pipe.models.checkpoint import ModelOptions, open_checkpoint
from moshi_pipe.models.make_checkpoint import make_checkpoint

FRAME = 1920
SPEECH = (
    "Hello there. Could you tell me how far it is from the station to the harbour? "
    "I would like to walk, if it does not rain. Yesterday we went to the market, and we bought "
    "some bread, a little cheese and two bottles of milk. My sister says that the concert begins "
    "at half past seven, so we should meet at seven at the latest. One, two, three, four, five. "
    "Please repeat the name of the street, and speak a little more slowly. "
    "Thank you very much, and good night."
)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At least 30 s of speech as a 24 kHz mono WAV."""
    given = os.environ.get("MOSHI_PIPE_RECORDING")
    if given:
        return Path(given)
    if shutil.which("espeak-ng") is None:
        pytest.fail("the parity suite needs espeak-ng (apt-get install espeak-ng)")
    import soxr

    folder = tmp_path_factory.mktemp("speech")
    spoken = folder / "spoken.wav"
    subprocess.run(["espeak-ng", "-s", "140", "-w", str(spoken), SPEECH], check=True)
    pcm, rate = soundfile.read(spoken, dtype="float32")
    path = folder / "recording.wav"
    soundfile.write(path, soxr.resample(pcm, rate, 24_000)[: 30 * 24_000 + 700], 24_000)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, preset="tiny", seed=3, dtype="float32")
    return folder


@pytest.mark.parametrize("policy", ["duplicate", "reset", "none"])
@pytest.mark.parametrize("numerics", ["reference", "fast"])
def test_the_command_writes_what_the_reference_generates(
    checkpoint: Path, recording: Path, tmp_path: Path, policy: str, numerics: str
) -> None:
    theirs = reference_run(checkpoint, recording, policy)

    exit_code = main(
        [
            "model=local",
            f"model.path={checkpoint}",
            "source=file",
            f"source.path={recording}",
            "sink=[codes]",
            "sampling=greedy",
            "dtype=float32",
            f"numerics={numerics}",
            f"first_frame={policy}",
            f"output_dir={tmp_path}",
        ]
    )
    made = load_file(tmp_path / f"{recording.stem}.safetensors")

    assert exit_code == 0
    num_frames = soundfile.info(recording).frames // FRAME
    assert num_frames >= 350 or "MOSHI_PIPE_RECORDING" in os.environ
    assert len(np.unique(theirs[:, 0])) > 10, "the text must vary for this test to mean anything"
    valid = made["valid"][:num_frames]
    first = int(np.argmax(valid))
    assert valid[first:].all()
    assert len(theirs) == num_frames - first
    assert np.array_equal(made["text"][first:num_frames], theirs[:, 0])
    assert np.array_equal(made["codes"][:, first:num_frames].T, theirs[:, 1:])


@torch.no_grad()
def reference_run(folder: Path, recording: Path, policy: str) -> np.ndarray:
    """Frames ``[T, 1 + K]`` of the reference package, driven as its programs drive it.

    ``duplicate`` is what ``moshi.run_inference`` does, ``reset`` what ``moshi.server`` does, and
    ``none`` steps every frame once.
    """
    from moshi.models.lm import LMGen

    torch.set_num_threads(1)
    mimi, lm = reference_models(folder)
    generator = LMGen(lm, use_sampling=False)
    pcm, _ = soundfile.read(recording, dtype="float32")
    frames = [pcm[i : i + FRAME] for i in range(0, len(pcm) - FRAME + 1, FRAME)]
    out = []
    with mimi.streaming(1), generator.streaming(1):
        for i, frame in enumerate(frames):
            codes = mimi.encode(torch.from_numpy(frame)[None, None])
            if i == 0 and policy == "duplicate":
                assert generator.step(codes) is None
            if i == 0 and policy == "reset":
                mimi.reset_streaming()
            tokens = generator.step(codes)
            if tokens is not None:
                out.append(tokens[0, :, 0].numpy())
    return np.stack(out)


def reference_models(folder: Path) -> tuple[Any, Any]:
    from moshi.models.loaders import CheckpointInfo

    ours = open_checkpoint(ModelOptions(path=str(folder)))
    config = folder / "reference_config.json"
    if not config.exists():
        config.write_text(_with_file_names(ours))
    info = CheckpointInfo.from_hf_repo("nowhere/nothing", config_path=config)
    return info.get_mimi(device="cpu"), info.get_moshi(device="cpu", dtype=torch.float32)


def _with_file_names(checkpoint: Any) -> str:
    import json

    config = dict(checkpoint.config.raw)
    folder = Path(checkpoint.lm_weights).parent
    for key in ("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name"):
        if config.get(key):
            config[key] = f"file://{folder / config[key]}"
    config.setdefault("moshi_name", f"file://{checkpoint.lm_weights}")
    return json.dumps(config)
