"""Ctrl-C, and the SIGTERM of a service manager."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moshi_pipe.engine.edge import Edge
    from moshi_pipe.graph.node import Source
    from moshi_pipe.progress import UI

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Turns Ctrl-C, and the SIGTERM of a service manager, into an orderly end.

    The first ends the input of a live source, which is how a conversation ends, or else stops the
    edge; a further one stops the edge of a live run; the next is Python's own.

    Args:
        edge: Of the run.
        source: Of the run.
        ui: Told that the run ends.

    Attributes:
        seen: Whether a signal came.
        cut_short: Whether sessions were ended by one.
    """

    def __init__(self, edge: Edge, source: Source, ui: UI) -> None:
        self.seen = False
        self.cut_short = False
        self._edge = edge
        self._source = source
        self._ui = ui

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs; where the platform cannot, Ctrl-C stays what it was."""
        loop = asyncio.get_running_loop()
        try:
            for number in _SIGNALS:
                loop.add_signal_handler(number, self._stop)
        except (NotImplementedError, RuntimeError, ValueError):
            yield
            return
        try:
            yield
        finally:
            self._let_go()

    def _stop(self) -> None:
        if self._source.live and not self.seen:
            self.seen = True
            self._source.stop()
            return
        self.seen = self.cut_short = True
        self._ui.warn("stopping; what was written is kept (Ctrl-C again to leave at once)")
        self._let_go()
        self._edge.stop()

    def _let_go(self) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
