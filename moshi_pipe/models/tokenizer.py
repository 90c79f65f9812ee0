"""Text tokens to pieces, and a small tokenizer for checkpoints made here.

In Moshi's text stream, 3 pads a frame in which no new piece starts, and 0 marks the frame before a
new word. Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/lm.py, run_inference.py.
"""

from __future__ import annotations

import io
import os
import struct
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

PADDING_ID: Final = 3
WORD_START_ID: Final = 0
_RESERVED: Final = ("<unk>", "<s>", "</s>", "<pad>")
_BYTES: Final = 256
_MIN_VOCABULARY: Final = 320  # reserved, bytes, and the corpus's characters
_LEARNABLE: Final = 800  # pieces that the corpus has words for


class SentencePieceTokenizer:
    """A released tokenizer. Implements :class:`moshi_pipe.graph.node.TextTokenizer`.

    Args:
        path: SentencePiece model.

    Raises:
        CheckpointError: The file is missing or is no SentencePiece model.
    """

    padding_id = PADDING_ID
    word_start_id = WORD_START_ID

    def __init__(self, path: str | Path) -> None:
        import sentencepiece

        self._processor: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(Path(path).read_bytes())
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"the text tokenizer {path} cannot be read",
                got=str(error).splitlines()[0],
                wanted="a SentencePiece model",
            ) from error
        self.eos_id = int(self._processor.eos_id())

    def __len__(self) -> int:
        return int(self._processor.GetPieceSize())

    def piece(self, token: int) -> str:
        """Raw piece, such as ``▁Hello`` or ``<0xE2>``; empty for a token outside the vocabulary."""
        if not 0 <= token < len(self):
            return ""
        return str(self._processor.IdToPiece(token))

    def is_byte(self, token: int) -> bool:
        """Whether the piece is one byte of a character."""
        return 0 <= token < len(self) and bool(self._processor.IsByte(token))

    def is_control(self, token: int) -> bool:
        """Whether the token carries no text."""
        if token in (PADDING_ID, WORD_START_ID) or not 0 <= token < len(self):
            return True
        return bool(self._processor.IsControl(token) or self._processor.IsUnused(token))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return list(self._processor.EncodeAsIds(text))


def train_tiny_tokenizer(path: str | Path, vocab_size: int) -> None:
    """Write a SentencePiece model with exactly ``vocab_size`` pieces.

    Ids 0 to 3 are ``<unk>``, ``<s>``, ``</s>`` and ``<pad>``, bytes follow, then pieces learnt
    from a page of English, then unused ones. The same arguments give the same bytes.

    Args:
        path: File to write, atomically.
        vocab_size: Pieces, 320 or more.

    Raises:
        ConfigError: ``vocab_size`` is too small.
    """
    if vocab_size < _MIN_VOCABULARY:
        raise ConfigError(
            "a tokenizer needs more pieces",
            got=str(vocab_size),
            wanted=f"{_MIN_VOCABULARY} or more: 4 reserved ones, {_BYTES} bytes, some text",
        )
    learnt = min(vocab_size, _LEARNABLE)
    data = _pad(_train(learnt), learnt, vocab_size)
    part = Path(f"{path}.part")
    part.write_bytes(data)
    os.replace(part, path)


def _train(vocab_size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=_sentences(),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        pad_piece=_RESERVED[3],
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _sentences() -> Iterator[str]:
    text = files("moshi_pipe.models").joinpath("tokenizer_corpus.txt").read_text("utf-8")
    return iter([line for line in text.splitlines() if line.strip()])


def _pad(data: bytes, learnt: int, vocab_size: int) -> bytes:
    """Append unused pieces until the vocabulary has the wanted size.

    A SentencePiece model is a protobuf message whose pieces are the repeated field 1, so further
    pieces may simply follow. Source: google/sentencepiece src/sentencepiece_model.proto.
    """
    return data + b"".join(_unused_piece(i) for i in range(learnt, vocab_size))


def _unused_piece(index: int) -> bytes:
    name = f"<unused{index}>".encode()
    score, kind = struct.pack("<f", 0.0), 5  # 5 is UNUSED
    message = bytes([0x0A, len(name)]) + name + b"\x15" + score + bytes([0x18, kind])
    return bytes([0x0A, len(message)]) + message
