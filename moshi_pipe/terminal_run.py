"""A run with a person at the keyboard: what is shown, and what must not reach the terminal."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from moshi_pipe.build import run_config
from moshi_pipe.live_view import choose_live_ui
from moshi_pipe.nodes.portaudio import native_noise_apart
from moshi_pipe.progress import PlainUI, choose_ui

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from moshi_pipe.config import RunConfig
    from moshi_pipe.graph.node import Source
    from moshi_pipe.plugins import Plugins
    from moshi_pipe.progress import UI

_PACKAGE: Final = "moshi_pipe"


def run_in_terminal(
    config: RunConfig, plugins: Plugins, *, log: TextIO | None = None, quiet: bool = False
) -> int:
    """Run a configuration and show a person how it goes; returns the exit code.

    Args:
        config: Typed and checked.
        plugins: Nodes, backends and observers.
        log: Takes the closing report; None shows it.
        quiet: Let the log take everything, and show nothing.

    Raises:
        MoshiPipeError: As :func:`run_config`.
    """
    source: Source = config.source.make()
    with native_noise_apart() if source.live else nullcontext():
        ui = PlainUI(log, log) if quiet else _choose_ui(source, log)
        try:
            with _messages_to(ui):
                return run_config(config, ui, plugins, source).exit_code
        finally:
            ui.close()


def _choose_ui(source: Source, log: TextIO | None) -> UI:
    """A view of one conversation, lines about many, or bars of recordings."""
    if source.endless:
        return PlainUI()
    return choose_live_ui(source.keys()) if source.live else choose_ui(log)


@contextmanager
def _messages_to(ui: UI) -> Iterator[None]:
    """Show what the package logs where it tears nothing."""
    logger, handler = logging.getLogger(_PACKAGE), _Messages(ui)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class _Messages(logging.Handler):
    def __init__(self, ui: UI) -> None:
        super().__init__(logging.INFO)
        self._ui = ui

    def emit(self, record: logging.LogRecord) -> None:
        say = self._ui.warn if record.levelno >= logging.WARNING else self._ui.note
        say(record.getMessage())
