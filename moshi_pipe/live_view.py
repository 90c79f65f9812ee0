"""What a person sees while a conversation lasts: one calm view in a terminal, else plain lines."""

from __future__ import annotations

import asyncio
import math
import os
import re
import statistics
import sys
import unicodedata
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TextIO

from moshi_pipe.progress import UI, PlainUI, TerminalUI
from moshi_pipe.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from moshi_pipe.graph.node import Key
    from moshi_pipe.progress import LiveFrame
    from moshi_pipe.report import SessionReport

FRAME_MS: Final = 80.0
_REFRESHES_PER_S: Final = 5
_SILENCE_DBFS: Final = -60.0
_FALL_DB: Final = 2.0  # of a level per frame
_TICKS: Final = 200  # kept for the sparkline
_TRANSCRIPT_LINES: Final = 6
_TRANSCRIPT_CHARS: Final = 2000  # kept when twice as many are reached
_OTHER_LINES: Final = 9  # of the view, at most, and the one that the cursor is on
_LABEL_WIDTH: Final = 7
_NUMBER_WIDTH: Final = 16
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_SAY_EVERY_S: Final = 10.0
_SENTENCE_ENDS: Final = (".", "?", "!", "…")
_PAUSE_S: Final = 2.0
_DUMB: Final = ("dumb", "unknown")  # values of TERM for which rich draws nothing
_KEY_SEQUENCE: Final = re.compile("\x1b(\\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)  # arrows and such
_REMOVED: Final = ("Cc", "Cs")  # categories: control characters, halves of a surrogate pair
_TURNS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(slots=True)
class _Seen:
    """What the view remembers of one session.

    Attributes:
        frame: The last one.
        ticks_ms: How long the models took, latest last.
        levels: Of the bars, in dB of full scale.
        speaks: Whether any frame had audio of the model; a row that comes and goes is not calm.
        words: The end of what the model said.
    """

    frame: LiveFrame | None = None
    ticks_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_TICKS))
    levels: dict[str, float] = field(
        default_factory=lambda: {"you": _SILENCE_DBFS, "moshi": _SILENCE_DBFS}
    )
    speaks: bool = False
    words: str = ""

    def add(self, frame: LiveFrame) -> None:
        """Take over what a frame was like."""
        if frame.heard_dbfs == -math.inf and frame.spoken_dbfs is None and frame.tick_ms == 0:
            self.words = _shorten(self.words + clean(frame.text))  # text that came by itself
            return
        self.frame = frame
        self.ticks_ms.append(frame.tick_ms)
        self.words = _shorten(self.words + clean(frame.text))
        self.speaks = self.speaks or frame.spoken_dbfs is not None
        for name, level in (("you", frame.heard_dbfs), ("moshi", frame.spoken_dbfs)):
            falling = self.levels[name] - _FALL_DB
            self.levels[name] = max(_SILENCE_DBFS, falling, falling if level is None else level)


class LiveView(TerminalUI):
    """One view per terminal: levels, transcript, tick times, lag and drops.

    Everything goes through one rich console, so that messages come above the view and never tear
    it; nothing else may write to the terminal while it is open. Of several sessions the first open
    one is shown. The view is drawn on a thread of rich, from what the other calls left.

    Args:
        keys: What single keys do while a session lasts.
        console: Where it is drawn; standard error by default.
        keyboard: Gives the keys; that of the terminal by default.
    """

    def __init__(
        self,
        keys: Mapping[str, Key],
        console: Console | None = None,
        keyboard: Keyboard | None = None,
    ) -> None:
        super().__init__()
        self._console = console or self._console
        self._keys = dict(keys)
        self._keyboard = keyboard or Keyboard()
        self._view: Live | None = None
        self._seen: dict[str, _Seen] = {}  # of the open sessions, in order
        self._status = ""

    def note(self, text: str) -> None:
        """Write a line above the view."""
        super().note(_clean_lines(text))

    def warn(self, text: str) -> None:
        """Write a yellow line above the view."""
        super().warn(_clean_lines(text))

    def loading(self, what: str, done: int, total: int) -> None:
        """Draw a bar of bytes; nothing while the view is open, two would tear each other."""
        if self._view is None:
            super().loading(what, done, total)

    def session_begins(self, session_id: str, audio_s: float | None) -> None:
        """Open the view."""
        PlainUI.session_begins(self, session_id, audio_s)
        self._seen[session_id] = _Seen()
        if self._view is not None:
            return
        from rich.live import Live

        self.close()  # bars of loading
        self._bars.clear()
        self._view = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes to a file or a pipe stays there
        )
        self._view.start()
        self._keyboard.open(self._press)

    def session_at(self, session_id: str, done_s: float) -> None:
        """Nothing: :meth:`live` tells more."""

    def live(self, frame: LiveFrame) -> None:
        """Take over what a frame was like; nothing if its session is not open."""
        if frame.session_id in self._seen:
            self._seen[frame.session_id].add(frame)

    def session_ends(self, report: SessionReport) -> None:
        """Close the view with the last session."""
        self._seen.pop(report.id, None)
        if not self._seen:
            self.close()
        PlainUI.session_ends(self, report)

    def close(self) -> None:
        """Take the view away and give the terminal back."""
        self._keyboard.close()
        self._status = ""
        view, self._view = self._view, None
        if view is not None:
            view.stop()
        super().close()

    def render(self) -> RenderableType:
        """The view as it is now, for the width of the console."""
        from rich.console import Group

        # One copy: sessions come and go while this thread of rich draws.
        sessions = list(self._seen.items())
        name, seen = sessions[0] if sessions else ("", _Seen())
        head = _head(name, len(sessions) - 1, seen.frame, self._console.width)
        return Group(*head, self._rows(seen), *self._transcript(seen.words), self._foot())

    def _rows(self, seen: _Seen) -> Table:
        middle = _middle(self._console.width)
        table = _grid()
        for name, level in seen.levels.items():
            if name == "you" or seen.speaks or seen.frame is None:
                table.add_row(name, _bar(level, middle), f"{round(level)} dB")
        table.add_row("tick", _sparkline(list(seen.ticks_ms)[-middle:]), _tick_number(seen.frame))
        return table

    def _transcript(self, words: str) -> list[Text]:
        """The last lines of what the model said, fewer in a low terminal."""
        from rich.text import Text

        width, height = self._console.size
        num_lines = max(1, min(_TRANSCRIPT_LINES, height - _OTHER_LINES))
        lines = list(Text(words.lstrip()).wrap(self._console, max(1, width - 2)))[-num_lines:]
        return [Text(""), *(Text("  ").append_text(line) for line in lines if line), Text("")]

    def _foot(self) -> Text:
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ellipsis")
        if self._status:
            line.append(f" {clean(self._status)} ", style="bold reverse").append("  ")
        for key, what in self._keys.items():
            line.append(f"{key} ", style="bold").append(f"{what.label}   ", style="dim")
        line.append("Ctrl-C ", style="bold").append("end", style="dim")
        return line

    def _press(self, key: str) -> None:
        """A key was pressed."""
        if key in self._keys:
            self._status = self._keys[key].press()


