"""Who watches a run: the person at the terminal, and plugins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from moshi_pipe.engine.exchange import FrameDone, Observer, SessionPlan, SessionResult
from moshi_pipe.errors import InputError
from moshi_pipe.nodes.words import Word, WordBuilder
from moshi_pipe.progress import LiveFrame
from moshi_pipe.units import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from moshi_pipe.graph.node import SessionInfo, SessionInput
    from moshi_pipe.plugins import Plugins
    from moshi_pipe.progress import UI
    from moshi_pipe.report import SessionReport


class RunObserver(Observer):
    """Shows progress and calls the observing hooks.

    A hook that raises is reported once per plugin and hook; it stops neither a session nor the
    other plugins.

    Args:
        ui: Shows progress.
        plugins: Give the hooks.
        to_report: Turns a result into what the report says of it.
        live: Whether frames come at their own pace; then each is shown.
    """

    def __init__(
        self,
        ui: UI,
        plugins: Plugins,
        to_report: Callable[[SessionResult], SessionReport],
        *,
        live: bool = False,
    ) -> None:
        self.reports: list[SessionReport] = []
        self._ui = ui
        self._hook = plugins.manager.hook
        self._to_report = to_report
        self._live = live
        self._words: dict[str, tuple[WordBuilder, SessionInfo]] = {}
        self._complained: set[tuple[str, str]] = set()

    def on_open(self, item: SessionInput, plan: SessionPlan) -> None:
        """Show the session and tell plugins of it."""
        self._ui.session_begins(item.id, _length_s(item, plan))
        heard = self._live or self._hook.on_text.get_hookimpls()
        if plan.info.tokenizer is not None and heard:
            self._words[item.id] = WordBuilder(plan.info.tokenizer), plan.info
        self._call("on_session_start", session_id=item.id, meta=item.meta, seed=plan.settings.seed)

    def on_frame(self, plan: SessionPlan, done: FrameDone) -> None:
        """Show how far the session is; pass packets and words to plugins."""
        info = plan.info
        self._ui.session_at(info.id, (done.frame + 1) * info.frame_s)
        if self._hook.on_frame.get_hookimpls():
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
            try:
                plugin.function(*(arguments[argument] for argument in plugin.argnames))
            except Exception as error:  # a plugin is foreign code; a session outlives its mistakes
                key = plugin.plugin_name, name
                if key not in self._complained:
                    self._complained.add(key)
                    text = f"{type(error).__name__}: {error}"
                    self._ui.warn(f"plugin {plugin.plugin_name} failed in {name}: {text}")


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
