"""Ogg pages of a stream that may be damaged anywhere, and pages of our own.

A reader finds whole pages in whatever comes: what is no page, or one whose checksum is wrong, is
skipped up to the next capture pattern. Source: RFC 3533, section 6; RFC 7845, section 5.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

CAPTURE: Final = b"OggS"
"""What every page begins with."""

HEADER_BYTES: Final = 27
"""Of a page, before its table of segments."""

MAX_PAGE_BYTES: Final = HEADER_BYTES + 255 + 255 * 255
"""Of a whole page: 65,307."""

UNKNOWN: Final = -1
"""Granule position of a page in which no packet ends."""

CONTINUED: Final = 1
FIRST: Final = 2
LAST: Final = 4

_HEADER: Final = struct.Struct("<4sBBqIIIB")
_CHECKSUM: Final = slice(22, 26)
_ALL_FLAGS: Final = CONTINUED | FIRST | LAST
_CHECKS: Final = 4  # bytes that may be checked for each byte that came
_LOOK_AHEAD: Final = 3  # beginnings that are tried while another one waits for its rest
_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class Page:
    """A page whose checksum is right.

    Attributes:
        flags: :data:`CONTINUED`, :data:`FIRST` and :data:`LAST`.
        granule: Position after its last whole packet; :data:`UNKNOWN` where none ends in it.
        serial: Of its stream.
        sequence: Its number in the stream.
        parts: Packets, the first and the last of which may be pieces of one.
        complete: Whether the last of them ends here.
    """

    flags: int
    granule: int
    serial: int
    sequence: int
    parts: tuple[bytes, ...]
    complete: bool

    @property
    def continued(self) -> bool:
        """Whether the first part goes on with a packet of the page before."""
        return bool(self.flags & CONTINUED)

    @property
    def first(self) -> bool:
        """Whether a stream begins."""
        return bool(self.flags & FIRST)


class PageReader:
    """Finds pages in bytes that come in pieces; holds no more than one page of them.

    A beginning that claims more than has come is waited for, but not past the next page: a damaged
    length would else swallow what follows for many seconds. No more work is spent than a few
    passes over what came, however many false beginnings there are: what is beyond that counts as
    damaged.

    Attributes:
        num_pages: Pages found.
        num_damaged: Beginnings of pages that are none, or whose checksum is wrong.
        num_skipped_bytes: Bytes that belong to no page.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._credit = _CHECKS * MAX_PAGE_BYTES
        self._dropped = 0  # bytes that have left the buffer
        self._rejected: set[int] = set()  # where no page begins, counted from the first byte
        self.num_pages = 0
        self.num_damaged = 0
        self.num_skipped_bytes = 0

    def __len__(self) -> int:
        """Bytes that wait for the rest of their page."""
        return len(self._buffer)

    def push(self, data: bytes) -> list[Page]:
        """Take bytes; give the pages that are whole now."""
        buffer = self._buffer
        buffer += data
        most = _CHECKS * (MAX_PAGE_BYTES + len(data))
        self._credit = min(most, self._credit + _CHECKS * len(data))
        pages: list[Page] = []
        at = 0
        while True:
            at = self._find(at)
            size = _page_size(buffer, at)
            if size is None:
                ahead = self._look_ahead(at)
                if ahead is None:
                    break
                self.num_damaged += 1
                self.num_skipped_bytes += ahead - at
                at = ahead
            elif (page := self._check(at, size)) is None:
                self.num_damaged += 1
                self.num_skipped_bytes += 1
                at += 1
            else:
                pages.append(page)
                at += size
        del buffer[:at]
        self._dropped += at
        self._rejected = {where for where in self._rejected if where > self._dropped}
        self.num_pages += len(pages)
        return pages

    def _check(self, at: int, size: int) -> Page | None:
        """The page there, if it is one and there is credit to see that."""
        if not size or self._credit < size:
            return None
        self._credit -= size
        return _parse(bytes(self._buffer[at : at + size]))

    def _look_ahead(self, at: int) -> int | None:
        """Where a whole page begins behind a beginning that waits; None if there is none."""
        ahead = at
        for _ in range(_LOOK_AHEAD):
            ahead = self._buffer.find(CAPTURE, ahead + 1)
            if ahead < 0:
                return None
            where = self._dropped + ahead
            size = None if where in self._rejected else _page_size(self._buffer, ahead)
            if size is not None:
                if self._check(ahead, size) is not None:
                    return ahead
                self._rejected.add(where)
        return None

    def _find(self, at: int) -> int:
        """Where the next page may begin; what comes before is skipped."""
        buffer = self._buffer
        found = buffer.find(CAPTURE, at)
        if found < 0:  # its beginning may be there already
            tail = next(n for n in (3, 2, 1, 0) if buffer.endswith(CAPTURE[:n], at))
            found = len(buffer) - tail
        self.num_skipped_bytes += found - at
        return found


