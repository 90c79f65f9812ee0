"""The codec against the table of G.711 and against libsndfile's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from moshi_pipe_telephone import mulaw

if TYPE_CHECKING:
    from pathlib import Path

# ITU-T G.711, table 2a: code, decoder output value, and the decision values around it, of 14 bits.
TABLE = [
    (0x80, 8031, 7903, 8159),
    (0x8F, 4191, 4063, 4319),
    (0x9F, 2079, 2015, 2143),
    (0xAF, 1023, 991, 1055),
    (0xBF, 495, 479, 511),
    (0xCF, 231, 223, 239),
    (0xDF, 99, 95, 103),
    (0xEF, 33, 31, 35),
    (0xFE, 2, 1, 3),
]
ALL = bytes(range(256))


def encode_one(value_16: int) -> int:
    return mulaw.encode(np.array([value_16 / 32768], np.float32))[0]


@pytest.mark.parametrize(("code", "value", "low", "high"), TABLE)
def test_codes_and_values_are_those_of_the_table(
    code: int, value: int, low: int, high: int
) -> None:
    for sent, sign in ((code, 1), (code & 0x7F, -1)):  # the sign bit is inverted like the others
        assert mulaw.decode(bytes([sent]))[0] * 32768 == sign * 4 * value
        assert encode_one(sign * (4 * low + 1)) == sent
        assert encode_one(sign * (4 * high - 1)) == sent
    assert encode_one(4 * low - 1) == code + 1
    assert encode_one(-4 * low + 1) == (code & 0x7F) + 1


def test_silence_is_the_code_of_zero() -> None:
    assert mulaw.decode(bytes([mulaw.SILENCE]))[0] == 0.0
    assert mulaw.encode(np.zeros(3, np.float32)) == bytes([mulaw.SILENCE]) * 3


def test_every_code_comes_back_and_minus_zero_as_zero() -> None:
    again = mulaw.encode(mulaw.decode(ALL))

    assert [code for code in range(256) if again[code] != code] == [0x7F]
    assert again[0x7F] == 0xFF
    assert np.array_equal(mulaw.decode(again), mulaw.decode(ALL))


def test_what_is_too_loud_is_clipped() -> None:
    loud = np.array([1.0, 1.5, -1.0, -7.0], np.float32)

    assert mulaw.encode(loud) == bytes([0x80, 0x80, 0x00, 0x00])


def test_every_16_bit_value_is_coded_as_the_nearest_of_its_segment() -> None:
    values = np.arange(-32768, 32768)

    decoded = mulaw.decode(mulaw.encode((values / 32768).astype(np.float32))) * 32768

    # Steps are 8 in the first segment and double with each: half a step is the error at most.
    size = np.abs(values) + 132
    half_step = 2.0 ** (np.floor(np.log2(np.minimum(size, 32767))) - 5)
    inside = np.abs(values) <= 32635
    assert (np.abs(decoded - values) <= half_step)[inside].all()
    assert (np.diff(decoded) >= 0).all()


def test_libsndfile_reads_the_same_values(tmp_path: Path) -> None:
    path = tmp_path / "all.raw"
    path.write_bytes(ALL)

    read, _ = soundfile.read(
        path, dtype="int16", format="RAW", subtype="ULAW", samplerate=8000, channels=1
    )

    assert np.array_equal(np.asarray(read), mulaw.decode(ALL) * 32768)