class PlainLiveUI(PlainUI):
    """Lines for logs and pipes: what the model says by sentences, and how it goes every 10 s."""

    def __init__(
        self,
        err: TextIO | None = None,
        out: TextIO | None = None,
    ) -> None:
        super().__init__(err, out)
        self._words: dict[str, tuple[str, float]] = {}  # what is not written yet, and since when
        self._recent: dict[str, list[LiveFrame]] = {}

    def note(self, text: str) -> None:
        """Write a line."""
        super().note(_clean_lines(text))

    def warn(self, text: str) -> None:
        """Write a line that says it is a warning."""
        super().warn(_clean_lines(text))

    def session_at(self, session_id: str, done_s: float) -> None:
        """Nothing: :meth:`live` tells more."""

    def live(self, frame: LiveFrame) -> None:
        """Write what is complete; nothing if its session is not open."""
        name = frame.session_id
        if name not in self._started:
            return
        said, last_s = self._words.get(name, ("", frame.time_s))
        if frame.text:
            said, last_s = said + clean(frame.text), frame.time_s
        if said and (said.endswith(_SENTENCE_ENDS) or frame.time_s - last_s >= _PAUSE_S):
            self._say(name, said)
            said = ""
        self._words[name] = said, last_s
        recent = self._recent.setdefault(name, [])
        recent.append(frame)
        if frame.time_s - recent[0].time_s >= _SAY_EVERY_S:
            self.note(self._place(name) + _summary(recent))
            recent.clear()

    def session_ends(self, report: SessionReport) -> None:
        """Write what is left, and what became of the session."""
        said, _ = self._words.pop(report.id, ("", 0.0))
        self._say(report.id, said)
        self._recent.pop(report.id, None)
        super().session_ends(report)

    def _say(self, name: str, text: str) -> None:
        if text.strip():
            self.note(f"{self._place(name)}moshi: {text.strip()}")

    def _place(self, name: str) -> str:
        """Which session a line is about, when there are several."""
        return f"{name}: " if len(self._started) > 1 else ""


class Keyboard:
    """Single keys of the terminal, while it is open; none where there is no terminal.

    Args:
        fd: Of the terminal; None is standard input.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._wanted_fd = fd
        self._fd: int | None = None
        self._before: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, press: Callable[[str], None]) -> None:
        """Call back with each key, on the running event loop; Ctrl-C stays what it is."""
        fd = _stdin_fd() if self._wanted_fd is None else self._wanted_fd
        if fd is None or self._fd is not None or not os.isatty(fd) or _is_background(fd):
            return
        try:
            import termios
            import tty
        except ImportError:  # Windows
            return
        with suppress(termios.error, OSError, RuntimeError):  # no keys, then
            self._loop = asyncio.get_running_loop()
            self._before = termios.tcgetattr(fd)
            self._fd = fd
            tty.setcbreak(fd)
            self._loop.add_reader(fd, self._read, fd, press)

    def close(self) -> None:
        """Put the terminal back as it was; nothing if it is gone."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        import termios

        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(fd)
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, self._before)

    def _read(self, fd: int, press: Callable[[str], None]) -> None:
        """Pass on what was typed."""
        try:
            typed = os.read(fd, 64)
        except BlockingIOError:
            return
        except OSError:
            typed = b""
        if not typed:  # hung up: the loop would call this without end
            self.close()
        for key in _KEY_SEQUENCE.sub("", typed.decode(errors="ignore")):
            press(key)


