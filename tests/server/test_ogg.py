from __future__ import annotations

import random

import numpy as np
import pytest
import sphn
from hypothesis import given, settings
from hypothesis import strategies as st

from moshi_pipe.server.ogg import (
    CAPTURE,
    CONTINUED,
    FIRST,
    LAST,
    MAX_PAGE_BYTES,
    UNKNOWN,
    Page,
    PageReader,
    PageWriter,
    build_page,
    checksum,
    opus_head,
    opus_tags,
)


def _pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


def _packets(pages: list[Page]) -> list[bytes]:
    packets: list[bytes] = []
    rest = b""
    for page in pages:
        for number, part in enumerate(page.parts):
            rest += part
            if page.complete or number < len(page.parts) - 1:
                packets.append(rest)
                rest = b""
    return packets


def test_the_checksum_is_that_of_an_encoder_of_another_hand() -> None:
    data = bytes(sphn.OpusStreamWriter(24000).append_pcm(np.zeros(960, np.float32)))
    reader = PageReader()
    pages = reader.push(data)
    assert [page.sequence for page in pages] == [0, 1, 2]
    assert [page.granule for page in pages] == [0, 0, 1920]
    assert pages[0].first
    assert pages[0].parts == (opus_head(48000, pre_skip=3840),)
    assert pages[1].parts == (opus_tags("KyutaiMoshi"),)
    assert (reader.num_damaged, reader.num_skipped_bytes, len(reader)) == (0, 0, 0)


def test_a_page_of_our_own_is_byte_for_byte_that_of_another_hand() -> None:
    data = bytes(sphn.OpusStreamWriter(24000).append_pcm(np.zeros(960, np.float32)))
    pages = PageReader().push(data)
    writer = PageWriter(42)
    flags = [FIRST, 0, 0]
    assert data == b"".join(
        writer.write(page.parts[0], page.granule, flags=flag)
        for page, flag in zip(pages, flags, strict=True)
    )


def test_the_checksum_of_nothing_is_nothing() -> None:
    assert checksum(b"") == 0
    assert checksum(b"\x00" * 40) == 0
    assert checksum(b"\x01") == 0x04C11DB7  # the polynomial itself


@given(
    st.lists(st.binary(max_size=700), max_size=8),
    st.lists(st.integers(0, 400), max_size=20),
)
@settings(deadline=None)
def test_what_is_written_is_read_however_it_is_split(
    packets: list[bytes], sizes: list[int]
) -> None:
    writer, reader = PageWriter(7), PageReader()
    data = b"".join(writer.write(packet, n) for n, packet in enumerate(packets))
    pages = [page for piece in _pieces(data, sizes) for page in reader.push(piece)]
    assert _packets(pages) == packets
    assert [page.granule for page in pages] == list(range(len(packets)))
    assert reader.num_damaged == 0
    assert len(reader) == 0


@pytest.mark.parametrize("size", [254, 255, 256, 510, 65024, 65025, 65026, 130050, 140000])
def test_packets_of_any_length_go_over_as_many_pages_as_they_need(size: int) -> None:
    packet = bytes(n % 251 for n in range(size))
    reader = PageReader()
    pages = reader.push(PageWriter(1).write(packet, 5, flags=FIRST | LAST))
    assert _packets(pages) == [packet]
    assert len(pages) == size // 65025 + 1
    assert [page.granule for page in pages] == [UNKNOWN] * (len(pages) - 1) + [5]
    assert [bool(page.flags & FIRST) for page in pages] == [True] + [False] * (len(pages) - 1)
    assert [bool(page.flags & LAST) for page in pages] == [False] * (len(pages) - 1) + [True]
    assert [page.continued for page in pages] == [False] + [True] * (len(pages) - 1)


def test_a_page_may_hold_several_packets_or_none() -> None:
    reader = PageReader()
    table = bytes([3, 255, 1, 0])
    (page,) = reader.push(build_page(bytes(259), table, 9, 1, 0))
    assert [len(part) for part in page.parts] == [3, 256, 0]
    assert page.complete
    (nil,) = reader.push(build_page(b"", b"", 9, 1, 1, LAST))
    assert nil.parts == ()
    assert nil.complete
    (piece,) = reader.push(build_page(bytes(255), b"\xff", UNKNOWN, 1, 2, CONTINUED))
    assert not piece.complete


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 2**31))
@settings(deadline=None)
def test_after_any_garbage_the_next_page_is_found(before: bytes, packet: bytes, at: int) -> None:
    page = PageWriter(3).write(packet, 1)
    reader = PageReader()
    damaged = bytearray(page)
    damaged[at % len(page)] ^= 0x40
    found = reader.push(before + bytes(damaged) + page + page)
    assert [one.parts for one in found[-2:]] == [(packet,), (packet,)]


def test_a_page_that_claims_too_much_does_not_swallow_the_next() -> None:
    page = PageWriter(3).write(b"abc", 1)
    liar = CAPTURE + b"\x00\x00" + b"\xff" * 400
    reader = PageReader()
    assert reader.push(liar) == []
    assert reader.push(page[:20]) == []
    assert len(reader.push(page[20:])) == 1
    assert len(reader.push(page)) == 1
    assert reader.num_damaged == 1
    assert reader.num_skipped_bytes == len(liar)
    assert len(reader) == 0


def test_liars_ahead_are_tried_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    def count(page: bytes) -> int:
        checked.append(len(page))
        return checksum(page)

    long = CAPTURE + b"\x00\x00" + b"\xff" * 400
    false = bytearray(PageWriter(3).write(bytes(600), 1))
    false[100] ^= 1
    monkeypatch.setattr("moshi_pipe.server.ogg.checksum", count)
    reader = PageReader()
    reader.push(long + bytes(false))
    for _ in range(50):
        reader.push(b"x")
    assert checked == [len(false)]


def test_a_capture_pattern_at_the_end_of_garbage_is_kept() -> None:
    page = PageWriter(3).write(b"abc", 1)
    for cut in range(1, len(page)):
        reader = PageReader()
        assert reader.push(b"xxOg" + page[:cut]) == []
        assert len(reader.push(page[cut:])) == 1
        assert reader.num_skipped_bytes == 4


def test_it_holds_one_page_at_most() -> None:
    reader, rng = PageReader(), random.Random(5)
    for _ in range(400):
        reader.push(rng.randbytes(1500) + CAPTURE + b"\x00\x00" + b"\xff" * rng.randrange(300))
        assert len(reader) <= MAX_PAGE_BYTES


def test_false_beginnings_cost_a_bounded_number_of_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = 0

    def count(page: bytes) -> int:
        nonlocal checked
        checked += len(page)
        return checksum(page)

    monkeypatch.setattr("moshi_pipe.server.ogg.checksum", count)
    trap = CAPTURE + b"\x00\x00" + b"\xff" * 24
    reader = PageReader()
    sent = 0
    for _ in range(20):
        data = trap * 2000
        reader.push(data)
        sent += len(data)
    assert reader.num_damaged > 1000
    assert checked <= 4 * (sent + MAX_PAGE_BYTES)
    # and an honest client is heard again
    page = PageWriter(1).write(b"abc", 1)
    assert sum(len(reader.push(page)) for _ in range(2 * MAX_PAGE_BYTES // len(page))) > 0