class PageWriter:
    """Makes the pages of one stream, one packet in each.

    Args:
        serial: Of the stream.

    Attributes:
        sequence: Number of the next page.
    """

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.sequence = 0

    def write(self, packet: bytes, granule: int = 0, *, flags: int = 0) -> bytes:
        """The page or pages that hold a packet.

        Args:
            packet: Its bytes.
            granule: Position after it.
            flags: :data:`FIRST` or :data:`LAST`, or none.
        """
        pages = b""
        rest = packet
        while len(rest) >= 255 * 255:
            pages += self._page(rest[: 255 * 255], b"\xff" * 255, UNKNOWN, flags & ~LAST)
            rest, flags = rest[255 * 255 :], (flags | CONTINUED) & ~FIRST
        table = b"\xff" * (len(rest) // 255) + bytes([len(rest) % 255])
        return pages + self._page(rest, table, granule, flags)

    def _page(self, body: bytes, table: bytes, granule: int, flags: int) -> bytes:
        page = build_page(body, table, granule, self.serial, self.sequence, flags)
        self.sequence = (self.sequence + 1) % 2**32
        return page


def build_page(
    body: bytes, table: bytes, granule: int, serial: int, sequence: int, flags: int = 0
) -> bytes:
    """A page with its checksum.

    Args:
        body: Its packets.
        table: Lengths of segments; one below 255 ends a packet.
        granule: Position after its last whole packet.
        serial: Of its stream.
        sequence: Its number in the stream.
        flags: :data:`CONTINUED`, :data:`FIRST` and :data:`LAST`.
    """
    page = bytearray(_HEADER.pack(CAPTURE, 0, flags, granule, serial, sequence, 0, len(table)))
    page += table + body
    page[_CHECKSUM] = checksum(bytes(page)).to_bytes(4, "little")
    return bytes(page)


def checksum(page: bytes) -> int:
    """Of a page whose checksum is zeros.

    It is that of zlib with the order of bits reversed, nothing inverted at begin and end.
    Source: RFC 3533, section 6, field 7.
    """
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def opus_head(sample_rate: int, *, channels: int = 1, pre_skip: int = 0) -> bytes:
    """The packet that an Opus stream begins with.

    Args:
        sample_rate: Hz of the sound that was encoded.
        channels: 1 or 2.
        pre_skip: Samples at 48 kHz to leave out at the beginning.
    """
    return b"OpusHead" + struct.pack("<BBHIhB", 1, channels, pre_skip, sample_rate, 0, 0)


def opus_tags(vendor: str) -> bytes:
    """The second packet of an Opus stream."""
    name = vendor.encode()
    return b"OpusTags" + struct.pack("<I", len(name)) + name + bytes(4)


def is_opus_header(packet: bytes) -> bool:
    """Whether a packet is one of the two."""
    return packet.startswith((b"OpusHead", b"OpusTags"))


def _page_size(buffer: bytearray, at: int) -> int | None:
    """Bytes of the page that begins there; 0 if it is none, None if more must come."""
    head = buffer[at : at + HEADER_BYTES]
    if len(head) > 4 and head[4] != 0:  # version
        return 0
    if len(head) > 5 and head[5] & ~_ALL_FLAGS:
        return 0
    if len(head) < HEADER_BYTES or len(buffer) - at < HEADER_BYTES + head[26]:
        return None
    table_at = at + HEADER_BYTES
    size = HEADER_BYTES + head[26] + sum(buffer[table_at : table_at + head[26]])
    return None if len(buffer) - at < size else size


def _parse(data: bytes) -> Page | None:
    """A page of bytes that have the size of one; None if its checksum is wrong."""
    _, _, flags, granule, serial, sequence, crc, num_segments = _HEADER.unpack_from(data)
    if checksum(data[: _CHECKSUM.start] + bytes(4) + data[_CHECKSUM.stop :]) != crc:
        return None
    table = data[HEADER_BYTES : HEADER_BYTES + num_segments]
    parts: list[bytes] = []
    start = end = HEADER_BYTES + num_segments
    for length in table:
        end += length
        if length < 255:
            parts.append(data[start:end])
            start = end
    complete = not table or table[-1] < 255
    if not complete:
        parts.append(data[start:end])
    return Page(flags, granule, serial, sequence, tuple(parts), complete)
