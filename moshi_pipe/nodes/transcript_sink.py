"""Sink ``transcript``: what the model said, as words with times."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError, OutputError, closest
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.nodes.naming import make_room, output_path, write_error
from moshi_pipe.nodes.words import Word, WordBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from moshi_pipe.graph.node import TextReader
    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.nodes.options import TranscriptSinkOptions

_CUE_PAUSE_S: Final = 1.0
_CUE_LONGEST_S: Final = 7.0
_CUE_SHORTEST_S: Final = 0.04  # a cue without duration is no cue
_CUE_CHARACTERS: Final = 84  # two lines of 42, as subtitle guidelines have it
_SENTENCE_ENDS: Final = (".", "?", "!", "…")


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word on the session's time line.

    Attributes:
        text: The word.
        start_s: When its first token was made.
        end_s: When the frame of its last token ended.
        tokens: Its tokens: id, piece, and when each was made.
    """

    text: str
    start_s: float
    end_s: float
    tokens: tuple[tuple[int, str, float], ...]


class TranscriptSink(Sink):
    """Writes what the model said. Every line is on disk as soon as it is known.

    Token times are frame times less the silence put before the input and less the delay of the
    text, never below zero.

    Raises:
        ConfigError: An unknown format.
    """

    def __init__(self, options: TranscriptSinkOptions) -> None:
        for name in options.formats:
            if name not in _WRITERS:
                raise ConfigError(
                    "sink.transcript.formats has no such format",
                    got=name,
                    wanted=closest(name, _WRITERS),
                )
        self.options = options
        self.takes = (options.output,)
        self._formats = list(dict.fromkeys(options.formats))
        self._session: SessionInfo | None = None
        self._reader: TextReader | None = None
        self._words: WordBuilder | None = None
        self._writers: list[_Writer] = []
        self._num_words = 0
        self._num_tokens = 0

    def outputs(self, session: SessionInfo) -> list[Path]:
        """One file per format."""
        suffixes = [f".{name}" for name in self._formats]
        return [output_path(self.options.path, session, suffix) for suffix in suffixes]

    async def open(self, session: SessionInfo) -> None:
        """Create the files.

        Raises:
            OutputError: One cannot be created.
            ConfigError: The graph makes no text.
        """
        output = self.options.output
        reader = session.reader(output)
        if reader is None or output not in session.formats:
            raise ConfigError(
                f"sink=transcript needs the output '{output}', which this graph does not make",
                fix="leave the transcript out, or choose graph=dialogue or graph=transcribe",
            )
        self._session, self._reader = session, reader
        self._words = WordBuilder(reader.tokenizer)
        paths = self.outputs(session)
        try:
            for name, path in zip(self._formats, paths, strict=False):
                self._writers.append(_WRITERS[name](path))
        except OutputError:
            self._close_writers()
            raise

    async def write(self, packet: Packet) -> None:
        """Take one token.

        Raises:
            OutputError: The disk does not take a line.
        """
        _, reader, words = self._running()
        token = int(packet.payload)
        if not reader.tokenizer.is_control(token):
            self._num_tokens += 1
        self._put(words.push(token, packet.frame))

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Write the last word and finish the files.

        A session that failed before its first frame leaves none.

        Raises:
            OutputError: The disk does not take it.
        """
        if self._words is None:
            return {}
        try:
            self._put(self._words.finish())
            for writer in self._writers:
                writer.finish()
        finally:
            self._close_writers()
        begun = end.complete or end.num_frames > 0
        if not begun:
            for writer in self._writers:
                writer.path.unlink(missing_ok=True)
        return {
            "sink": "transcript",
            "files": [str(writer.path) for writer in self._writers] if begun else [],
            "words": self._num_words,
            "tokens": self._num_tokens,
        }

    def _close_writers(self) -> None:
        for writer in self._writers:
            writer.close()

    def _put(self, words: Sequence[Word]) -> None:
        for word in words:
            self._num_words += 1
            timed = TimedWord(
                word.text,
                self._time_s(word.first_frame),
                self._time_s(word.last_frame + 1),
                tuple((t, self._piece(t), self._time_s(frame)) for t, frame in word.tokens),
            )
            for writer in self._writers:
                writer.write(timed)

    def _piece(self, token: int) -> str:
        _, reader, _ = self._running()
        return reader.tokenizer.piece(token)

    def _time_s(self, frame: int) -> float:
        session, reader, _ = self._running()
        return session.text_time_s(frame, reader.delay_s)

    def _running(self) -> tuple[SessionInfo, TextReader, WordBuilder]:
        if self._session is None or self._reader is None or self._words is None:
            raise RuntimeError("the transcript was not opened")
        return self._session, self._reader, self._words


class _Writer:
    """A text file of whole lines or cues; every write is with the system when it returns."""

    header = ""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        make_room(path)
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error
        self.append(self.header)

    def write(self, word: TimedWord) -> None:
        raise NotImplementedError

    def append(self, text: str) -> None:
        self.replace(self._size, text)

    def replace(self, start: int, text: str) -> None:
        """Write from the byte ``start`` on; if not all of it fits, leave nothing behind it."""
        rest, position = memoryview(text.encode()), start
        try:
            while rest:
                written = os.pwrite(self._file.fileno(), rest, position)
                rest, position = rest[written:], position + written
        except OSError as error:
            self._size = start
            os.ftruncate(self._file.fileno(), start)
            raise write_error(self.path, error) from error
        self._size = position

    def finish(self) -> None:
        """Write what ends the file."""

    def close(self) -> None:
        self._file.close()


class _JsonlWriter(_Writer):
    def write(self, word: TimedWord) -> None:
        tokens: list[dict[str, Any]] = [
            # A remote model says pieces, and not their ids.
            ({"token": t} if t >= 0 else {}) | {"piece": piece, "time_s": time_s}
            for t, piece, time_s in word.tokens
        ]
        record = {"start_s": word.start_s, "end_s": word.end_s, "text": word.text}
        self.append(json.dumps({**record, "tokens": tokens}, ensure_ascii=False) + "\n")


class _TextWriter(_Writer):
    _begun = False

    def write(self, word: TimedWord) -> None:
        self.append((" " if self._begun else "") + word.text)
        self._begun = True

    def finish(self) -> None:
        self.append("\n")


class _CueWriter(_Writer):
    """Subtitles: words gathered to cues that end with a sentence, a pause, or when full.

    The last cue is written anew with each of its words.
    """

    decimal = ","
    numbered = True

    def __init__(self, path: Path) -> None:
        self._cue: list[TimedWord] = []
        self._num_cues = 0
        super().__init__(path)
        self._cue_start = self._size

    def write(self, word: TimedWord) -> None:
        if not self._cue or self._is_full(word):
            self._cue, self._cue_start = [], self._size
            self._num_cues += 1
        self._cue.append(word)
        self._put_cue()

    def escape(self, text: str) -> str:
        """Write text so that it cannot be taken for markup."""
        return text

    def _is_full(self, word: TimedWord) -> bool:
        characters = sum(len(held.text) + 1 for held in self._cue) + len(word.text)
        return (
            self._cue[-1].text.endswith(_SENTENCE_ENDS)
            or word.start_s - self._cue[-1].end_s > _CUE_PAUSE_S
            or word.end_s - self._cue[0].start_s > _CUE_LONGEST_S
            or characters > _CUE_CHARACTERS
        )

    def _put_cue(self) -> None:
        start_s = self._cue[0].start_s
        end_s = max(self._cue[-1].end_s, start_s + _CUE_SHORTEST_S)
        text = self.escape(" ".join(word.text for word in self._cue))
        number = f"{self._num_cues}\n" if self.numbered else ""
        times = f"{self._stamp(start_s)} --> {self._stamp(end_s)}"
        self.replace(self._cue_start, f"{number}{times}\n{text}\n\n")

    def _stamp(self, time_s: float) -> str:
        ms = round(time_s * 1000)
        hours, ms = divmod(ms, 3_600_000)
        minutes, ms = divmod(ms, 60_000)
        seconds, ms = divmod(ms, 1000)
        return f"{hours:02d}:{minutes:02d}:{seconds:02d}{self.decimal}{ms:03d}"


class _SrtWriter(_CueWriter):
    pass


class _VttWriter(_CueWriter):
    header = "WEBVTT\n\n"
    decimal = "."
    numbered = False

    def escape(self, text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_WRITERS: Final[Mapping[str, Callable[[Path], _Writer]]] = {
    "jsonl": _JsonlWriter,
    "txt": _TextWriter,
    "srt": _SrtWriter,
    "vtt": _VttWriter,
}
