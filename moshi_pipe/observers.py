"""Who watches a run: the person at the terminal, and plugins."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.engine.exchange import FrameDone, Observer, SessionPlan, SessionResult
from moshi_pipe.errors import InputError
from moshi_pipe.nodes.words import Word, WordBuilder
from moshi_pipe.progress import LiveFrame
from moshi_pipe.report import SessionTotals
from moshi_pipe.units import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from moshi_pipe.graph.node import SessionInfo, SessionInput
    from moshi_pipe.plugins import Plugins
    from moshi_pipe.progress import UI
    from moshi_pipe.report import SessionReport


MOST_FAILURES: Final = 3
"""A plugin that raised so often in observing hooks hears nothing more in the run."""

KEPT: Final = 100
"""Sessions whose reports are kept of a source without end."""

SLOW_NS: Final = 10 * NS_PER_MS
"""A call that takes longer is reported; ten times what a hook may take, since a busy machine
delays the best of them."""


@dataclass(slots=True)
class Heard:
    """What one plugin did with what it was told.

    Attributes:
        calls: Hooks called.
        failures: Those that raised.
        slow: Those that took longer than :data:`SLOW_NS`.
        longest_ns: The longest.
        reported: Hooks whose failure or slowness was reported.
    """

    calls: int = 0
    failures: int = 0
    slow: int = 0
    longest_ns: int = 0
    reported: set[tuple[str, str]] = field(default_factory=set)


class RunObserver(Observer):
    """Shows progress and calls the observing hooks.

    A hook that raises is reported once per plugin and hook; it stops neither a session nor the
    other plugins. After :data:`MOST_FAILURES` the plugin hears nothing more, which is said. A hook
    that is slow is reported with its time.

    Args:
        ui: Shows progress.
        plugins: Give the hooks.
        to_report: Turns a result into what the report says of it.
        live: Whether frames come at their own pace; then each is shown.
        endless: Whether the source is without end: then only the last reports are kept; of live
            ones, frames are not shown.
        clock: Times the hooks.

    Attributes:
        reports: Of the sessions that ended and may be kept.
        totals: Of all that ended.
        heard: What each plugin did, by its name.
    """

    def __init__(
        self,
        ui: UI,
        plugins: Plugins,
        to_report: Callable[[SessionResult], SessionReport],
        *,
        live: bool = False,
        endless: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.reports: deque[SessionReport] = deque(maxlen=KEPT if endless else None)
        self.totals = SessionTotals()
        self._ui = ui
        self._hook = plugins.manager.hook
        self._to_report = to_report
        self._live = live and not endless
        self._crowd = live and endless
        self._words: dict[str, tuple[WordBuilder, SessionInfo]] = {}
        self._clock = clock or SystemClock()
        self.heard: dict[str, Heard] = {}
        self._lock = threading.Lock()  # one hook is called on the engine's thread

    def on_open(self, item: SessionInput, plan: SessionPlan) -> None:
        """Show the session and tell plugins of it."""
        self._ui.session_begins(item.id, _length_s(item, plan))
        heard = self._live or self._hook.on_text.get_hookimpls()
        if plan.record and plan.info.tokenizer is not None and heard:
            self._words[item.id] = WordBuilder(plan.info.tokenizer), plan.info
        self._call("on_session_start", session_id=item.id, meta=item.meta, seed=plan.settings.seed)

    def on_frame(self, plan: SessionPlan, done: FrameDone) -> None:
        """Show how far the session is; pass packets and words to plugins, where that may be."""
        info = plan.info
        if not self._crowd:
            self._ui.session_at(info.id, (done.frame + 1) * info.frame_s)
        if plan.record and self._hook.on_frame.get_hookimpls():
            for packet in done.packets:
                self._call("on_frame", session_id=info.id, packet=packet)
        said: list[Word] = []
        if info.id in self._words:
            words, _ = self._words[info.id]
            for packet in done.packets:
                if packet.output == "text":
                    said += words.push(int(packet.payload), done.frame)
            self._tell_words(info, said)
        if self._live:
            self._ui.live(_live_frame(plan, done, said))

    def on_close(self, result: SessionResult) -> None:
        """Show what became of the session and tell plugins."""
        if result.id in self._words:
            words, info = self._words.pop(result.id)
            self._tell_words(info, words.finish())
        report = self._to_report(result)
        self.totals.add(report)
        if result.record:
            self.reports.append(report)
        self._ui.session_ends(report)
        error = None if result.failure is None else str(result.failure)
        self._call("on_session_end", session_id=result.id, frames=result.num_frames, error=error)

    def _tell_words(self, info: SessionInfo, words: Sequence[Word]) -> None:
        for word in words:
            self._call(
                "on_text",
                session_id=info.id,
                text=word.text,
                start_s=info.text_time_s(word.first_frame),
                end_s=info.text_time_s(word.last_frame + 1),
            )

    def on_late(self, session_id: str, frame: int, late_ns: int) -> None:
        """Tell plugins of a missed deadline; on the engine's thread."""
        late_ms = late_ns / NS_PER_MS
        self._call("on_deadline_missed", session_id=session_id, frame=frame, late_ms=late_ms)

    def _call(self, name: str, **arguments: Any) -> None:
        """Call a hook of every plugin; pluggy itself stops at the first that fails."""
        for plugin in getattr(self._hook, name).get_hookimpls():
            heard = self.heard.setdefault(plugin.plugin_name, Heard())
            if heard.failures >= MOST_FAILURES:
                continue
            start_ns = self._clock.now_ns()
            failure: Exception | None = None
            try:
                plugin.function(*(arguments[argument] for argument in plugin.argnames))
            except Exception as error:  # a plugin is foreign code; a session outlives its mistakes
                failure = error
            took_ns = self._clock.now_ns() - start_ns
            with self._lock:
                for text in _note(heard, plugin.plugin_name, name, took_ns, failure):
                    self._ui.warn(text)


