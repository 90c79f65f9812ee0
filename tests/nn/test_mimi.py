"""Mimi's promises: streaming, slots, masks and resets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import TINY_MIMI, fill_golden

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.spec import MimiSpec
from moshi_pipe.nn.mimi import Mimi, MimiState

ONE = torch.ones(1, dtype=torch.bool)
NUM_SLOTS = 4


def make_mimi() -> Mimi:
    model = Mimi(MimiSpec.from_config(TINY_MIMI))
    fill_golden(model)
    model.prepare()
    return model


MIMI = make_mimi()
FRAME = MIMI.spec.frame_size
WINDOW_FRAMES = (MIMI.mimi.transformer.context or 0) // MIMI.mimi.stride


def speech(num_slots: int, num_frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_slots, 1, num_frames * FRAME, generator=generator) * 2 - 1


def test_streaming_equals_offline_until_the_attention_window_is_full() -> None:
    num_frames = WINDOW_FRAMES
    pcm_BCN = speech(1, num_frames)

    offline = MIMI.latent(pcm_BCN, ONE, MIMI.new_encoder_state(1, num_frames))
    state = MIMI.new_encoder_state(1)
    streamed = torch.cat([MIMI.latent(x, ONE, state) for x in pcm_BCN.split(FRAME, -1)], 1)

    torch.testing.assert_close(streamed, offline, rtol=1e-5, atol=1e-6)


def test_decoding_in_a_stream_equals_offline_until_the_window_is_full() -> None:
    num_frames = WINDOW_FRAMES
    codes_BKT = torch.randint(0, 24, (1, 6, num_frames), generator=torch.manual_seed(0))

    offline = MIMI.decode(codes_BKT, ONE, MIMI.new_decoder_state(1, num_frames))
    state = MIMI.new_decoder_state(1)
    streamed = torch.cat([MIMI.decode(c, ONE, state) for c in codes_BKT.unbind(-1)], -1)

    torch.testing.assert_close(streamed, offline, rtol=1e-5, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    schedule=st.lists(
        st.tuples(*[st.sampled_from(["run", "idle", "reset"])] * NUM_SLOTS),
        min_size=3,
        max_size=14,
    )
)
def test_a_slot_is_bit_equal_alone_and_among_others(schedule: list[tuple[str, ...]]) -> None:
    """Random joins, leaves and pauses: every slot equals the same session alone in slot 0."""
    together = run_schedule(schedule)

    for slot in range(NUM_SLOTS):
        alone = run_schedule([(row[slot], *["idle"] * (NUM_SLOTS - 1)) for row in schedule], slot)
        assert torch.equal(together[slot], alone[0]), f"slot {slot}"


def run_schedule(schedule: list[tuple[str, ...]], source: int | None = None) -> list[torch.Tensor]:
    """Run encoder and decoder; idle slots are fed NaN. Slot i hears stream i (or ``source``)."""
    pcm_BCN = speech(NUM_SLOTS, len(schedule))
    if source is not None:
        pcm_BCN = pcm_BCN[source].expand(NUM_SLOTS, -1, -1)
    encoder, decoder = MIMI.new_encoder_state(NUM_SLOTS), MIMI.new_decoder_state(NUM_SLOTS)
    out: list[list[torch.Tensor]] = [[] for _ in range(NUM_SLOTS)]
    for row, pcm in zip(schedule, pcm_BCN.split(FRAME, -1), strict=True):
        resets = [i for i, action in enumerate(row) if action == "reset"]
        MIMI.reset(encoder, resets)
        MIMI.reset(decoder, resets)
        valid_B = torch.tensor([action == "run" for action in row])
        fed = torch.where(valid_B[:, None, None], pcm, torch.nan)
        codes_BK = MIMI.encode(fed, valid_B, encoder)
        codes_BK = torch.where(valid_B[:, None], codes_BK, -2)
        audio_BCN = MIMI.decode(codes_BK, valid_B, decoder)
        for slot in range(NUM_SLOTS):
            if row[slot] == "run":
                out[slot] += [codes_BK[slot].float(), audio_BCN[slot, 0]]
    return [torch.cat(parts) if parts else torch.zeros(0) for parts in out]


def test_a_prefix_of_the_slots_can_run() -> None:
    pcm_BCN = speech(8, 3)
    state = MIMI.new_encoder_state(8)
    prefix_state = MIMI.new_encoder_state(8)
    four, eight = torch.ones(4, dtype=torch.bool), torch.ones(8, dtype=torch.bool)

    for x in pcm_BCN.split(FRAME, -1):
        whole = MIMI.latent(x, eight, state)
        prefix = MIMI.latent(x[:4], four, prefix_state)
        torch.testing.assert_close(prefix, whole[:4], rtol=1e-5, atol=1e-6)


def test_reset_leaves_nothing_of_the_session_before() -> None:
    used, fresh = MIMI.new_encoder_state(2), MIMI.new_encoder_state(2)
    both = torch.ones(2, dtype=torch.bool)
    MIMI.encode(torch.full((2, 1, FRAME), torch.nan), both, used)

    MIMI.reset(used, [0, 1])

    for left, right in zip(tensors(used), tensors(fresh), strict=True):
        assert torch.equal(left, right)


def tensors(state: MimiState) -> list[torch.Tensor]:
    rings = [t for ring in state.transformer.rings for t in (ring.keys_BHLE, ring.values_BHLE)]
    convs = [t for layer in state.convs for t in layer]
    return [*convs, *rings, state.transformer.position_B, state.resample, state.fresh_B]


def test_fewer_codebooks_decode_alike() -> None:
    codes_BK = torch.tensor([[3, 1, 4, 1, 5, 9]])

    audio = MIMI.decode(codes_BK[:, :1], ONE, MIMI.new_decoder_state(1))

    assert audio.shape == (1, 1, FRAME)
    assert not torch.equal(audio, MIMI.decode(codes_BK, ONE, MIMI.new_decoder_state(1)))


def test_a_partial_frame_is_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"^pcm must be \[B, 1, 32\], got \[1, 1, 31\]$"):
        MIMI.encode(torch.zeros(1, 1, 31), ONE, MIMI.new_encoder_state(1))


def test_more_codebooks_than_the_checkpoint_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match="1 to 6"):
        MIMI.mimi.with_codebooks(7)
