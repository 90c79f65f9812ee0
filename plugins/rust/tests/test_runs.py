"""Whole runs with ``backend=rust``, from the command line to results."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from rust_gguf import write_gguf
from rust_models import candle_names
from safetensors.torch import load_file, save_file

from moshi_pipe.cli import main
from moshi_pipe.models.checkpoint import ModelOptions, embedded_folder, read_specs

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def run(folder: Path, *words: str) -> tuple[dict[str, Tensor], np.ndarray, str]:
    """Codes, audio and transcript of a sampled run over four seconds of silence."""
    chosen = [
        "model=embedded",
        "source=silence",
        "source.duration_s=4",
        "seed=1",
        "sink=[file,codes,transcript]",
    ]
    assert main([*chosen, f"output_dir={folder}", *words]) == 0
    codes = load_file(folder / "silence-0.safetensors")
    audio, _ = soundfile.read(folder / "silence-0.wav")
    return codes, audio, (folder / "silence-0.jsonl").read_text()


@pytest.fixture(scope="module")
def candle_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in candle's forms."""
    folder = tmp_path_factory.mktemp("candle")
    shutil.copytree(embedded_folder(), folder, dirs_exist_ok=True)
    config, _ = read_specs(ModelOptions())
    assert config.lm is not None
    tensors = candle_names(load_file(folder / "model.safetensors"), config.lm)
    save_file(tensors, folder / "candle.safetensors")
    save_file(write_gguf(folder / "model.q8.gguf", tensors), folder / "values.safetensors")
    return folder


def test_a_sampled_run_equals_that_on_torch(tmp_path: Path, candle_model: Path) -> None:
    wanted = run(tmp_path / "torch", "backend=torch")
    runs = [
        run(tmp_path / "rust", "backend=rust"),
        run(
            tmp_path / "candle",
            "backend=rust",
            "model=local",
            f"model.path={candle_model}",
            f"model.lm_file={candle_model}/candle.safetensors",
        ),
        run(tmp_path / "mixed", "backend=torch", "codec_backend=rust"),
    ]

    for got in runs:
        assert got[0].keys() == wanted[0].keys()
        assert all((got[0][name] == wanted[0][name]).all() for name in wanted[0])
        np.testing.assert_allclose(got[1], wanted[1], atol=2 / 32768)
        assert got[2] == wanted[2]


def test_a_gguf_file_runs_from_the_command_line(tmp_path: Path, candle_model: Path) -> None:
    words = ["backend=rust", "model=local", f"model.path={candle_model}"]
    values = run(tmp_path / "v", *words, f"model.lm_file={candle_model}/values.safetensors")
    quantized = run(
        tmp_path / "q", *words, "quant=int8", f"model.lm_file={candle_model}/model.q8.gguf"
    )

    # Products with 8-bit blocks round their inputs to 16 bits. Where two of the embedded model's
    # random logits are as near as that, they change ranks, draws go to others, and runs part.
    for name, wanted in values[0].items():
        assert quantized[0][name].shape == wanted.shape
        assert (quantized[0][name][..., :10] == wanted[..., :10]).all()
