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

    Times are those of frames less the silence put before the input and the delay of the text: a
    word begins when its first token is made and ends when the frame of its last one does.

    Args:
        session: Knows what the tokens stand for.
        output: The text output that they come from.
    """

    def __init__(self, session: SessionInfo, output: str = "text") -> None:
        reader = session.reader(output)
        if reader is None:
            raise RuntimeError("words need a tokenizer")
        self._session = session
        self._delay_s = reader.delay_s
        self._builder = WordBuilder(reader.tokenizer)
        self._words: list[TimedWord] = []

    def push(self, token: int, frame: int) -> None:
        """Take one frame's token."""
        self._keep(self._builder.push(token, frame))

    def finish(self) -> list[TimedWord]:
        """All words."""
        self._keep(self._builder.finish())
        return self._words

    def _keep(self, words: Sequence[Word]) -> None:
        at, delay_s = self._session.text_time_s, self._delay_s
        for word in words:
            start_s, end_s = at(word.first_frame, delay_s), at(word.last_frame + 1, delay_s)
            self._words.append(TimedWord(word.text, start_s, end_s))
