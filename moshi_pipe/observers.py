"""Who watches a run: the person at the terminal, and plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moshi_pipe.engine.exchange import Observer, SessionPlan, SessionResult
from moshi_pipe.errors import InputError
from moshi_pipe.nodes.words import Word, WordBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moshi_pipe.graph.node import SessionInfo, SessionInput
    from moshi_pipe.graph.packet import Packet
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
    """

    def __init__(
        self, ui: UI, plugins: Plugins, to_report: Callable[[SessionResult], SessionReport]
    ) -> None:
        self.reports: list[SessionReport] = []
        self._ui = ui
        self._hook = plugins.manager.hook
        self._to_report = to_report
        self._words: dict[str, tuple[WordBuilder, SessionInfo]] = {}
        self._complained: set[tuple[str, str]] = set()

    def on_open(self, item: SessionInput, plan: SessionPlan) -> None:
        """Show the session and tell plugins of it."""
        self._ui.session_begins(item.id, _length_s(item, plan))
        if plan.info.tokenizer is not None and self._hook.on_text.get_hookimpls():
            self._words[item.id] = WordBuilder(plan.info.tokenizer), plan.info
        self._call("on_session_start", session_id=item.id, meta=item.meta, seed=plan.settings.seed)

    def on_frame(self, plan: SessionPlan, frame: int, packets: Sequence[Packet]) -> None:
        """Show how far the session is; pass packets and words to plugins."""
        info = plan.info
        self._ui.session_at(info.id, (frame + 1) * info.frame_s)
        if self._hook.on_frame.get_hookimpls():
            for packet in packets:
                self._call("on_frame", session_id=info.id, packet=packet)
        if info.id not in self._words:
            return
        words, _ = self._words[info.id]
        for packet in packets:
            if packet.output == "text":
                self._tell_words(info, words.push(int(packet.payload), frame))

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


def _length_s(item: SessionInput, plan: SessionPlan) -> float | None:
    """Seconds that a session will last, if its input says so."""
    try:
        rate, num_samples = item.sample_rate, item.num_samples
    except InputError:  # the session ends with it
        return None
    if not num_samples or not rate:
        return None
    return num_samples / rate + plan.lead_s + plan.tail_s
