"""Runs of a source without end: what it is told, what is kept of it, and what becomes of failures.

On the model in the package, in this process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.model import RANDOM

from moshi_pipe.build import run_config
from moshi_pipe.compose import load_run
from moshi_pipe.engine.stages import LMStage
from moshi_pipe.errors import BackendError, ConfigError, MoshiPipeError, SessionError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.observers import KEPT
from moshi_pipe.plugins import load_plugins
from moshi_pipe.progress import SilentUI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from moshi_pipe.graph.host import Host
    from moshi_pipe.report import RunReport

FRAME = 1920
WORDS = ["device=cpu", "graph=codec", "seed=5"]
DIALOGUE = ["device=cpu", "seed=5", "engine.late=slow_down"]


class Talker(SessionInput):
    """Says what it is given, frame by frame; ends when told to."""

    sample_rate = 24_000

    def __init__(self, name: str, **options: Any) -> None:
        self.id = name
        self.meta = {"stem": name}
        self.reply = self
        self.frames: asyncio.Queue[float | None] = asyncio.Queue()
        self.ended = asyncio.Event()
        for key, value in options.items():
            setattr(self, key, value)

    async def chunks(self) -> AsyncIterator[Any]:
        """Yield frames of one value each."""
        while (value := await self.frames.get()) is not None:
            yield np.full((1, FRAME), value, np.float32)

    def say(self, *values: float | None) -> None:
        for value in values:
            self.frames.put_nowait(value)

    def report(self) -> Mapping[str, Any]:
        """Called when it has ended."""
        self.ended.set()
        return {}


class Server(Source):
    """Gives the sessions of a scenario, which ends the run when it is through."""

    live = True
    endless = True
    can_wait = True

    def __init__(self, scenario: Callable[[Server], Awaitable[None]]) -> None:
        self.scenario = scenario
        self.hosts: list[Host] = []
        self.attached = asyncio.Event()
        self.errors: list[MoshiPipeError] = []
        self.stopped = False
        self.given: asyncio.Queue[Talker | None] = asyncio.Queue()

    def attach(self, host: Host) -> None:
        """Remember it."""
        self.hosts.append(host)
        self.attached.set()

    def engine_lost(self, error: MoshiPipeError) -> None:
        """Remember it."""
        self.errors.append(error)
        self.attached.clear()

    def stop(self) -> None:
        """Give no more."""
        self.stopped = True
        self.given.put_nowait(None)

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield what the scenario gives."""
        assert self.hosts, "it is attached before it is asked"
        playing = asyncio.create_task(self._play())
        while (item := await self.given.get()) is not None:
            yield item
        await playing

    def give(self, name: str, *values: float | None, **options: Any) -> Talker:
        talker = Talker(name, **options)
        talker.say(*values)
        self.given.put_nowait(talker)
        return talker

    async def _play(self) -> None:
        try:
            await asyncio.wait_for(self.scenario(self), 120)
        finally:
            self.given.put_nowait(None)


@dataclass
class Screen(SilentUI):
    """Keeps what it is told."""

    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)


def serve(
    scenario: Callable[[Server], Awaitable[None]], *words: str, folder: Path
) -> tuple[RunReport, Server, Screen]:
    plugins = load_plugins(installed=False)
    chosen = [RANDOM, "source=silence", "sink=[file]", f"output_dir={folder}", *words]
    source, screen = Server(scenario), Screen()
    report = run_config(load_run(chosen, plugins.nodes), screen, plugins, source)
    return report, source, screen


async def reached(host: Host, what: str, number: int) -> None:
    """Wait until the engine has done so much; it tells nobody by itself."""
    for _ in range(60_000):
        if host.statistics()[what] >= number:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"no {number} {what}")


def test_a_source_is_told_what_its_sessions_run_on(tmp_path: Path) -> None:
    async def talk(server: Server) -> None:
        talker = server.give("a", 0.1, 0.2, 0.3, None)
        await talker.ended.wait()

    words = [*DIALOGUE, "engine.slots=4", "sampling.top_k=100"]
    _, server, _ = serve(talk, *words, folder=tmp_path)

    [host] = server.hosts
    facts = host.facts
    assert (facts.model, facts.random, facts.model_type) == ("embedded", True, "moshi")
    assert (facts.backend, facts.device, facts.dtype) == ("torch", "cpu", "float32")
    assert (facts.slots, facts.frame_samples, facts.sample_rate) == (4, FRAME, 24_000)
    assert facts.settings.top_k == 100
    assert facts.max_top_k == 100
    assert facts.max_text_top_k == 100
    assert facts.late == "slow_down"
    assert facts.tokenizer is not None
    assert facts.outputs == ("audio",), "what no sink takes is not made"
    assert host.can_park
    assert host.usable_slots == 4
    said = host.statistics()
    assert (said["frames"], said["sessions"]) == (3, 1)
    assert 0 <= said["late"] <= 3
    assert said["overhead"]["count"] == said["ticks"]
    assert set(said["nodes"]) == {"encode", "lm", "decode"}


