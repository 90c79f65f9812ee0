"""The live view as drawn, its keys on a terminal of its own, and its plain twin."""

from __future__ import annotations

import asyncio
import io
import math
import os
import pty
import sys
import termios
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moshi_pipe import live_view
from moshi_pipe.graph.node import Key
from moshi_pipe.live_view import Keyboard, LiveView, PlainLiveUI, choose_live_ui, clean
from moshi_pipe.progress import LiveFrame
from moshi_pipe.report import SessionReport

if TYPE_CHECKING:
    from collections.abc import Callable

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


class OneKey(Keyboard):
    """A keyboard whose keys a test presses."""

    press: Callable[[str], None]

    def open(self, press: Callable[[str], None]) -> None:
        self.press = press


def make_view(width: int = 80, height: int = 25, *sessions: str) -> LiveView:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None
    )
    view = LiveView({"m": Key("mute", lambda: "muted")}, console, NoKeys())
    for name in sessions or ("a",):
        view._seen[name] = live_view._Seen()  # no thread that draws
    return view


def drawn(view: LiveView) -> list[str]:
    """The view on a console of its own, also while it is open."""
    file = io.StringIO()
    Console(file=file, width=view._console.width, color_system=None).print(view.render())
    return file.getvalue().splitlines()


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


def test_a_narrow_terminal_loses_no_number() -> None:
    view = make_view(40, 25, "mic-20261123-114500")
    view.live(replace(FRAME, session_id="mic-20261123-114500", time_s=99.0, dropped=3, underruns=2))

    lines = drawn(view)

    assert lines[0].strip() == "mic-20261123-114500"
    assert lines[1].strip() == "1:39  lag 33 ms  drops 3  underruns 2"


@pytest.mark.parametrize(
    ("counts", "styles"), [((0, 0), []), ((1, 0), ["bold yellow"]), ((1, 2), ["bold yellow"] * 2)]
)
def test_drops_and_underruns_are_calm_until_there_are_some(
    counts: tuple[int, int], styles: list[str]
) -> None:
    line = live_view._numbers(replace(FRAME, dropped=counts[0], underruns=counts[1]))

    assert [span.style for span in line.spans if span.style != "dim"] == styles


def test_a_level_just_below_full_scale_is_not_minus_zero() -> None:
    view = make_view()
    view.live(replace(FRAME, heard_dbfs=-0.3))

    assert drawn(view)[1].rstrip().endswith(" 0 dB")


def test_late_ticks_stand_out() -> None:
    spark = live_view._sparkline([0.0, 10.0, 79.0, 81.0, 1e6])

    assert spark.plain == "▁▂███"
    assert [span.style for span in spark.spans] == ["cyan"] * 3 + ["bold red"] * 2
    assert live_view._tick_number(replace(FRAME, tick_ms=80.0)).style == ""
    late = live_view._tick_number(replace(FRAME, tick_ms=81.0))
    assert (late.plain, late.style) == ("81 of 80 ms !", "bold red")


def test_the_sparkline_ends_with_the_last_tick() -> None:
    view = make_view(40)
    for tick_ms in [79.0] * 60 + [10.0]:
        view.live(replace(FRAME, tick_ms=tick_ms))

    (line,) = (line for line in drawn(view) if "tick" in line)

    assert line.split()[1] == "█" * 13 + "▂"


def test_levels_rise_at_once_and_fall_slowly() -> None:
    view = make_view()
    view.live(replace(FRAME, heard_dbfs=-10.0))
    for _ in range(5):
        view.live(replace(FRAME, heard_dbfs=-math.inf, spoken_dbfs=None))

    assert view._seen["a"].levels == {"you": -20.0, "moshi": -30.0}
    for _ in range(100):
        view.live(replace(FRAME, heard_dbfs=-math.inf))
    assert view._seen["a"].levels["you"] == -60.0


@pytest.mark.parametrize(
    ("level_dbfs", "bar"), [(-60.0, "─" * 6), (-30.0, "━" * 3 + "─" * 3), (12.0, "━" * 6)]
)
def test_a_bar_is_full_at_full_scale(level_dbfs: float, bar: str) -> None:
    assert live_view._bar(level_dbfs, 6).plain == bar