def choose_live_ui(keys: Mapping[str, Key]) -> UI:
    """The view when standard error is a terminal that can draw, else lines."""
    if sys.stderr.isatty() and os.environ.get("TERM") not in _DUMB:
        return LiveView(keys)
    return PlainLiveUI()


def clean(text: str) -> str:
    """Text without what could move the cursor or turn its direction; line ends become spaces."""
    spaced = "".join(" " if c.isspace() else c for c in text)
    return "".join(c for c in spaced if unicodedata.category(c) not in _REMOVED and c not in _TURNS)


def _clean_lines(text: str) -> str:
    return "\n".join(clean(line) for line in text.split("\n"))


def _shorten(words: str) -> str:
    """The end of a long text.

    Cut seldom: every cut breaks the lines at other places, which a reader sees as a jump.
    """
    if len(words) <= 2 * _TRANSCRIPT_CHARS:
        return words
    end = words[-_TRANSCRIPT_CHARS:]
    return end.partition(" ")[2] or end


def _head(name: str, num_more: int, frame: LiveFrame | None, width: int) -> list[Text]:
    """Name and numbers: on one line where they fit, else below each other."""
    from rich.text import Text

    title = Text(clean(name), style="bold", no_wrap=True, overflow="ellipsis")
    if num_more > 0:
        title.append("  ").append(f"+ {num_more} more", style="not bold dim")
    if frame is None:
        return [title]
    numbers = _numbers(frame)
    if title.cell_len + 2 + numbers.cell_len > width:
        return [title, numbers]
    return [Text.assemble(title.append("  "), numbers)]


def _numbers(frame: LiveFrame) -> Text:
    """Time, lag, and what went wrong so far."""
    from rich.text import Text

    minutes, seconds = divmod(int(frame.time_s), 60)
    # Gaps end a piece, since viewers of SVG drop those that begin one.
    line = Text(f"{minutes:d}:{seconds:02d}  ")
    line.append("lag ", style="dim").append(f"{frame.lag_ms:.0f} ms  ")
    for what, count, gap in (("drops", frame.dropped, "  "), ("underruns", frame.underruns, "")):
        line.append(f"{what} ", style="dim")
        line.append(f"{count}{gap}", style="bold yellow" if count else "")
    return line


def _sparkline(ticks_ms: list[float]) -> Text:
    """Tick times as bars: full at the length of a frame, red above."""
    from rich.text import Text

    line = Text(no_wrap=True)
    for tick_ms in ticks_ms:
        step = min(len(_BLOCKS) - 1, int(tick_ms / FRAME_MS * len(_BLOCKS)))
        line.append(_BLOCKS[step], style="bold red" if tick_ms > FRAME_MS else "cyan")
    return line


def _tick_number(frame: LiveFrame | None) -> Text:
    from rich.text import Text

    if frame is None:
        return Text("")
    late = frame.tick_ms > FRAME_MS
    text = f"{frame.tick_ms:.0f} of {FRAME_MS:.0f} ms" + (" !" if late else "")
    return Text(text, style="bold red" if late else "")


def _grid() -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL_WIDTH, style="dim")
    table.add_column()
    table.add_column(width=_NUMBER_WIDTH, no_wrap=True)
    return table


def _middle(width: int) -> int:
    """Columns between label and number."""
    return max(4, width - _LABEL_WIDTH - _NUMBER_WIDTH - 3)


def _bar(level_dbfs: float, width: int) -> Text:
    """A level from -60 to 0 dBFS."""
    from rich.text import Text

    part = (level_dbfs - _SILENCE_DBFS) / -_SILENCE_DBFS
    full = round(width * min(1.0, max(0.0, part)))
    style = "bold red" if level_dbfs > -1 else "green"
    return Text("━" * full, style=style).append("─" * (width - full), style="dim")


def _summary(frames: list[LiveFrame]) -> str:
    """One line about some seconds."""
    last = frames[-1]
    lags = [frame.lag_ms for frame in frames]
    tick_ms = statistics.median(frame.tick_ms for frame in frames)
    return (
        f"{format_duration(last.time_s)}: lag {statistics.median(lags):.0f} ms, at most "
        f"{max(lags):.0f}; tick {tick_ms:.0f} of {FRAME_MS:.0f} ms; {last.dropped} dropped, "
        f"{last.underruns} underruns"
    )


def _stdin_fd() -> int | None:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def _is_background(fd: int) -> bool:
    """Whether the terminal belongs to another job; to change its mode would stop this one."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except (AttributeError, OSError):  # Windows; a terminal that does not control this process
        return False
