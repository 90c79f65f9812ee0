"""Mimi against the reference package and against rustymimi, same random weights."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest
import torch
from support.golden import TINY_MIMI
from support.reference import full_mimi_pair, mimi_pair

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.nn.mimi import Mimi

ONE = torch.ones(1, dtype=torch.bool)


def audio(num_frames: int, frame_size: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 1, num_frames * frame_size, generator=generator) * 0.1


@pytest.mark.parametrize("num_codebooks", [1, 3, 6])
def test_tiny_offline_codes_are_equal_and_latents_close(num_codebooks: int) -> None:
    reference, ours = mimi_pair(TINY_MIMI, num_codebooks)
    pcm_BCN = audio(40, ours.spec.frame_size)

    latent = reference.encode_to_latent(pcm_BCN, quantize=False).transpose(1, 2)
    codes = reference.encode(pcm_BCN)

    assert_close(ours.latent(pcm_BCN, ONE, ours.new_encoder_state(1, 40)), latent)
    assert torch.equal(ours.encode(pcm_BCN, ONE, ours.new_encoder_state(1, 40)), codes)
    assert_close(ours.decode(codes, ONE, ours.new_decoder_state(1, 40)), reference.decode(codes))


def test_tiny_streaming_is_equal_far_past_the_window() -> None:
    reference, ours = mimi_pair(TINY_MIMI, 6)

    assert_stream_equal(reference, ours, num_frames=60, num_slots=1)


def test_tiny_streaming_with_masks_and_resets_is_equal() -> None:
    reference, ours = mimi_pair(TINY_MIMI, 6)
    num_slots, frame = 4, ours.spec.frame_size
    generator = torch.Generator().manual_seed(2)
    encoder, decoder = ours.new_encoder_state(num_slots), ours.new_decoder_state(num_slots)
    with reference.streaming(num_slots):
        for pcm in audio(40, frame, num_slots).split(frame, -1):
            valid_B = torch.rand(num_slots, generator=generator) < 0.7
            reset_B = torch.rand(num_slots, generator=generator) < 0.1
            slots = reset_B.nonzero().flatten().tolist()
            reference.reset_streaming(reset_B)
            ours.reset(encoder, slots)
            ours.reset(decoder, slots)
            reference.set_exec_mask(valid_B)
            codes = reference.encode(pcm)[..., 0]
            wave = reference.decode(codes[..., None])
            mine = ours.encode(pcm, valid_B, encoder)
            assert torch.equal(mine[valid_B], codes[valid_B])
            mine_wave = ours.decode(codes, valid_B, decoder)
            if valid_B.any():
                assert_close(mine_wave[valid_B], wave[valid_B])


def test_full_size_streaming_is_equal_past_the_window() -> None:
    """130 frames: the attention window is full after 125."""
    reference, ours = full_mimi_pair(8)

    used = assert_stream_equal(reference, ours, num_frames=130, num_slots=1)

    assert used > 400, "random weights must give live codes for this test to mean anything"


@pytest.mark.skipif(importlib.util.find_spec("rustymimi") is None, reason="rustymimi not here")
def test_full_size_codes_equal_rustymimi_over_100_frames(tmp_path: Path) -> None:
    import rustymimi
    from safetensors.torch import save_file

    reference, ours = full_mimi_pair(8)
    path = tmp_path / "mimi.safetensors"
    save_file(released_names(reference.state_dict()), str(path))
    peer = rustymimi.StreamTokenizer(str(path))
    state, pcm = ours.new_encoder_state(1), audio(100, 1920)
    for i, frame in enumerate(pcm.split(1920, -1)):
        peer.encode(frame[0, 0].numpy())
        codes = None
        while codes is None:
            codes = peer.get_encoded()
        mine = ours.encode(frame, ONE, state)[0]
        assert mine.tolist() == torch.as_tensor(codes).flatten().tolist(), f"frame {i}"


def released_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0", "out_proj"): t
        for name, t in state.items()
    }


def assert_stream_equal(reference: object, ours: Mimi, *, num_frames: int, num_slots: int) -> int:
    """Compare code by code and wave by wave; returns how many different codes were seen."""
    frame = ours.spec.frame_size
    encoder, decoder = ours.new_encoder_state(num_slots), ours.new_decoder_state(num_slots)
    valid_B = torch.ones(num_slots, dtype=torch.bool)
    seen: set[tuple[int, int]] = set()
    with reference.streaming(num_slots):  # type: ignore[attr-defined]
        for i, pcm in enumerate(audio(num_frames, frame, num_slots).split(frame, -1)):
            codes = reference.encode(pcm)  # type: ignore[attr-defined]
            assert torch.equal(ours.encode(pcm, valid_B, encoder), codes[..., 0]), f"frame {i}"
            wave = reference.decode(codes)  # type: ignore[attr-defined]
            assert_close(ours.decode(codes[..., 0], valid_B, decoder), wave)
            seen |= {(k, int(c)) for k, c in enumerate(codes[0, :, 0])}
    return len(seen)


def assert_close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-5 of the loudest value."""
    assert mine.shape == theirs.shape
    assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