def test_the_row_of_a_level_does_not_come_and_go() -> None:
    view = make_view()
    heights = []
    for spoken_dbfs in (-20.0, None, -20.0, None):
        view.live(replace(FRAME, spoken_dbfs=spoken_dbfs))
        heights.append(len(drawn(view)))

    assert len(set(heights)) == 1


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


def test_lines_stay_where_they_are_while_words_come() -> None:
    view = make_view()
    jumps, before = 0, [""]
    for i in range(1200):  # about 9000 characters
        view.live(replace(FRAME, text=f" word{i * 7919 % 1000}"))
        shown = [line for line in drawn(view) if "word" in line]
        jumps += before[0] != shown[0] and len(before) == 6 and before[1] != shown[0]
        before = shown

    assert jumps <= 4  # one per 2000 characters
    assert len(view._seen["a"].words) <= 4000


def test_a_low_terminal_keeps_the_keys_in_sight() -> None:
    view = make_view(80, 12)
    for _ in range(200):
        view.live(replace(FRAME, text=" word"))

    lines = drawn(view)

    assert len(lines) < 12
    assert lines[-1].strip() == "m mute   Ctrl-C end"
    assert any("word" in line for line in lines)


def test_text_is_shown_as_it_is_without_control_characters() -> None:
    view = make_view()
    view.live(replace(FRAME, text=" [red]x[/red]\x1b[2J\nnext\x07"))

    assert "[red]x[/red][2J next" in "\n".join(drawn(view))
    assert clean("a\x00\tb") == "a b"
    assert clean("\u202eab\ud800") == "ab"


def test_of_several_sessions_the_first_is_shown_then_the_next() -> None:
    view = make_view(80, 25, "a", "b")
    view.live(replace(FRAME, session_id="b", text=" second"))
    view.live(replace(FRAME, text=" first"))

    both = drawn(view)
    view.session_ends(SessionReport("a", "done"))
    one = drawn(view)

    assert both[0].startswith("a  + 1 more  0:00")
    assert both[5].strip() == "first"
    assert one[0].startswith("b  0:00")
    assert one[5].strip() == "second"


def test_frames_of_unknown_sessions_are_left_out() -> None:
    view = make_view()
    before = drawn(view)

    view.live(replace(FRAME, session_id="elsewhere", text=" no"))

    assert drawn(view) == before


def test_a_view_without_a_session_can_be_drawn() -> None:
    view = make_view()
    view.session_ends(SessionReport("a", "done"))

    assert drawn(view)[-1].strip() == "m mute   Ctrl-C end"


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
    assert any(line.strip() == "a" for line in lines)  # the head of the view
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


def test_messages_cannot_move_the_cursor() -> None:
    view = make_view()

    with view._console.capture() as capture:
        view.note("[bold]a\x1b[2J\nb")
        view.warn("c\x1b[H")

    assert Text.from_ansi(capture.get()).plain.splitlines() == ["[bold]a[2J", "b", "warning: c[H"]


def test_a_key_changes_the_status_until_the_session_ends() -> None:
    muted = [False]

    def mute() -> str:
        muted[0] = not muted[0]
        return "muted" if muted[0] else ""

    keyboard = OneKey()
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view = LiveView({"m": Key("mute", mute)}, console, keyboard)
    view.session_begins("a", None)
    keyboard.press("m")
    keyboard.press("?")
    while_muted = drawn(view)[-1]
    keyboard.press("m")
    after = drawn(view)[-1]
    keyboard.press("m")
    view.close()

    assert while_muted.strip() == "muted   m mute   Ctrl-C end"
    assert after.strip() == "m mute   Ctrl-C end"
    assert drawn(view)[-1] == after


def test_what_goes_to_a_file_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    view = LiveView({}, console, NoKeys())

    view.session_begins("a", None)
    sys.stdout.write("result\n")
    view.close()

    assert out.getvalue() == "result\n"


def test_bars_of_loading_never_meet_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    view = LiveView({}, console, NoKeys())

    view.loading("model", 1, 10)
    assert view._progress is not None
    view.session_begins("a", None)
    view.loading("model", 2, 10)
    assert view._progress is None
    view.close()
    view.loading("model", 3, 10)
    view.close()


