"""The codec in Rust at the released size, where slots take other ways through the layers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from rust_models import decode_all, encode_all, rust_codec, write_mimi

from moshi_pipe.models.spec import MimiSpec
from moshi_pipe.nn.mimi import Mimi

if TYPE_CHECKING:
    from moshi_pipe_rust.codec import RustCodec
    from torch import Tensor

SPEC = MimiSpec(num_codebooks=8)  # as many as a frame has; the released file has 32
NUM_FRAMES = 130  # 260 positions: the window of 250 is full
NUM_SLOTS = 3

_DIGEST = """
import hashlib, sys
from pathlib import Path
import torch
from rust_models import rust_codec
from test_codec_released import SPEC, noise, run_slots
codes, audio = run_slots(rust_codec(Path(sys.argv[1]), SPEC), noise(6, 2))
print(hashlib.sha256(codes.numpy().tobytes() + audio.numpy().tobytes()).hexdigest())
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mimi, Path]:
    reference = Mimi(SPEC)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in reference.state_dict().items():
        fill(name, tensor, generator)
    return reference, write_mimi(tmp_path_factory.mktemp("mimi"), reference)


@pytest.fixture(scope="module")
def pair(made: tuple[Mimi, Path]) -> tuple[Mimi, RustCodec]:
    reference, path = made
    rust = rust_codec(path, SPEC)
    reference.prepare()
    return reference, rust


def fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Random weights that keep activations of one size."""
    tensor.normal_(generator=generator)
    if name.endswith(("norm1.weight", "norm2.weight", "cluster_usage")):
        tensor.mul_(0.1).add_(1)
    elif name.endswith((".bias", ".scale")):
        tensor.mul_(0.05)
    elif not name.endswith(("embedding_sum", "_initialized")):
        tensor.mul_(1.5 / tensor[0].numel() ** 0.5)


def noise(num_frames: int, num_slots: int) -> Tensor:
    """``[frames, slots, 1, samples]``."""
    generator = torch.Generator().manual_seed(1)
    return 0.2 * torch.randn(num_frames, num_slots, 1, SPEC.frame_size, generator=generator)


def run_slots(codec: RustCodec, pcm_TBCN: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and audio of all slots, ``[frames, slots, ...]``."""
    count = pcm_TBCN.shape[1]
    encoder, decoder = codec.new_encoder_state(count), codec.new_decoder_state(count)
    valid_B = torch.ones(count, dtype=torch.bool)
    codes = [codec.encode(pcm_BCN, valid_B, encoder) for pcm_BCN in pcm_TBCN]
    audio = [codec.decode(codes_BK, valid_B, decoder) for codes_BK in codes]
    return torch.stack(codes), torch.stack(audio)


def test_codes_and_audio_are_equal(pair: tuple[Mimi, RustCodec]) -> None:
    reference, rust = pair
    frames = noise(NUM_FRAMES, 1)

    codes = encode_all(reference, frames)

    assert torch.equal(encode_all(rust, frames), codes)
    assert len(codes.unique(dim=0)) > NUM_FRAMES // 2  # else equality says little
    wanted, got = decode_all(reference, codes), decode_all(rust, codes)
    torch.testing.assert_close(got, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


def test_a_slot_does_not_depend_on_its_company(pair: tuple[Mimi, RustCodec]) -> None:
    _, rust = pair
    pcm_TBCN = noise(8, NUM_SLOTS)

    codes, audio = run_slots(rust, pcm_TBCN)

    for slot in range(NUM_SLOTS):
        alone = run_slots(rust, pcm_TBCN[:, slot : slot + 1])
        assert torch.equal(codes[:, slot], alone[0][:, 0])
        assert torch.equal(audio[:, slot], alone[1][:, 0])


def test_threads_change_no_bit(made: tuple[Mimi, Path]) -> None:
    _, path = made
    tests = Path(__file__).parent
    found = set()
    for threads in "123":
        search = os.pathsep.join([str(tests), str(tests.parents[2] / "tests")])
        env = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONPATH": search}
        command = [sys.executable, "-c", _DIGEST, str(path)]
        run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        found.add(run.stdout)

    assert len(found) == 1