def _note(
    heard: Heard, plugin: str, hook: str, took_ns: int, failure: Exception | None
) -> list[str]:
    """Count one call of a hook; returns what a person should be told of it."""
    said = []
    heard.calls += 1
    heard.longest_ns = max(heard.longest_ns, took_ns)
    if took_ns > SLOW_NS:
        heard.slow += 1
        if ("slow", hook) not in heard.reported:
            heard.reported.add(("slow", hook))
            said.append(
                f"plugin {plugin} took {took_ns / NS_PER_MS:.0f} ms in {hook}, where 1 ms is "
                f"right: all sessions wait meanwhile; to run without it: -p no:{plugin}"
            )
    if failure is None:
        return said
    heard.failures += 1
    if ("failed", hook) not in heard.reported:
        heard.reported.add(("failed", hook))
        said.append(f"plugin {plugin} failed in {hook}: {type(failure).__name__}: {failure}")
    if heard.failures >= MOST_FAILURES:
        said.append(
            f"plugin {plugin} failed {heard.failures} times and hears nothing more in this run; "
            f"tell its authors; to run without it: -p no:{plugin}"
        )
    return said


def _live_frame(plan: SessionPlan, done: FrameDone, said: Sequence[Word]) -> LiveFrame:
    """What a live view shows of a frame."""
    levels = {
        packet.output: _dbfs(np.asarray(packet.payload))
        for packet in done.packets
        if packet.output in ("audio", "user_audio")
    }
    times = done.times
    return LiveFrame(
        session_id=plan.info.id,
        time_s=(done.frame + 1) * plan.info.frame_s,
        heard_dbfs=levels.get("user_audio", -math.inf),
        spoken_dbfs=levels.get("audio"),
        text="".join(f" {word.text}" for word in said),
        tick_ms=(times.end_ns - times.start_ns) / NS_PER_MS,
        lag_ms=(times.end_ns - times.delivered_ns) / NS_PER_MS,
        dropped=done.num_dropped,
        underruns=sum(sink.num_underruns for sink in plan.sinks),
    )


def _dbfs(samples: npt.NDArray[np.float32]) -> float:
    """Root mean square in dB of full scale."""
    power = float(np.mean(np.square(samples)))
    return 10 * math.log10(power) if power > 0 else -math.inf


def _length_s(item: SessionInput, plan: SessionPlan) -> float | None:
    """Seconds that a session will last, if its input says so."""
    try:
        rate, num_samples = item.sample_rate, item.num_samples
    except InputError:  # the session ends with it
        return None
    if not num_samples or not rate:
        return None
    return num_samples / rate + plan.lead_s + plan.tail_s
