"""The model's SentencePiece tokenizer: the words of its domain, one piece each.

A SentencePiece model is a protobuf message, and this one is small enough to be written as it is.
Source: google/sentencepiece src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from moshi_pipe_nano.domain import vocabulary

if TYPE_CHECKING:
    from pathlib import Path

_NORMAL: Final = 1
_UNKNOWN: Final = 2
_CONTROL: Final = 3
_UNUSED: Final = 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the message
_UNIGRAM: Final = 1
_WORD_BEGIN: Final = "\N{LOWER ONE EIGHTH BLOCK}"


def write_tokenizer(path: Path, size: int) -> None:
    """Write a model with exactly ``size`` pieces."""
    pieces = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL), ("<pad>", _CONTROL)]
    pieces += [(_WORD_BEGIN + word, _NORMAL) for word in vocabulary()]
    pieces += [(f"<unused{i}>", _UNUSED) for i in range(len(pieces), size)]
    data = b"".join(_field(_PIECES, _piece(text, kind)) for text, kind in pieces)
    trainer = _number(3, _UNIGRAM) + _number(4, size)
    trainer += _number(40, 0) + _number(41, 1) + _number(42, 2) + _number(43, 3)
    data += _field(_TRAINER, trainer) + _field(_NORMALIZER, _field(1, b"identity"))
    path.write_bytes(data)


def _piece(text: str, kind: int) -> bytes:
    return _field(1, text.encode()) + b"\x15" + struct.pack("<f", 0.0) + _number(3, kind)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
