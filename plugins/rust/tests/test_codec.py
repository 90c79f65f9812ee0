"""The codec in Rust does what it does on PyTorch."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch
from rust_models import decode_all, encode_all, rust_codec, speech, torch_mimi, write_mimi
from support.golden import TINY_MIMI

from moshi_pipe.errors import BackendError
from moshi_pipe.models.protocols import Codec

if TYPE_CHECKING:
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
    rust.reset(state, [0])
    rust.decode(torch.zeros(1, 6, dtype=torch.int64), valid_B, state)
    with pytest.raises(BackendError, match="3 codes per frame after 6"):
        rust.decode(torch.zeros(1, 3, dtype=torch.int64), valid_B, state)
    with pytest.raises(BackendError, match="7 codes per frame"):
        rust.decode(torch.zeros(1, 7, dtype=torch.int64), valid_B, state)


def test_it_is_a_codec(pair: tuple[Mimi, RustCodec]) -> None:
    reference, rust = pair
    assert isinstance(rust, Codec)
    assert rust.spec == reference.spec
