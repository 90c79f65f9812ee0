"""Draw the pictures of the live view: ``python scripts/live_pictures.py``, into docs/."""

from __future__ import annotations

import io
import math
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, DIMMED_MONOKAI, TerminalTheme

from moshi_pipe.graph.node import Key
from moshi_pipe.live_view import LiveView
from moshi_pipe.progress import LiveFrame

DOCS = Path(__file__).parents[1] / "docs"
THEMES = {"dark": DIMMED_MONOKAI, "light": DEFAULT_TERMINAL_THEME}
SESSION = "mic-20261123-114500"
SPEECH = (
    "Hello! What can I do for you? A walk by the river is a fine idea: take the path behind the "
    "mill, then the small bridge. You will want a coat, since the wind comes up in the evening. "
    "Shall I tell you when the last train goes?"
)


def main() -> None:
    """Draw all."""
    for width in (80, 120):
        for name, theme in THEMES.items():
            draw(DOCS / f"live-{width}-{name}.svg", width, theme)


def draw(path: Path, width: int, theme: TerminalTheme) -> None:
    """Draw one."""
    console = Console(file=io.StringIO(), record=True, width=width, force_terminal=True)
    view = LiveView({"m": Key("mute", lambda: "muted")}, Console(file=io.StringIO(), width=width))
    view.session_begins(SESSION, None)
    for i in range(190):
        view.live(frame(i))
    console.print(view.render())
    view.close()
    svg = console.export_svg(title="moshi-pipe source=mic sink=speaker", theme=theme, unique_id="v")
    path.write_text(svg, encoding="utf-8")


def frame(i: int) -> LiveFrame:
    """A believable frame."""
    words = SPEECH.split()
    tick_ms = 31 + 4 * math.sin(i / 3) + (58 if i % 61 == 47 else 0)
    return LiveFrame(
        session_id=SESSION,
        time_s=(i + 1) * 0.08,
        heard_dbfs=-50 + 8 * math.sin(i / 5),
        spoken_dbfs=-16 + 9 * math.sin(i / 4),
        text=f" {words[i // 4]}" if i % 4 == 0 and i // 4 < len(words) else "",
        tick_ms=tick_ms,
        lag_ms=tick_ms + 2,
        dropped=0,
        underruns=1 if i > 120 else 0,
    )


if __name__ == "__main__":
    main()
