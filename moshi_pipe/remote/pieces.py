"""Text of a remote model: pieces without token ids."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Final

_MOST_PIECES: Final = 65_536  # twice the vocabulary of the released models
_MOST_CHARACTERS: Final = 256
_BYTE: Final = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_CONTROL: Final = ("<unk>", "<s>", "</s>", "<pad>")


class Pieces:
    """Numbers the pieces that come, so that they travel like tokens.

    Numbers are below zero, which says that they are no ids of a vocabulary. What a server sends
    cannot make it grow: of more pieces than a vocabulary has, the oldest is forgotten.

    Attributes:
        padding_id: Stands for a frame without text.
        word_start_id: Never given.
        eos_id: Never given.
    """

    padding_id = 0
    word_start_id = -(2**31)
    eos_id = -(2**31)

    def __init__(self) -> None:
        self._ids: OrderedDict[str, int] = OrderedDict()
        self._pieces: dict[int, str] = {}
        self._last = 0

    def number(self, text: str) -> int:
        """Number of a piece; the same text has the same one."""
        text = text[:_MOST_CHARACTERS]
        if text in self._ids:
            self._ids.move_to_end(text)
            return self._ids[text]
        if len(self._ids) == _MOST_PIECES:
            del self._pieces[self._ids.popitem(last=False)[1]]
        self._last -= 1
        self._ids[text] = self._last
        self._pieces[self._last] = text
        return self._last

    def piece(self, token: int) -> str:
        """The piece, with ``▁`` for a space, as in a vocabulary."""
        return self._pieces.get(token, "").replace(" ", "▁")

    def is_byte(self, token: int) -> bool:
        """Whether the piece is one byte of a character."""
        return _BYTE.fullmatch(self._pieces.get(token, "")) is not None

    def is_control(self, token: int) -> bool:
        """Whether it carries no text."""
        return token >= 0 or self._pieces.get(token, "") in ("", *_CONTROL)
