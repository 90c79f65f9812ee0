"""The live view as drawn, its keys on a terminal of its own, and its plain twin."""

from __future__ import annotations

import asyncio
import io
import math
import os
import pty
import termios
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moshi_pipe.graph.node import Key
from moshi_pipe.live_view import Keyboard, LiveView, PlainLiveUI, clean
from moshi_pipe.progress import LiveFrame
from moshi_pipe.report import SessionReport

FRAME = LiveFrame(
    session_id="a",
    time_s=0.08,
    heard_dbfs=-40.0,
    spoken_dbfs=-20.0,
    text="",
    tick_ms=30.0,
    lag_ms=33.0,
)


class NoKeys(Keyboard):
    """A keyboard that nobody has."""

    def open(self, press: object) -> None:
        pass


def make_view(width: int = 80) -> LiveView:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    view = LiveView({"m": Key("mute", lambda: "muted")}, console, NoKeys())
    view._open_ids.append("a")
    return view


def drawn(view: LiveView) -> list[str]:
    with view._console.capture() as capture:
        view._console.print(view.render())
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    view = make_view(width)
    for i in range(300):
        view.live(replace(FRAME, time_s=i * 0.08, text=" wordwordword 日本語", tick_ms=i % 120))

    lines = drawn(view)

    assert max(cell_len(line) for line in lines) <= width
    assert any("you" in line for line in lines)
    assert lines[-1].strip() == "m mute   Ctrl-C end"


def test_numbers_are_those_of_the_last_frame() -> None:
    view = make_view()
    view.live(replace(FRAME, time_s=75.0, lag_ms=41.4, dropped=3, underruns=2))

    lines = drawn(view)

    assert lines[0].strip() == "a  1:15  lag 41 ms  drops 3  underruns 2"
    assert "-40 dB" in lines[1]
    assert "-20 dB" in lines[2]
    assert "30 of 80 ms" in lines[3]


def test_late_ticks_stand_out() -> None:
    view = make_view()
    for tick_ms in (10.0, 79.0, 81.0):
        view.live(replace(FRAME, tick_ms=tick_ms))

    spark = view._sparkline(40)

    assert spark.plain == "▂██"
    assert [span.style for span in spark.spans] == ["cyan", "cyan", "bold red"]
    assert view._tick_number().plain == "81 of 80 ms !"


def test_levels_rise_at_once_and_fall_slowly() -> None:
    view = make_view()
    view.live(replace(FRAME, heard_dbfs=-10.0))
    for _ in range(5):
        view.live(replace(FRAME, heard_dbfs=-math.inf, spoken_dbfs=None))

    assert view._levels["you"] == -20.0
    for _ in range(100):
        view.live(replace(FRAME, heard_dbfs=-math.inf))
    assert view._levels["you"] == -60.0


def test_a_graph_without_speech_has_one_level() -> None:
    view = make_view()
    view.live(replace(FRAME, spoken_dbfs=None))

    assert not any("moshi" in line for line in drawn(view))


def test_only_the_last_lines_of_the_transcript_are_shown() -> None:
    view = make_view()
    for i in range(400):
        view.live(replace(FRAME, text=f" word{i}"))

    shown = [line for line in drawn(view) if "word" in line]

    assert len(shown) == 6
    assert "word399" in shown[-1]
    assert len(view._words) <= 2000


def test_text_is_shown_as_it_is_without_control_characters() -> None:
    view = make_view()
    view.live(replace(FRAME, text=" [red]x[/red]\x1b[2J\nnext\x07"))

    assert "[red]x[/red][2J next" in "\n".join(drawn(view))
    assert clean("a\x00\tb") == "a b"


def test_frames_of_other_sessions_are_counted_not_shown() -> None:
    view = make_view()
    view._open_ids.append("b")
    view.live(replace(FRAME, session_id="b", text=" no"))
    view.live(replace(FRAME, text=" yes"))

    lines = drawn(view)

    assert "+ 1 more" in lines[0]
    assert not any("no" in line for line in lines[4:])


def test_a_view_opens_and_closes_with_its_session_and_messages_stay_whole() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    view = LiveView({}, console, NoKeys())

    view.session_begins("a", None)
    view.live(replace(FRAME, text=" hello"))
    view.warn("the microphone is gone; trying again")
    view.session_ends(SessionReport("a", "done", frames=1, audio_s=0.08, wall_s=0.1))
    view.close()
    view.close()

    lines = [Text.from_ansi(line).plain.strip() for line in out.getvalue().split("\n")]
    assert any(line.endswith("warning: the microphone is gone; trying again") for line in lines)
    assert any("a: done" in line for line in lines)
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1


def test_keys_of_a_terminal_are_read_and_the_terminal_is_given_back() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    pressed: list[str] = []

    async def go() -> list[int]:
        keyboard = Keyboard(theirs)
        got = asyncio.Event()

        def press(key: str) -> None:
            pressed.append(key)
            if len(pressed) == 2:
                got.set()

        keyboard.open(press)
        while_open = termios.tcgetattr(theirs)[3]
        os.write(ours, b"mx")
        await asyncio.wait_for(got.wait(), 5)
        keyboard.close()
        keyboard.close()
        return [int(while_open)]

    (while_open,) = asyncio.run(go())

    assert pressed == ["m", "x"]
    assert not while_open & termios.ICANON
    assert while_open & termios.ISIG  # Ctrl-C stays what it is
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_a_key_changes_the_status() -> None:
    view = make_view()

    view._press("m")
    view._press("?")

    assert drawn(view)[-1].strip() == "muted   m mute   Ctrl-C end"


def test_no_terminal_means_no_keys() -> None:
    read_end, write_end = os.pipe()
    keyboard = Keyboard(read_end)

    keyboard.open(lambda key: pytest.fail(f"a key came: {key}"))
    keyboard.close()

    os.close(read_end)
    os.close(write_end)


# ---- plain lines


def plain(frames: list[LiveFrame], *, end: bool = False) -> list[str]:
    err = io.StringIO()
    ui = PlainLiveUI(err, io.StringIO())
    ui.session_begins("a", None)
    for item in frames:
        ui.live(item)
    if end:
        ui.session_ends(SessionReport("a", "done", audio_s=1.0, wall_s=1.0))
    return err.getvalue().splitlines()


def test_sentences_are_lines() -> None:
    texts = [" Hello", " there.", "", " How", " are", " you?"]
    frames = [replace(FRAME, time_s=i * 0.08, text=text) for i, text in enumerate(texts)]

    assert plain(frames) == ["moshi: Hello there.", "moshi: How are you?"]


def test_a_pause_ends_a_line_and_so_does_the_session() -> None:
    frames = [replace(FRAME, time_s=0.0, text=" well\x07")]
    frames += [replace(FRAME, time_s=i * 0.08) for i in range(1, 30)]
    frames += [replace(FRAME, time_s=3.0, text=" so")]

    assert plain(frames)[:1] == ["moshi: well"]
    assert plain(frames, end=True)[1] == "moshi: so"


def test_every_ten_seconds_a_line_says_how_it_goes() -> None:
    frames = [
        replace(FRAME, time_s=i * 0.08, lag_ms=90.0 if i == 7 else 33.0, dropped=i // 100)
        for i in range(260)
    ]

    assert plain(frames) == [
        "10.0 s: lag 33 ms, at most 90; tick 30 of 80 ms; 1 dropped, 0 underruns",
        "20.1 s: lag 33 ms, at most 33; tick 30 of 80 ms; 2 dropped, 0 underruns",
    ]
