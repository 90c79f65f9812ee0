"""From text tokens to words with times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moshi_pipe.graph.node import TextTokenizer

_WORD_MARK = "▁"
_PATIENCE_FRAMES = 12  # about a second


@dataclass(frozen=True, slots=True)
class Word:
    """A word that was spoken.

    Attributes:
        text: Without blanks around it or line breaks in it.
        first_frame: Frame of its first token.
        last_frame: Frame of its last token.
        tokens: Its tokens, each with its frame.
    """

    text: str
    first_frame: int
    last_frame: int
    tokens: tuple[tuple[int, int], ...]


def piece_bytes(tokenizer: TextTokenizer, token: int) -> bytes:
    """UTF-8 of a token's piece, with blanks for ``▁``; one byte for a piece such as ``<0xC3>``."""
    piece = tokenizer.piece(token)
    if tokenizer.is_byte(token):
        return bytes([int(piece[1:-1], 16)])
    return piece.replace(_WORD_MARK, " ").encode()


class WordBuilder:
    """Joins tokens to words: ``▁`` begins one, further pieces and bytes continue it.

    Byte pieces such as ``<0xC3><0xA9>`` are put together to characters; bytes that are no UTF-8
    become U+FFFD. A word is given as soon as it is known to be whole: when the next one is
    announced or begins, or about a second after its last piece.

    Args:
        tokenizer: Knows the pieces.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = bytearray()
        self._tokens: list[tuple[int, int]] = []
        self._first = self._last = 0

    def push(self, token: int, frame: int) -> list[Word]:
        """Take one token; give the words that are now known to be whole."""
        tokenizer = self._tokenizer
        late = bool(self._tokens) and frame - self._last > _PATIENCE_FRAMES
        if token == tokenizer.word_start_id:
            return self._take()
        if tokenizer.is_control(token):
            return self._take() if late else []
        data = piece_bytes(tokenizer, token)
        done = self._take() if late or data.startswith(b" ") else []
        if not self._tokens:
            self._first = frame
        self._bytes += data
        self._tokens.append((token, frame))
        self._last = frame
        return done

    def finish(self) -> list[Word]:
        """Give the last word."""
        return self._take()

    def _take(self) -> list[Word]:
        text = " ".join(self._bytes.decode("utf-8", errors="replace").split())
        tokens, self._tokens = tuple(self._tokens), []
        self._bytes.clear()
        return [Word(text, self._first, self._last, tokens)] if text else []
