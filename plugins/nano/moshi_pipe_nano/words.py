"""Words as text tokens: one token a word, after the four reserved ones."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from moshi_pipe_nano.domain import vocabulary

WORD_START: Final = 0
"""Marks the frame before a word."""

UNKNOWN: Final = 0
PADDING: Final = 3
FIRST_WORD: Final = 4


@lru_cache(maxsize=1)
def _numbers() -> dict[str, int]:
    return {word: FIRST_WORD + i for i, word in enumerate(vocabulary())}


def token(word: str) -> int:
    """Token of a word of the domain."""
    return _numbers()[word]


def text_of(tokens: list[int]) -> str:
    """Words of a run of text tokens; what is no word is left out."""
    words = vocabulary()
    inside = [t - FIRST_WORD for t in tokens if FIRST_WORD <= t < FIRST_WORD + len(words)]
    return " ".join(words[i] for i in inside)
