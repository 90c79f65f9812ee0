from __future__ import annotations

import builtins
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sphn
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_pipe.errors import BackendError
from moshi_pipe.server.messages import AudioFormat
from moshi_pipe.server.ogg import FIRST, Page, PageReader, PageWriter, build_page, opus_head
from moshi_pipe.server.opus import (
    MAX_PACKET_BYTES,
    OpusDecoder,
    OpusEncoder,
    PcmDecoder,
    PcmEncoder,
    make_decoder,
    make_encoder,
    packet_samples,
)

S16, F32, OPUS = AudioFormat.PCM_S16LE, AudioFormat.PCM_F32LE, AudioFormat.OGG_OPUS
PACKET = 960


def _tone(samples: int) -> npt.NDArray[np.float32]:
    tone_N: npt.NDArray[np.float32] = (0.3 * np.sin(np.arange(samples) * 0.05)).astype(np.float32)
    return tone_N


def _stream(seconds: float = 2.0) -> bytes:
    return OpusEncoder().push(_tone(int(seconds * 24000)))


def _pages(data: bytes) -> list[bytes]:
    """The pages as bytes."""
    pages, at = [], 0
    while at < len(data):
        table = data[at + 27 : at + 27 + data[at + 26]]
        size = 27 + len(table) + sum(table)
        pages.append(data[at : at + size])
        at += size
    return pages


def _sounds(seconds: float = 2.0) -> list[bytes]:
    """The packets that are no headers."""
    pages: list[Page] = PageReader().push(_stream(seconds))
    return [page.parts[0] for page in pages[2:]]


def _reference(data: bytes) -> npt.NDArray[np.float32]:
    samples_N: npt.NDArray[np.float32] = sphn.OpusStreamReader(24000).append_bytes(data)
    return samples_N


# PCM


def test_samples_of_16_bits_are_rounded_and_clipped() -> None:
    pcm = np.array([0, 0.5, 1, -1, 2, -3, 1 / 65536 * 1.1, np.nan, np.inf], np.float32)
    data = PcmEncoder(S16).push(pcm)
    got = np.frombuffer(data, "<i2")
    assert got.tolist() == [0, 16384, 32767, -32768, 32767, -32768, 1, 0, 32767]
    back = PcmDecoder(S16).push(data)
    assert back.dtype == np.float32
    assert back[1] == 0.5
    assert back.min() == -1


def test_floats_go_through_as_they_are() -> None:
    pcm = np.array([0, 0.1, -1.5, 3], np.float32)
    assert PcmDecoder(F32).push(PcmEncoder(F32).push(pcm)).tolist() == pcm.tolist()
    assert PcmEncoder(F32).finish() == b""


def test_floats_that_are_not_finite_become_harmless_and_are_counted() -> None:
    decoder = PcmDecoder(F32)
    data = np.array([1, np.nan, np.inf, -np.inf, 0.5], "<f4").tobytes()
    assert decoder.push(data).tolist() == [1, 0, 1, -1, 0.5]
    assert decoder.num_faults == 3


@pytest.mark.parametrize("form", [S16, F32])
@given(sizes=st.lists(st.integers(0, 9), max_size=30))
@settings(deadline=None)
def test_split_samples_are_put_together(form: AudioFormat, sizes: list[int]) -> None:
    data = PcmEncoder(form).push(_tone(25))
    decoder = PcmDecoder(form)
    got, at = [], 0
    for size in [*sizes, len(data)]:
        got.append(decoder.push(data[at : at + size]))
        at += size
    assert np.concatenate(got).tolist() == PcmDecoder(form).push(data).tolist()


@given(st.lists(st.binary(max_size=50), max_size=20), st.sampled_from(list(AudioFormat)))
@settings(deadline=None)
def test_any_bytes_give_finite_samples(parts: list[bytes], form: AudioFormat) -> None:
    decoder = make_decoder(form)
    for part in parts:
        samples_N = decoder.push(part)
        assert samples_N.dtype == np.float32
        assert samples_N.ndim == 1
        assert np.isfinite(samples_N).all()


# Opus


def test_a_whole_stream_is_decoded_as_the_library_does_it() -> None:
    data = _stream()
    decoder = OpusDecoder()
    assert np.array_equal(decoder.push(data), _reference(data))
    assert decoder.num_faults == 0


@given(st.lists(st.integers(0, 300), max_size=40))
@settings(deadline=None, max_examples=40)
def test_it_is_the_same_however_it_is_split(sizes: list[int]) -> None:
    data = _stream(0.4)
    decoder = OpusDecoder()
    got, at = [], 0
    for size in [*sizes, len(data)]:
        got.append(decoder.push(data[at : at + size]))
        at += size
    assert np.array_equal(np.concatenate(got), _reference(data))


def test_the_encoder_begins_with_headers_and_ends_with_what_is_left() -> None:
    encoder = OpusEncoder()
    data = encoder.push(_tone(1000))
    assert len(_pages(data)) == 3
    assert data.startswith(b"OggS\x00\x02")
    rest = encoder.finish()
    assert len(_pages(rest)) == 1
    assert encoder.finish() == b""
    assert OpusDecoder().push(data + rest).size == 2 * PACKET


@pytest.mark.parametrize("lost", [1, 3, 20])
def test_lost_pages_are_as_much_silence(lost: int) -> None:
    pages = _pages(_stream())
    decoder = OpusDecoder()
    before = decoder.push(b"".join(pages[:10]))
    after = decoder.push(b"".join(pages[10 + lost :]))
    assert before.size == 8 * PACKET
    assert before.size + after.size == (len(pages) - 2) * PACKET
    assert not after[: lost * PACKET].any()
    assert np.abs(after[lost * PACKET :]).max() > 0.2
    assert decoder.num_faults == 1


