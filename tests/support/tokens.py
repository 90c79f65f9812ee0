"""A vocabulary that tests can read."""

from __future__ import annotations

PIECES = [
    *("<unk>", "<s>", "</s>", "<pad>"),
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *("▁Hello", "▁wor", "ld", ".", "▁caf", "▁", "s", "▁a<b>&", "'", "?", "▁New", "▁day"),
]
PAD, START, EOS = 3, 0, 2


class WordTokenizer:
    """Implements :class:`moshi_pipe.graph.node.TextTokenizer` over :data:`PIECES`, or others."""

    padding_id = PAD
    word_start_id = START
    eos_id = EOS

    def __init__(self, more: tuple[str, ...] = ()) -> None:
        self.pieces = [*PIECES, *more]

    def piece(self, token: int) -> str:
        """The piece."""
        return self.pieces[token] if 0 <= token < len(self.pieces) else ""

    def is_byte(self, token: int) -> bool:
        """Bytes follow the reserved pieces."""
        return 4 <= token < 260

    def is_control(self, token: int) -> bool:
        """The reserved ones, and what is outside."""
        return not 4 <= token < len(self.pieces)


def ids(*parts: str | int | bytes) -> list[int]:
    """Tokens of pieces, of bytes, or as they are."""
    tokens: list[int] = []
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
        elif isinstance(part, bytes):
            tokens += [4 + byte for byte in part]
        else:
            tokens.append(PIECES.index(part))
    return tokens
