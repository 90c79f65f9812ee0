"""Observers that raise or dawdle: reported, disabled, and never in the way of a session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from moshi_pipe.engine.clock import ManualClock
from moshi_pipe.engine.exchange import FrameDone, SessionPlan, SessionResult
from moshi_pipe.graph.node import SessionInfo, SessionSettings
from moshi_pipe.graph.packet import FrameTimes, Packet
from moshi_pipe.hooks import hook_names, hookimpl
from moshi_pipe.nodes.array_source import ArrayInput
from moshi_pipe.observers import MOST_FAILURES, RunObserver
from moshi_pipe.plugins import load_plugins
from moshi_pipe.report import SessionReport
from moshi_pipe.units import NS_PER_MS

ITEM = ArrayInput("a", np.zeros(8, np.float32), 100)
INFO = SessionInfo("a", {"stem": "a"}, Path(), {}, frame_s=0.08, seed=1)
PLAN = SessionPlan(INFO, SessionSettings(seed=1), [])
PACKET = Packet("audio", 0, 0, np.zeros((1, 8), np.float32))
DONE = FrameDone(0, [PACKET], FrameTimes(), 0)


class Ears:
    """Uses every observing hook."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def on_session_start(self, session_id: str, meta: Any, seed: int) -> None:
        self.heard.append("on_session_start")

    @hookimpl
    def on_frame(self, session_id: str, packet: Packet) -> None:
        self.heard.append("on_frame")

    @hookimpl
    def on_text(self, session_id: str, text: str, start_s: float, end_s: float) -> None:
        self.heard.append("on_text")

    @hookimpl
    def on_deadline_missed(self, session_id: str, frame: int, late_ms: float) -> None:
        self.heard.append("on_deadline_missed")

    @hookimpl
    def on_session_end(self, session_id: str, frames: int, error: str | None) -> None:
        self.heard.append("on_session_end")


class Raises:
    def __init__(self) -> None:
        self.calls = 0

    @hookimpl
    def on_frame(self) -> None:
        self.calls += 1
        raise RuntimeError("no time")


class Dawdles:
    """Takes 25 ms of a manual clock."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock

    @hookimpl
    def on_frame(self) -> None:
        self.clock.advance(25 * NS_PER_MS)


class Screen:
    """A user interface that remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def observer(*given: Any, clock: ManualClock | None = None) -> tuple[RunObserver, Screen]:
    screen = Screen()
    named = [(type(plugin).__name__.lower(), plugin) for plugin in given]
    plugins = load_plugins(named, installed=False)
    made = RunObserver(
        screen,
        plugins,
        lambda result: SessionReport(result.id, "done"),
        clock=clock or ManualClock(),
    )
    return made, screen


def test_every_observing_hook_is_called() -> None:
    ears = Ears()
    watching, screen = observer(ears)

    watching.on_open(ITEM, PLAN)
    watching.on_frame(PLAN, DONE)
    watching._tell_words(INFO, [SimpleNamespace(text="hello", first_frame=0, last_frame=2)])  # type: ignore[list-item]
    watching.on_late("a", 0, 5 * NS_PER_MS)
    watching.on_close(SessionResult("a", {"stem": "a"}, 1))

    assert set(ears.heard) == {name for name in hook_names() if name.startswith("on_")}
    assert screen.warnings == []


def test_a_plugin_that_raises_is_reported_once_and_disabled_after_three_failures() -> None:
    raises, ears = Raises(), Ears()
    watching, screen = observer(raises, ears)

    for _ in range(10):
        watching.on_frame(PLAN, DONE)

    assert raises.calls == MOST_FAILURES == 3
    assert ears.heard == ["on_frame"] * 10
    assert screen.warnings == [
        "plugin raises failed in on_frame: RuntimeError: no time",
        "plugin raises failed 3 times and hears nothing more in this run; tell its authors; "
        "to run without it: -p no:raises",
    ]


def test_a_slow_plugin_is_reported_once_with_its_name_and_its_time() -> None:
    clock = ManualClock()
    ears = Ears()
    watching, screen = observer(Dawdles(clock), ears, clock=clock)

    for _ in range(4):
        watching.on_frame(PLAN, DONE)

    assert ears.heard == ["on_frame"] * 4
    assert watching.heard["dawdles"].slow == 4
    assert watching.heard["ears"].slow == 0
    assert screen.warnings == [
        "plugin dawdles took 25 ms in on_frame, where 1 ms is right: all sessions wait meanwhile; "
        "to run without it: -p no:dawdles"
    ]


def test_plugins_hear_nothing_of_what_may_not_be_kept() -> None:
    ears = Ears()
    watching, _ = observer(ears)
    plan = replace(PLAN, record=False)

    watching.on_open(ITEM, plan)
    watching.on_frame(plan, DONE)
    watching.on_close(SessionResult("a", {"stem": "a"}, 1, record=False))

    assert ears.heard == ["on_session_start", "on_session_end"]
    assert not watching.reports
    assert watching.totals.counts == {"done": 1}