def keys_of(typed: bytes) -> list[str]:
    """What a keyboard says of bytes that end with ``!``."""
    ours, theirs = pty.openpty()
    pressed: list[str] = []

    async def go() -> None:
        keyboard, done = Keyboard(theirs), asyncio.Event()

        def press(key: str) -> None:
            done.set() if key == "!" else pressed.append(key)

        keyboard.open(press)
        os.write(ours, typed)
        await asyncio.wait_for(done.wait(), 5)
        keyboard.close()

    asyncio.run(go())
    os.close(ours)
    os.close(theirs)
    return pressed


@pytest.mark.parametrize("sequence", [b"\x1b[A", b"\x1bOm", b"\x1b[1;5m", b"\x1bm", b"\xff"])
def test_arrows_and_such_are_no_keys(sequence: bytes) -> None:
    assert keys_of(b"m" + sequence + b"x!") == ["m", "x"]


def test_a_terminal_that_hangs_up_ends_the_keys_quietly() -> None:
    ours, theirs = pty.openpty()

    async def go() -> bool:
        keyboard = Keyboard(theirs)
        keyboard.open(lambda key: pytest.fail(f"a key came: {key!r}"))
        os.close(ours)
        for _ in range(100):
            await asyncio.sleep(0)
        still_read = asyncio.get_running_loop().remove_reader(theirs)
        keyboard.close()
        return still_read

    assert not asyncio.run(go())
    os.close(theirs)


def test_a_terminal_that_is_gone_is_left_quietly() -> None:
    ours, theirs = pty.openpty()

    async def go() -> None:
        keyboard = Keyboard(theirs)
        keyboard.open(lambda key: None)
        os.close(ours)
        keyboard.close()

    asyncio.run(go())
    os.close(theirs)


def test_a_job_in_the_background_leaves_the_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp() + 1)

    async def go() -> list[object]:
        keyboard = Keyboard(theirs)
        keyboard.open(lambda key: None)
        return termios.tcgetattr(theirs)

    assert asyncio.run(go()) == before
    os.close(ours)
    os.close(theirs)


def test_without_an_event_loop_there_are_no_keys() -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    keyboard = Keyboard(theirs)

    keyboard.open(lambda key: None)

    assert termios.tcgetattr(theirs) == before
    keyboard.close()
    os.close(ours)
    os.close(theirs)


def test_no_terminal_means_no_keys() -> None:
    read_end, write_end = os.pipe()
    keyboard = Keyboard(read_end)

    keyboard.open(lambda key: pytest.fail(f"a key came: {key}"))
    keyboard.close()

    os.close(read_end)
    os.close(write_end)


class Terminal(io.StringIO):
    """Standard error of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stderr", "term", "wanted"),
    [
        (Terminal(), "xterm-256color", LiveView),
        (Terminal(), None, LiveView),  # Windows has no TERM
        (Terminal(), "dumb", PlainLiveUI),
        (io.StringIO(), "xterm-256color", PlainLiveUI),
    ],
)
def test_a_terminal_that_can_draw_gets_the_view(
    stderr: io.StringIO, term: str | None, wanted: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)

    assert type(choose_live_ui({})) is wanted


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


def test_lines_of_several_sessions_say_whose_they_are() -> None:
    err = io.StringIO()
    ui = PlainLiveUI(err, io.StringIO())
    ui.session_begins("a", None)
    ui.session_begins("b", None)

    ui.live(replace(FRAME, text=" Yes."))
    ui.live(replace(FRAME, session_id="b", text=" No."))
    ui.live(replace(FRAME, session_id="elsewhere", text=" Never."))

    assert err.getvalue().splitlines() == ["a: moshi: Yes.", "b: moshi: No."]


def test_blanks_are_no_line_and_lines_have_no_control_characters() -> None:
    err = io.StringIO()
    ui = PlainLiveUI(err, io.StringIO())
    ui.session_begins("a", None)

    ui.live(replace(FRAME, text=" \x1b"))
    ui.live(replace(FRAME, time_s=9.0))
    ui.warn("a\x1b[2J\nb")

    assert err.getvalue() == "warning: a[2J\nb\n"