def test_sessions_have_settings_of_their_own_and_wrong_ones_end_them_alone(tmp_path: Path) -> None:
    async def talk(server: Server) -> None:
        talkers = [
            server.give("plain", *[0.1] * 6, None, seed=3),
            server.give("same", *[0.1] * 6, None, seed=3, settings={"temperature": 0.8}),
            server.give("hot", *[0.1] * 6, None, seed=3, settings={"temperature": 2.0}),
            server.give("unknown", 0.1, settings={"temprature": 1.0}),
            server.give("negative", 0.1, settings={"temperature": -1.0}),
            server.give("wide", 0.1, settings={"top_k": 10_000}),
        ]
        for talker in talkers:
            await talker.ended.wait()

    report, _, _ = serve(talk, *DIALOGUE, "engine.slots=8", folder=tmp_path)

    status = {session.id: session.status for session in report.sessions}
    wrong = ("unknown", "negative", "wide")
    assert status == {
        **dict.fromkeys(("plain", "same", "hot"), "done"),
        **dict.fromkeys(wrong, "failed"),
    }
    errors = {session.id: str(session.error) for session in report.sessions}
    assert "'temprature'" in errors["unknown"]
    assert "temperature" in errors["unknown"].split("wanted")[1]
    assert "0 or more" in errors["negative"]
    assert "larger than this engine was made for" in errors["wide"]
    sound = {name: (tmp_path / f"{name}.wav").read_bytes() for name in ("plain", "same", "hot")}
    assert sound["plain"] == sound["same"] != sound["hot"]
    record = json.loads((tmp_path / "hot.session.json").read_text())
    assert record["settings"]["temperature"] == 2.0
    assert report.exit_code == 0, "no session makes a server fail"


def test_nothing_is_kept_of_who_does_not_consent(tmp_path: Path) -> None:
    async def talk(server: Server) -> None:
        for name, record in (("yes", True), ("no", False)):
            await server.give(name, 0.1, 0.2, None, record=record).ended.wait()

    report, _, _ = serve(talk, *WORDS, folder=tmp_path)

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"yes.wav", "yes.session.json", "run.json", "config.yaml"}
    assert [session.id for session in report.sessions] == ["yes"]
    assert report.totals is not None
    assert report.totals.counts == {"done": 2}


def test_a_session_that_would_take_the_file_of_another_ends_alone(tmp_path: Path) -> None:
    async def talk(server: Server) -> None:
        for name in ("a", "b"):
            await server.give(name, 0.1, 0.2, None).ended.wait()

    report, _, _ = serve(talk, *WORDS, "sink.file.path=one.wav", folder=tmp_path)

    assert report.totals is not None
    assert report.totals.counts == {"done": 1, "failed": 1}
    assert not (tmp_path / "b.session.json").exists()


def test_a_thousand_sessions_leave_totals_and_the_last_reports(tmp_path: Path) -> None:
    held: list[int] = []
    tasks: list[int] = []

    async def talk(server: Server) -> None:
        standing = asyncio.all_tasks()
        tracemalloc.start()
        for number in range(1, 1001):
            talker = server.give(f"s{number}", 0.1, 0.2, None, record=number % 4 == 0)
            await talker.ended.wait()
            if number in (500, 1000):  # the ticks that are kept, 750, are full by then
                if ending := asyncio.all_tasks() - standing:  # what a session still does after that
                    await asyncio.wait(ending, timeout=10)
                for _ in range(10):  # callbacks of what ended
                    await asyncio.sleep(0)
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
                tasks.append(len(asyncio.all_tasks()))
        tracemalloc.stop()

    report, _, _ = serve(talk, *WORDS, folder=tmp_path)

    assert report.totals is not None
    assert report.totals.counts == {"done": 1000}
    assert report.frames == report.totals.frames == 2000
    assert [session.id for session in report.sessions] == [f"s{4 * n}" for n in range(151, 251)]
    assert len(report.sessions) == KEPT
    assert tasks[1] <= tasks[0]
    assert held[1] - held[0] < 100_000, "200 bytes of a session are more than nothing"
    assert len(list(tmp_path.glob("*.session.json"))) == 250


