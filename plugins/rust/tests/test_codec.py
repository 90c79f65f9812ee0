"""The codec in Rust does what it does on PyTorch."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from rust_models import decode_all, encode_all, rust_codec, speech, torch_mimi, write_mimi
from support.golden import TINY_MIMI

from moshi_pipe.errors import BackendError
from moshi_pipe.models.protocols import Codec

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe_rust.codec import RustCodec

    from moshi_pipe.nn.mimi import Mimi

NUM_FRAMES = 200  # the transformers see 5 frames


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mimi, RustCodec]:
    reference = torch_mimi(TINY_MIMI)
    path = write_mimi(tmp_path_factory.mktemp("mimi"), reference)
    rust = rust_codec(path, reference.mimi)
    reference.prepare()
    return reference, rust


def test_codes_are_equal(pair: tuple[Mimi, RustCodec]) -> None:
    reference, rust = pair
    frames = speech(NUM_FRAMES, reference.mimi)

    wanted, got = encode_all(reference, frames), encode_all(rust, frames)

    assert torch.equal(got, wanted)
    assert len(wanted.unique(dim=0)) > 20  # else equality says little


@pytest.mark.parametrize("num_codes", [6, 3, 1])
def test_audio_is_equal(pair: tuple[Mimi, RustCodec], num_codes: int) -> None:
    reference, rust = pair
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(
        reference.mimi.cardinality, (NUM_FRAMES, 1, num_codes), generator=generator
    )

    wanted, got = decode_all(reference, codes), decode_all(rust, codes)

    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


def test_slots_masks_and_resets(pair: tuple[Mimi, RustCodec]) -> None:
    reference, rust = pair
    sounds = [speech(40, reference.mimi, seed) for seed in range(3)]
    alone = [encode_all(rust, sound) for sound in sounds]
    heard = [decode_all(rust, codes) for codes in alone]
    encoder, decoder = rust.new_encoder_state(3), rust.new_decoder_state(3)
    ages = [0, 0, 0]
    for tick in range(60):
        if tick == 25:
            rust.reset(encoder, [1])
            rust.reset(decoder, [1])
            ages[1] = 0
        valid = [ages[slot] < 40 and (tick + slot) % (slot + 2) > 0 for slot in range(3)]
        pcm_BCN = torch.cat([sounds[slot][min(ages[slot], 39)] for slot in range(3)])
        valid_B = torch.tensor(valid)
        codes_BK = rust.encode(pcm_BCN, valid_B, encoder)
        codes_BK[~valid_B] = -7  # rows that are not valid may hold any number
        audio_BCN = rust.decode(codes_BK, valid_B, decoder)
        for slot in range(3):
            if valid[slot]:
                assert torch.equal(codes_BK[slot], alone[slot][ages[slot], 0])
                assert torch.equal(audio_BCN[slot], heard[slot][ages[slot], 0])
                ages[slot] += 1
    assert min(ages) > 10


def test_fewer_slots_than_the_state_has_may_step(pair: tuple[Mimi, RustCodec]) -> None:
    reference, rust = pair
    frames = speech(5, reference.mimi)
    state = rust.new_encoder_state(4)

    codes = [rust.encode(frame, torch.tensor([True]), state) for frame in frames]

    assert torch.equal(torch.stack(codes), encode_all(rust, frames))


def test_two_directions_run_on_two_threads(pair: tuple[Mimi, RustCodec]) -> None:
    reference, rust = pair
    frames = speech(100, reference.mimi)
    codes = encode_all(rust, frames)
    audio = decode_all(rust, codes)
    results: dict[str, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda: results.update(codes=encode_all(rust, frames))),
        threading.Thread(target=lambda: results.update(audio=decode_all(rust, codes))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert torch.equal(results["codes"], codes)
    assert torch.equal(results["audio"], audio)


def test_failures_are_one_line(pair: tuple[Mimi, RustCodec]) -> None:
    _, rust = pair
    valid_B, state = torch.tensor([True]), rust.new_decoder_state(1)
    with pytest.raises(BackendError, match=r"code 99 is not in 0 \.\. 23") as caught:
        rust.decode(torch.full((1, 6), 99), valid_B, state)
    assert caught.value.got is not None
    assert "\n" not in caught.value.got
    with pytest.raises(BackendError, match="7 codes per frame, the codec has 6"):
        rust.decode(torch.zeros(1, 7, dtype=torch.int64), valid_B, state)
    with pytest.raises(BackendError, match="2 slots, the state has 1"):
        rust.decode(torch.zeros(2, 6, dtype=torch.int64), torch.tensor([True, True]), state)
    with pytest.raises(BackendError, match="there is no slot 1"):
        rust.reset(state, [1])


def test_frames_of_one_stream_may_differ_in_codes(pair: tuple[Mimi, RustCodec]) -> None:
    reference, rust = pair
    valid_B = torch.tensor([True])
    ours, theirs = rust.new_decoder_state(1), reference.new_decoder_state(1)
    for count in (6, 3, 1, 5):
        codes = torch.arange(count)[None]
        wanted = reference.decode(codes, valid_B, theirs)
        got = rust.decode(codes, valid_B, ours)
        torch.testing.assert_close(got, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


def test_weights_that_are_not_finite_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    reference = torch_mimi(TINY_MIMI)
    bias = reference.get_parameter("encoder.model.0.conv.conv.bias")
    bias[0] = torch.nan
    path = write_mimi(tmp_path, reference)
    with pytest.raises(BackendError, match=r"cannot load the codec") as caught:
        rust_codec(path, reference.mimi)
    assert "encoder.model.0.conv.conv.bias' has numbers that are not finite" in str(caught.value)

    bias[0] = 0
    path = write_mimi(tmp_path, reference)
    with pytest.raises(BackendError) as caught:
        rust_codec(path, replace(reference.mimi, kernel_size=5))
    assert "is [4, 1, 7], the config says [4, 1, 5]" in str(caught.value)


@pytest.mark.parametrize(("num_layers", "channels"), [(2, 1), (1, 2)])
def test_other_shapes(num_layers: int, channels: int, tmp_path: Path) -> None:
    """Dilated residual layers; two channels."""
    seanet = {**TINY_MIMI["seanet"], "n_residual_layers": num_layers, "channels": channels}
    reference = torch_mimi({**TINY_MIMI, "channels": channels, "seanet": seanet})
    rust = rust_codec(write_mimi(tmp_path, reference), reference.mimi)
    reference.prepare()
    sides = [speech(30, reference.mimi, seed) for seed in range(channels)]
    frames = torch.cat(sides, dim=2)

    codes = encode_all(reference, frames)

    assert torch.equal(encode_all(rust, frames), codes)
    wanted = decode_all(reference, codes)
    got = decode_all(rust, codes)
    torch.testing.assert_close(got, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


def test_it_is_a_codec(pair: tuple[Mimi, RustCodec]) -> None:
    reference, rust = pair
    assert isinstance(rust, Codec)
    assert rust.spec == reference.spec
