"""Payloads of audio messages to samples and back: Ogg Opus and PCM, damaged or not.

A decoder takes whatever comes and never fails: what cannot be decoded is silence of the same
length, as far as that is known and at most :data:`MAX_GAP_S` at once.

Shape letters: N PCM sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from moshi_pipe.errors import BackendError
from moshi_pipe.server.messages import AudioFormat
from moshi_pipe.server.ogg import FIRST, UNKNOWN, PageReader, PageWriter, is_opus_header

if TYPE_CHECKING:
    import numpy.typing as npt

    from moshi_pipe.server.ogg import Page

SAMPLE_RATE: Final = 24_000
"""Hz of everything that is decoded from Opus, or encoded."""

MAX_GAP_S: Final = 1.0
"""Seconds of silence at most that stand for what was lost at one place."""

MAX_PACKET_BYTES: Final = 61_440
"""Of an Opus packet; 48 frames of 1,275 bytes and their lengths are fewer."""

_GRANULE_HZ: Final = 48_000
_GRANULES: Final = _GRANULE_HZ // SAMPLE_RATE  # of a sample: 2
_MAX_PACKET_MS: Final = 120
_ENCODER_SAMPLES: Final = 960  # of a packet of sphn: 40 ms
_FOREIGN_PAGES: Final = 4  # in a row, before another stream is believed to have begun
_MAX_GAP: Final = int(MAX_GAP_S * SAMPLE_RATE)
_MAX_BELIEVED: Final = 3_600 * _GRANULE_HZ
_S16: Final = 32_768


class Decoder(Protocol):
    """Bytes of one stream to samples."""

    @property
    def num_faults(self) -> int:
        """Places where something could not be decoded, so far."""

    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        """Take bytes, split anywhere; give samples that are complete, finite float32 ``[N]``."""


class Encoder(Protocol):
    """Samples of one stream to bytes."""

    def push(self, pcm: npt.NDArray[np.float32]) -> bytes:
        """Take samples, float32 ``[N]``, full scale 1; give the bytes that are complete."""

    def finish(self) -> bytes:
        """The end: what is left, filled up with silence where a packet must be whole."""


def make_decoder(form: AudioFormat) -> Decoder:
    """A decoder of one stream; samples keep their rate, and Opus always gives 24 kHz.

    Raises:
        BackendError: The Opus library is missing.
    """
    return OpusDecoder() if form is AudioFormat.OGG_OPUS else PcmDecoder(form)


def make_encoder(form: AudioFormat) -> Encoder:
    """An encoder of one stream of 24 kHz, mono.

    Raises:
        BackendError: The Opus library is missing.
    """
    return OpusEncoder() if form is AudioFormat.OGG_OPUS else PcmEncoder(form)


class PcmDecoder:
    """Little-endian samples, 16-bit whole numbers or 32-bit floats; a split sample is kept.

    Floats are not clipped, infinite ones are full scale, those that are no numbers are silence;
    both are counted.
    """

    def __init__(self, form: AudioFormat) -> None:
        self._dtype = np.dtype("<f4" if form is AudioFormat.PCM_F32LE else "<i2")
        self._rest = b""
        self.num_faults = 0

    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        """Take bytes; give whole samples, float32 ``[N]``."""
        data = self._rest + data
        whole = len(data) // self._dtype.itemsize * self._dtype.itemsize
        self._rest = data[whole:]
        samples_N = np.frombuffer(data[:whole], self._dtype)
        if self._dtype.kind == "i":
            return samples_N.astype(np.float32) / np.float32(_S16)
        finite_N = np.isfinite(samples_N)
        if not finite_N.all():
            self.num_faults += int(np.count_nonzero(~finite_N))
            samples_N = np.nan_to_num(samples_N, nan=0.0, posinf=1.0, neginf=-1.0)
        return samples_N.astype(np.float32)


class PcmEncoder:
    """Little-endian samples; 16-bit ones are rounded and clipped, floats are as they are."""

    def __init__(self, form: AudioFormat) -> None:
        self._is_float = form is AudioFormat.PCM_F32LE

    def push(self, pcm: npt.NDArray[np.float32]) -> bytes:
        """Bytes of the samples."""
        if self._is_float:
            return pcm.astype("<f4").tobytes()
        scaled_N = np.nan_to_num(np.round(pcm * np.float32(_S16)), nan=0.0)
        clipped_N: npt.NDArray[np.int16] = np.clip(scaled_N, -_S16, _S16 - 1).astype("<i2")
        return clipped_N.tobytes()

    def finish(self) -> bytes:
        """Nothing is left."""
        return b""


class OpusEncoder:
    """An Ogg Opus stream, a page for every 40 ms; its header pages come with the first of them."""

    def __init__(self) -> None:
        self._stream = _sphn().OpusStreamWriter(SAMPLE_RATE)
        self._rest = 0

    def push(self, pcm: npt.NDArray[np.float32]) -> bytes:
        """Pages that are complete."""
        self._rest = (self._rest + pcm.size) % _ENCODER_SAMPLES
        return bytes(self._stream.append_pcm(np.ascontiguousarray(pcm, dtype=np.float32)))

    def finish(self) -> bytes:
        """The page of what is left, if anything is."""
        if not self._rest:
            return b""
        return self.push(np.zeros(_ENCODER_SAMPLES - self._rest, np.float32))


class OpusDecoder:
    """An Ogg Opus stream, of one or two channels mixed down; headers may be missing.

    Pages are taken apart here and handed to the library one packet at a time, in pages of our own:
    so what is damaged reaches it as nothing, and what it does not take costs one packet.

    Attributes:
        pages: The reader, for its counters.
        num_faults: Gaps, packets that could not be decoded, and damaged pages.
    """

    def __init__(self) -> None:
        self.pages = PageReader()
        self._num_lost = 0
        self._foreign = 0
        self._new_stream(None)

    @property
    def num_faults(self) -> int:
        """Gaps, packets that could not be decoded, and damaged pages."""
        return self._num_lost + self.pages.num_damaged

    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        """Take bytes; give samples of the packets that are whole, float32 ``[N]`` at 24 kHz."""
        parts_N: list[npt.NDArray[np.float32]] = []
        for page in self.pages.push(data):
            self._take(page, parts_N)
        return np.concatenate(parts_N) if parts_N else np.zeros(0, np.float32)

    def _new_stream(self, serial: int | None) -> None:
        self._stream = _sphn().OpusStreamReader(SAMPLE_RATE)
        self._writer = PageWriter(1)
        self._serial = serial
        self._sequence: int | None = None  # of the next page
        self._granule: int | None = None  # where the last page ended
        self._counts_right = False
        self._piece: bytes | None = None  # of a packet that goes on in the next page
        self._packet_samples = _ENCODER_SAMPLES  # of the last packet
        self._page_samples = _ENCODER_SAMPLES  # of the last page
        self._foreign = 0

    def _take(self, page: Page, parts_N: list[npt.NDArray[np.float32]]) -> None:
        if not self._is_ours(page):
            return
        packets = self._packets(page)
        sounds = [one for one in packets if one is None or not is_opus_header(one)]
        lengths = [self._length(packet) for packet in sounds]
        samples = sum(lengths)
        gap = self._gap(page, samples)
        if gap:
            self._num_lost += 1
            parts_N.append(np.zeros(min(gap, _MAX_GAP), np.float32))
        for packet, length in zip(sounds, lengths, strict=True):
            parts_N.append(self._decode(packet, length))
        self._sequence = (page.sequence + 1) % 2**32
        self._page_samples = samples or self._page_samples

    def _is_ours(self, page: Page) -> bool:
        """Whether the page belongs to the stream; one that begins replaces it."""
        begins = page.first and bool(page.parts) and page.parts[0].startswith(b"OpusHead")
        if self._serial is None or begins:
            self._new_stream(page.serial)
        elif page.serial != self._serial:
            self._foreign += 1
            if self._foreign < _FOREIGN_PAGES:
                return False
            self._new_stream(page.serial)
        self._foreign = 0
        return True

    def _packets(self, page: Page) -> list[bytes | None]:
        """Packets that end in the page; None is one of which a piece is missing."""
        parts: list[bytes | None] = list(page.parts)
        follows = self._sequence is None or page.sequence == self._sequence
        piece, self._piece = (self._piece if follows else None), None
        if page.continued and parts:
            parts[0] = None if piece is None else piece + (parts[0] or b"")
        if parts and not page.complete:
            piece = parts.pop()
            small = piece is not None and len(piece) <= MAX_PACKET_BYTES
            self._piece = piece if small else None
        return [one if one is None or len(one) <= MAX_PACKET_BYTES else None for one in parts]

    def _length(self, packet: bytes | None) -> int:
        """Samples of a packet, or of the one before if it does not say."""
        samples = 0 if packet is None else packet_samples(packet)
        self._packet_samples = samples or self._packet_samples
        return self._packet_samples

    def _gap(self, page: Page, samples: int) -> int:
        """Samples that are missing before the page; notes where it ends.

        Positions say it best, but some encoders count them wrongly: they are believed where they
        were right for the page before. Otherwise each missing page was as long as that.
        """
        before = self._granule
        if page.granule != UNKNOWN:
            self._granule = page.granule
        if self._sequence is None:
            return 0
        missing = None
        if before is not None and page.granule != UNKNOWN:
            missing = page.granule - before - _GRANULES * samples
        lost = (page.sequence - self._sequence) % 2**32
        if not lost:
            if missing is not None:
                self._counts_right = missing == 0
            return 0
        if self._counts_right and missing is not None and 0 < missing <= _MAX_BELIEVED:
            return missing // _GRANULES
        return min(lost, _MAX_GAP) * self._page_samples if lost < 2**31 else 0

    def _decode(self, packet: bytes | None, length: int) -> npt.NDArray[np.float32]:
        """Samples of a packet, or as much silence."""
        if packet is not None and packet_samples(packet):
            flags = 0 if self._writer.sequence else FIRST
            try:
                samples_N = self._stream.append_bytes(self._writer.write(packet, flags=flags))
            except ValueError:
                pass
            else:
                finite_N: npt.NDArray[np.float32] = np.nan_to_num(samples_N, nan=0.0)
                return finite_N
        self._num_lost += 1
        return np.zeros(min(length, _MAX_GAP), np.float32)


def packet_samples(packet: bytes) -> int:
    """Samples at 24 kHz that an Opus packet holds by its first bytes; 0 if it cannot be one.

    Source: RFC 6716, section 3.1 and 3.2.
    """
    if not packet:
        return 0
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        quarter_ms = (40, 80, 160, 240)[config & 3]
    elif config < 16:
        quarter_ms = (40, 80)[config & 1]
    else:
        quarter_ms = (10, 20, 40, 80)[config & 3]
    if code == 3 and len(packet) < 2:
        return 0
    frames = (1, 2, 2, packet[1] & 63 if code == 3 else 0)[code]
    if frames * quarter_ms > 4 * _MAX_PACKET_MS:
        return 0
    return frames * quarter_ms * SAMPLE_RATE // 4_000


def _sphn() -> Any:
    try:
        import sphn
    except ImportError as error:
        raise BackendError(
            "Opus needs the package sphn",
            fix="pip install sphn; without it, clients of a moshi-pipe server use audio=pcm_s16le",
        ) from error
    return sphn