def test_a_long_gap_is_a_second() -> None:
    pages = _pages(_stream(5.0))
    decoder = OpusDecoder()
    decoder.push(b"".join(pages[:10]))
    assert decoder.push(pages[80]).size == 24000 + PACKET


def test_a_damaged_page_is_silence_and_the_next_is_heard() -> None:
    pages = _pages(_stream())
    damaged = bytearray(pages[10])
    damaged[60] ^= 1
    decoder = OpusDecoder()
    decoder.push(b"".join(pages[:10]))
    assert decoder.push(bytes(damaged)).size == 0
    after = decoder.push(pages[11] + pages[12])
    assert after.size == 3 * PACKET
    assert not after[:PACKET].any()
    assert decoder.num_faults == 2  # the page, and the gap that it left


def test_positions_that_are_counted_wrongly_are_not_believed() -> None:
    writer = PageWriter(1)
    pages = [writer.write(one, 7 * n) for n, one in enumerate(_sounds())]
    decoder = OpusDecoder()
    assert decoder.push(b"".join(pages[:5])).size == 5 * PACKET
    assert decoder.push(pages[8]).size == 4 * PACKET


def test_positions_say_how_much_is_missing_where_pages_are_of_different_length() -> None:
    sounds = _sounds()
    pages, at = [], 0
    for number, count in enumerate([1, 1, 5, 2, 1]):
        packets, sounds = sounds[:count], sounds[count:]
        at += 1920 * count
        tables = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
        pages.append(build_page(b"".join(packets), tables, at, 1, number))
    decoder = OpusDecoder()
    assert decoder.push(pages[0] + pages[1]).size == 2 * PACKET
    assert decoder.push(pages[3]).size == (5 + 2) * PACKET


def test_a_packet_may_go_over_pages_and_its_loss_costs_its_length() -> None:
    # One packet of 40 ms from two frames of 20 ms, long enough for two segments.
    packet = bytes([0xF9]) + bytes(range(1, 200)) * 2 + bytes(20)
    first, second = packet[:255], packet[255:]

    def pages(number: int) -> tuple[bytes, bytes]:
        return (
            build_page(first, b"\xff", -1, 1, number),
            build_page(second, bytes([len(second)]), 1920 * (number // 2 + 1), 1, number + 1, 1),
        )

    decoder = OpusDecoder()
    assert decoder.push(pages(0)[0]).size == 0
    assert decoder.push(pages(0)[1]).size == packet_samples(packet)
    assert decoder.push(pages(2)[1]).size == 2 * PACKET  # a lost page, and a packet without it


def test_a_packet_that_is_none_costs_its_length() -> None:
    good = _sounds()
    writer = PageWriter(1)
    packets = [good[0], b"\x6b\xff\xff", good[1], b"", good[2]]
    data = b"".join(writer.write(one, 0) for one in packets)
    decoder = OpusDecoder()
    assert decoder.push(data).size == 5 * PACKET
    assert decoder.num_faults == 2


def test_headers_may_be_missing_and_a_new_stream_may_begin() -> None:
    pages = _pages(_stream())
    decoder = OpusDecoder()
    assert decoder.push(b"".join(pages[5:8])).size == 3 * PACKET
    again = _stream(0.4)
    assert np.array_equal(decoder.push(again), _reference(again))
    assert decoder.num_faults == 0


def test_pages_of_another_stream_are_left_out_unless_they_go_on() -> None:
    sounds = _sounds()
    ours, other = PageWriter(1), PageWriter(2)
    decoder = OpusDecoder()
    assert decoder.push(ours.write(sounds[0], 1920)).size == PACKET
    assert decoder.push(other.write(sounds[1], 1920)).size == 0
    assert decoder.push(ours.write(sounds[2], 3840)).size == PACKET
    foreign = [decoder.push(other.write(one, 0)).size for one in sounds[3:9]]
    assert foreign == [0, 0, 0, PACKET, PACKET, PACKET]


def test_packets_too_large_to_be_any_are_not_kept() -> None:
    writer = PageWriter(1)
    decoder = OpusDecoder()
    assert decoder.push(writer.write(bytes(MAX_PACKET_BYTES + 1))).size == PACKET
    assert decoder.num_faults == 1
    for number in range(50):  # pieces without an end
        page = build_page(bytes(255 * 255), b"\xff" * 255, -1, 1, 1 + number, int(number > 0))
        decoder.push(page)
    assert decoder._piece is None


def test_two_channels_are_mixed_down() -> None:
    data = opus_head(48000, channels=2)
    writer = PageWriter(1)
    head = writer.write(data, flags=FIRST)
    stereo = bytes([0x7C]) + bytes(range(60))  # 20 ms, stereo bit set
    assert OpusDecoder().push(head + writer.write(stereo, 960)).size == 480


@pytest.mark.parametrize(
    ("packet", "samples"),
    [
        (b"", 0),
        (b"\x00", 240),  # 10 ms
        (b"\x18", 1440),  # 60 ms
        (b"\x68", 480),  # hybrid, 20 ms
        (b"\x80", 60),  # 2.5 ms
        (b"\xf8", 480),
        (b"\xf9", 960),
        (b"\xfb", 0),  # the count of frames is missing
        (b"\xfb\x06", 2880),
        (b"\xfb\x07", 0),  # more than 120 ms
        (b"\xfb\x00", 0),
    ],
)
def test_a_packet_says_how_long_it_is(packet: bytes, samples: int) -> None:
    assert packet_samples(packet) == samples


@pytest.mark.parametrize("make", [make_decoder, make_encoder])
def test_without_the_library_the_error_says_what_to_do(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "sphn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "sphn", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BackendError, match=r"^Opus needs the package sphn\n"):
        make(OPUS)
    make(S16)
