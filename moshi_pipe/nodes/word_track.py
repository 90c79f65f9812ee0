"""Text tokens as words on the time line of a session's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshi_pipe.metrics.words import TimedWord
from moshi_pipe.nodes.words import WordBuilder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.graph.node import SessionInfo
    from moshi_pipe.nodes.words import Word


class WordTrack:
    """Collects the words of a session.

    Times are those of frames less the silence put before the input and the model's text delay: a
    word begins when its first token is made and ends when the frame of its last one does.

    Args:
        session: Gives the tokenizer, which it must have.
    """

    def __init__(self, session: SessionInfo) -> None:
        if session.tokenizer is None:
            raise RuntimeError("words need a tokenizer")
        self._session = session
        self._builder = WordBuilder(session.tokenizer)
        self._words: list[TimedWord] = []

    def push(self, token: int, frame: int) -> None:
        """Take one frame's token."""
        self._keep(self._builder.push(token, frame))

    def finish(self) -> list[TimedWord]:
        """All words."""
        self._keep(self._builder.finish())
        return self._words

    def _keep(self, words: Sequence[Word]) -> None:
        at = self._session.text_time_s
        for word in words:
            self._words.append(TimedWord(word.text, at(word.first_frame), at(word.last_frame + 1)))
