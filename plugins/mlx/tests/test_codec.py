"""The codec on MLX is the one on torch: codes, sound, slots, masks, resets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("mlx.core", reason="MLX cannot be imported", exc_type=ImportError)

import mlx.core as mx
import torch
from mlx_models import TINY_MIMI, open_codecs, random_tensors, write_mimi
from moshi_pipe_mlx.codec import Mimi
from moshi_pipe_mlx.place import Place

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.layout import mimi_layout
from moshi_pipe.models.random_weights import mimi_fill
from moshi_pipe.models.spec import MimiSpec
from moshi_pipe.nn.mimi import Mimi as TorchMimi

if TYPE_CHECKING:
    from pathlib import Path

Codecs = tuple[Any, Any]
"""The same codec on MLX and on torch."""

WINDOW_FRAMES = TINY_MIMI["transformer"]["context"] // 2
FRAME = 32


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> Codecs:
    return open_codecs(write_mimi(tmp_path_factory.mktemp("mimi"), TINY_MIMI))


def sound(num_slots: int, num_frames: int, frame: int = FRAME) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pcm_BCN = torch.rand(num_slots, 1, num_frames * frame, generator=generator) - 0.5
    return list(pcm_BCN.split(frame, -1))


def assert_near(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max().item() < 1e-5 * theirs.abs().max().item()


@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_stream_equals_torch_past_its_window(num_slots: int, codecs: Codecs) -> None:
    valid_B = torch.ones(num_slots, dtype=torch.bool)
    encoders = [codec.new_encoder_state(num_slots) for codec in codecs]
    decoders = [codec.new_decoder_state(num_slots) for codec in codecs]
    seen = set()

    for pcm_BCN in sound(num_slots, 4 * WINDOW_FRAMES):
        both = list(zip(codecs, encoders, decoders, strict=True))
        codes = [codec.encode(pcm_BCN, valid_B, encoder) for codec, encoder, _ in both]
        assert torch.equal(codes[0], codes[1])
        assert_near(*[codec.decode(codes[0], valid_B, decoder) for codec, _, decoder in both])
        seen |= set(codes[0].flatten().tolist())

    assert len(seen) > 12  # of 24


def test_idle_and_reset_slots_leave_the_others_alone(codecs: Codecs) -> None:
    num_slots = 4
    encoders = [codec.new_encoder_state(num_slots) for codec in codecs]
    decoders = [codec.new_decoder_state(num_slots) for codec in codecs]
    generator = torch.Generator().manual_seed(5)

    for pcm_BCN in sound(num_slots, 6 * WINDOW_FRAMES):
        valid_B = torch.rand(num_slots, generator=generator) < 0.7
        resets = (torch.rand(num_slots, generator=generator) < 0.1).nonzero().flatten().tolist()
        heard_BCN = torch.where(valid_B[:, None, None], pcm_BCN, torch.nan)
        codes, audio = [], []
        for codec, encoder, decoder in zip(codecs, encoders, decoders, strict=True):
            codec.reset(encoder, resets)
            codec.reset(decoder, resets)
            codes_BK = codec.encode(heard_BCN, valid_B, encoder)
            codes.append(torch.where(valid_B[:, None], codes_BK, -2))
            audio.append(codec.decode(codes[-1], valid_B, decoder))
        assert torch.equal(codes[0], codes[1])
        if valid_B.any():
            assert_near(audio[0][valid_B], audio[1][valid_B])


def test_fewer_rows_than_slots_and_fewer_codebooks(codecs: Codecs) -> None:
    states = [codec.new_decoder_state(4) for codec in codecs]
    codes_BK = torch.tensor([[3, 1], [4, 5]])
    valid_B = torch.tensor([True, True])

    for _ in range(3):
        audio = [
            codec.decode(codes_BK, valid_B, state)
            for codec, state in zip(codecs, states, strict=True)
        ]

    assert_near(*audio)
    assert codecs[0].reset(states[0], []) is None


def test_reset_leaves_nothing_of_the_session_before(codecs: Codecs) -> None:
    codec = codecs[0]
    used, fresh = codec.new_encoder_state(2), codec.new_encoder_state(2)
    both = torch.ones(2, dtype=torch.bool)
    codec.encode(torch.full((2, 1, FRAME), torch.nan), both, used)

    codec.reset(used, [0, 1])

    assert all(mx.array_equal(*pair) for pair in zip(used.arrays, fresh.arrays, strict=True))
    assert used.fresh_B.all()
    assert used.transformer.position_R.tolist() == [0, 0]


def test_what_is_no_frame_and_no_code_is_refused(codecs: Codecs) -> None:
    codec = codecs[0]
    one = torch.ones(1, dtype=torch.bool)

    with pytest.raises(ValueError, match=r"^pcm must be \[B, 1, 32\], got \[1, 1, 31\]$"):
        codec.encode(torch.zeros(1, 1, 31), one, codec.new_encoder_state(1))
    with pytest.raises(ValueError, match="codebook 1 of slot 0 has no code 24"):
        codec.decode(torch.tensor([[3, 24]]), one, codec.new_decoder_state(1))
    with pytest.raises(ValueError, match=r"codes must be \[B, 1 to 6\], got \[1, 7\]"):
        codec.decode(torch.zeros(1, 7, dtype=torch.int64), one, codec.new_decoder_state(1))


def test_a_damaged_codec_is_refused(tmp_path: Path) -> None:
    checkpoint = write_mimi(tmp_path, TINY_MIMI)
    path = tmp_path / "mimi.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match="is truncated"):
        open_codecs(checkpoint)


def test_the_released_shape_equals_torch_for_a_few_frames() -> None:
    spec = MimiSpec()
    layout = mimi_layout(spec)
    tensors = random_tensors(layout.tensors, lambda name, shape: mimi_fill(name, shape, spec))
    arrays = {name: mx.array(tensor.numpy()) for name, tensor in tensors.items()}
    mine = Mimi(spec, arrays, Place(mx.Device(mx.cpu)))
    theirs = TorchMimi(spec)
    theirs.load_state_dict(tensors)
    theirs.prepare()
    one = torch.ones(1, dtype=torch.bool)
    both: list[Any] = [mine, theirs]
    encoders = [codec.new_encoder_state(1) for codec in both]
    decoders = [codec.new_decoder_state(1) for codec in both]

    for pcm_BCN in sound(1, 4, frame=1920):
        codes = [c.encode(pcm_BCN, one, state) for c, state in zip(both, encoders, strict=True)]
        assert torch.equal(codes[0], codes[1])
        assert_near(
            *[c.decode(codes[0], one, state) for c, state in zip(both, decoders, strict=True)]
        )