def test_a_parked_session_goes_on_and_who_is_gone_cannot_be_parked(tmp_path: Path) -> None:
    async def talk(server: Server) -> None:
        [host] = server.hosts
        whole = server.give("whole", *[0.3] * 8, None, seed=1)
        await whole.ended.wait()
        moved = server.give("moved", *[0.3] * 4, seed=1)
        await reached(host, "frames", 12)
        size = await host.park("moved")
        assert size > 10_000
        other = server.give("other", 0.1, 0.2, None)
        await other.ended.wait()
        await host.unpark("moved")
        moved.say(*[0.3] * 4, None)
        await moved.ended.wait()
        gone = server.give("gone", 0.1)
        await reached(host, "sessions", 4)
        await host.park("gone")
        host.cancel("gone")
        await gone.ended.wait()
        for act in (host.park, host.unpark):
            with pytest.raises(SessionError, match="session gone"):
                await act("gone")
        host.cancel("gone")

    report, _, _ = serve(talk, *DIALOGUE, folder=tmp_path)

    assert (tmp_path / "moved.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()
    assert {s.id: s.status for s in report.sessions} == {
        **dict.fromkeys(("whole", "moved", "other"), "done"),
        "gone": "interrupted",
    }


def break_at(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Make the model's stage raise when a frame of this value comes."""
    step = LMStage.step

    def failing(self: LMStage, inputs: Any, tick: Any) -> Any:
        if self._running().num_steps.max() == value:
            raise RuntimeError("a stone in the machine")
        return step(self, inputs, tick)

    monkeypatch.setattr(LMStage, "step", failing)


def test_a_failed_engine_ends_its_sessions_and_another_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(monkeypatch, 3)
    order: list[str] = []

    async def talk(server: Server) -> None:
        first = server.give("first", *[0.1] * 8)
        await first.ended.wait()
        order.append("ended" if server.errors else "ended before the source was told")
        between = server.give("between", 0.1)
        await between.ended.wait()
        await server.attached.wait()
        await server.give("second", 0.1, 0.2, None).ended.wait()

    report, server, screen = serve(talk, *DIALOGUE, folder=tmp_path)

    assert order == ["ended"]
    assert len(server.hosts) == 2
    assert [session.status for session in report.sessions] == ["failed", "failed", "done"]
    assert all("a stone in the machine" in str(s.error) for s in report.sessions[:2])
    assert [
        str(error) in warning
        for error, warning in zip(
            server.errors,
            [w for w in screen.warnings if w.startswith("the engine failed")],
            strict=True,
        )
    ] == [True]
    assert not server.stopped


def test_an_engine_that_fails_again_and_again_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(monkeypatch, 1)

    async def talk(server: Server) -> None:
        for number in range(3):
            await server.attached.wait()
            await server.give(f"s{number}", *[0.1] * 5).ended.wait()

    with pytest.raises(BackendError, match=r"^the engine stopped: a tick failed"):
        serve(talk, *DIALOGUE, "engine.restarts=2", folder=tmp_path)
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["totals"]["counts"] == {"failed": 3}


@pytest.mark.parametrize("late", ["slow_down", "drop_oldest"])
def test_a_source_that_can_wait_may_be_asked_to(tmp_path: Path, late: str) -> None:
    async def talk(server: Server) -> None:
        assert server.hosts[0].facts.late == late

    serve(talk, *WORDS, f"engine.late={late}", folder=tmp_path)


def test_a_live_source_that_cannot_wait_is_not_asked_to(tmp_path: Path) -> None:
    class Impatient(Server):
        can_wait = False

    async def talk(server: Server) -> None:
        raise AssertionError("nothing runs")

    plugins = load_plugins(installed=False)
    words = [RANDOM, "source=silence", "sink=[file]", f"output_dir={tmp_path}", *DIALOGUE]
    with pytest.raises(ConfigError, match=r"^engine.late=slow_down is not for this source"):
        run_config(load_run(words, plugins.nodes), Screen(), plugins, Impatient(talk))
