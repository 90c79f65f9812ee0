"""Who watches a run: the person at the terminal, and plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moshi_pipe.engine.edge import Observer, SessionPlan, SessionResult
from moshi_pipe.nodes.words import WordBuilder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from moshi_pipe.graph.node import SessionInput
    from moshi_pipe.graph.packet import Packet
    from moshi_pipe.plugins import Plugins
    from moshi_pipe.progress import UI
    from moshi_pipe.report import SessionReport


class RunObserver(Observer):
    """Shows progress and calls the observing hooks.

    A hook that raises is reported once per plugin call site and never stops a session.

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
        self._words: dict[str, WordBuilder] = {}
        self._complained: set[str] = set()

    def on_open(self, item: SessionInput, plan: SessionPlan) -> None:
        """Show the session and tell plugins of it."""
        rate, samples = item.sample_rate, item.num_samples
        known = samples is not None and rate
        audio_s = samples / rate + plan.lead_s + plan.tail_s if known and samples else None
        self._ui.session_begins(item.id, audio_s)
        if plan.info.tokenizer is not None and self._hook.on_text.get_hookimpls():
            self._words[item.id] = WordBuilder(plan.info.tokenizer)
        self._call("on_session_start", session_id=item.id, meta=item.meta, seed=plan.settings.seed)

    def on_frame(self, plan: SessionPlan, frame: int, packets: Sequence[Packet]) -> None:
        """Show how far the session is; pass packets and words to plugins."""
        info = plan.info
        self._ui.session_at(info.id, (frame + 1) * info.frame_s)
        if self._hook.on_frame.get_hookimpls():
            for packet in packets:
                self._call("on_frame", session_id=info.id, packet=packet)
        words = self._words.get(info.id)
        if words is None:
            return
        for packet in packets:
            if packet.output == "text":
                self._tell_words(info.id, words.push(int(packet.payload), frame), info.frame_s)

    def on_close(self, result: SessionResult) -> None:
        """Show what became of the session and tell plugins."""
        report = self._to_report(result)
        self.reports.append(report)
        self._ui.session_ends(report)
        error = None if result.failure is None else str(result.failure)
        self._call("on_session_end", session_id=result.id, frames=result.num_frames, error=error)
        self._words.pop(result.id, None)

    def _tell_words(self, session_id: str, words: Sequence[Any], frame_s: float) -> None:
        for word in words:
            self._call(
                "on_text",
                session_id=session_id,
                text=word.text,
                start_s=word.first_frame * frame_s,
                end_s=(word.last_frame + 1) * frame_s,
            )

    def _call(self, name: str, **arguments: Any) -> None:
        try:
            getattr(self._hook, name)(**arguments)
        except Exception as error:  # a plugin is foreign code; a session outlives its mistakes
            if name not in self._complained:
                self._complained.add(name)
                self._ui.warn(f"a plugin failed in {name}: {type(error).__name__}: {error}")
