"""What a person sees while a conversation lasts: one calm view in a terminal, else plain lines."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import unicodedata
from collections import deque
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
_TRANSCRIPT_CHARS: Final = 2000
_LABEL_WIDTH: Final = 7
_NUMBER_WIDTH: Final = 16
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_SAY_EVERY_S: Final = 10.0
_SENTENCE_ENDS: Final = (".", "?", "!", "…")
_PAUSE_S: Final = 2.0


class LiveView(TerminalUI):
    """One view per terminal: levels, transcript, tick times, lag and drops.

    Everything goes through one rich console, so that messages come above the view and never tear
    it. Of several sessions the first open one is shown.

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
        self._open_ids: list[str] = []
        self._frame: LiveFrame | None = None
        self._ticks_ms: deque[float] = deque(maxlen=_TICKS)
        self._levels = {"you": _SILENCE_DBFS, "moshi": _SILENCE_DBFS}
        self._words = ""
        self._status = ""

    def session_begins(self, session_id: str, audio_s: float | None) -> None:
        """Open the view."""
        PlainUI.session_begins(self, session_id, audio_s)
        self._open_ids.append(session_id)
        if self._view is not None:
            return
        from rich.live import Live

        self.close()  # bars of loading
        self._view = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=_REFRESHES_PER_S,
            transient=True,
        )
        self._view.start()
        self._keyboard.open(self._press)

    def session_at(self, session_id: str, done_s: float) -> None:
        """Nothing: :meth:`live` tells more."""

    def live(self, frame: LiveFrame) -> None:
        """Take over what a frame was like."""
        if not self._open_ids or frame.session_id != self._open_ids[0]:
            return
        self._frame = frame
        self._ticks_ms.append(frame.tick_ms)
        self._words = (self._words + clean(frame.text))[-_TRANSCRIPT_CHARS:]
        for name, level in (("you", frame.heard_dbfs), ("moshi", frame.spoken_dbfs)):
            falling = self._levels[name] - _FALL_DB
            self._levels[name] = max(
                _SILENCE_DBFS, falling, level if level is not None else falling
            )

    def session_ends(self, report: SessionReport) -> None:
        """Close the view with the last session."""
        if report.id in self._open_ids:
            self._open_ids.remove(report.id)
        if not self._open_ids:
            self.close()
        PlainUI.session_ends(self, report)

    def close(self) -> None:
        """Take the view away and give the terminal back."""
        self._keyboard.close()
        view, self._view = self._view, None
        if view is not None:
            view.stop()
        super().close()

    def render(self) -> RenderableType:
        """The view as it is now, for the width of the console."""
        from rich.console import Group

        width = self._console.width
        table = _grid()
        for name, level in self._levels.items():
            if name == "moshi" and self._frame is not None and self._frame.spoken_dbfs is None:
                continue
            table.add_row(name, _bar(level, _middle(width)), f"{level:.0f} dB")
        table.add_row("tick", self._sparkline(_middle(width)), self._tick_number())
        return Group(self._head(), table, *self._transcript(width), self._foot())

    def _head(self) -> Text:
        from rich.text import Text

        frame, more = self._frame, len(self._open_ids) - 1
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{self._open_ids[0] if self._open_ids else ''}  ", style="bold")
        if more > 0:
            line.append(f"+ {more} more  ", style="dim")
        if frame is None:
            return line
        minutes, seconds = divmod(int(frame.time_s), 60)
        line.append(f"{minutes:d}:{seconds:02d}  ")
        line.append("lag ", style="dim").append(f"{frame.lag_ms:.0f} ms  ")
        for what, count in (("drops", frame.dropped), ("underruns", frame.underruns)):
            line.append(f"{what} ", style="dim")
            line.append(f"{count}  ", style="bold yellow" if count else "")
        return line

    def _sparkline(self, width: int) -> Text:
        """Tick times as bars: full at the length of a frame, red above."""
        from rich.text import Text

        line = Text(no_wrap=True)
        for tick_ms in list(self._ticks_ms)[-width:]:
            step = min(len(_BLOCKS) - 1, int(tick_ms / FRAME_MS * len(_BLOCKS)))
            line.append(_BLOCKS[step], style="bold red" if tick_ms > FRAME_MS else "cyan")
        return line

    def _tick_number(self) -> Text:
        from rich.text import Text

        if self._frame is None:
            return Text("")
        late = self._frame.tick_ms > FRAME_MS
        text = f"{self._frame.tick_ms:.0f} of {FRAME_MS:.0f} ms" + (" !" if late else "")
        return Text(text, style="bold red" if late else "")

    def _transcript(self, width: int) -> list[Text]:
        """The last lines of what the model said."""
        from rich.text import Text

        said = Text(self._words.strip())
        lines = list(said.wrap(self._console, max(1, width - 2)))[-_TRANSCRIPT_LINES:]
        return [Text("")] + [Text("  ").append_text(line) for line in lines] + [Text("")]

    def _foot(self) -> Text:
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ellipsis")
        if self._status:
            line.append(self._status, style="bold reverse").append("   ")
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

    def session_at(self, session_id: str, done_s: float) -> None:
        """Nothing: :meth:`live` tells more."""

    def live(self, frame: LiveFrame) -> None:
        """Write what is complete."""
        name = frame.session_id
        said, last_s = self._words.get(name, ("", frame.time_s))
        if frame.text:
            said, last_s = said + clean(frame.text), frame.time_s
        if said and (said.endswith(_SENTENCE_ENDS) or frame.time_s - last_s >= _PAUSE_S):
            self._say(said)
            said = ""
        self._words[name] = said, last_s
        recent = self._recent.setdefault(name, [])
        recent.append(frame)
        if frame.time_s - recent[0].time_s >= _SAY_EVERY_S:
            self.note(_summary(recent))
            recent.clear()

    def session_ends(self, report: SessionReport) -> None:
        """Write what is left, and what became of the session."""
        said, _ = self._words.pop(report.id, ("", 0.0))
        if said:
            self._say(said)
        self._recent.pop(report.id, None)
        super().session_ends(report)

    def _say(self, text: str) -> None:
        self.note(f"moshi: {text.strip()}")


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
        if fd is None or not os.isatty(fd) or self._fd is not None:
            return
        try:
            import termios
            import tty

            self._loop = asyncio.get_running_loop()
            self._before = termios.tcgetattr(fd)
            tty.setcbreak(fd)
        except (ImportError, OSError, RuntimeError):
            return
        self._fd = fd
        self._loop.add_reader(fd, lambda: press(os.read(fd, 1).decode(errors="ignore")))

    def close(self) -> None:
        """Put the terminal back as it was."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        import termios

        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, self._before)


def choose_live_ui(keys: Mapping[str, Key]) -> UI:
    """The view when standard error is a terminal that can draw, else lines."""
    if sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return LiveView(keys)
    return PlainLiveUI()


def clean(text: str) -> str:
    """Text without control characters, which could move the cursor; line ends become spaces."""
    spaced = "".join(" " if c.isspace() else c for c in text)
    return "".join(c for c in spaced if unicodedata.category(c) != "Cc")


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
    return Text("━" * full, style=style).append("╌" * (width - full), style="dim")


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
