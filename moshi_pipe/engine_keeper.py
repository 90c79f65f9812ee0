"""Runs without end outlive their engine: when it fails, another is made."""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Final

from moshi_pipe.units import format_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from moshi_pipe.engine.edge import Edge
    from moshi_pipe.engine.engine import Engine
    from moshi_pipe.engine.host import EngineHost
    from moshi_pipe.errors import MoshiPipeError
    from moshi_pipe.graph.node import Source
    from moshi_pipe.progress import UI
    from moshi_pipe.remote.engine import RemoteEngine

    AnyEngine = Engine | RemoteEngine

_WITHIN_S: Final = 3600.0
"""Seconds after which a new engine is not counted any more."""


class EngineKeeper:
    """Makes a new engine for a source without end when one fails.

    First the source is told, then all sessions of the engine end with its error. A new engine gets
    those that come then; the source is given its host as it was given the first.

    Args:
        engine: The first; ready.
        source: Told what happens; stopped when no engine is made any more.
        edge: Feeds the engine.
        make: Makes an engine like the first.
        host: What the source may know of an engine that is ready.
        restarts: Engines that are made within an hour at most.
        ui: Told what happens.
        now_s: A clock.

    Attributes:
        engine: The last that was made.
    """

    def __init__(
        self,
        engine: AnyEngine,
        source: Source,
        edge: Edge,
        *,
        make: Callable[[], AnyEngine],
        host: Callable[[AnyEngine], EngineHost],
        restarts: int,
        ui: UI,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self._source = source
        self._edge = edge
        self._make = make
        self._host = host
        self._restarts = restarts
        self._ui = ui
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._made_s: deque[float] = deque()
        self._told: MoshiPipeError | None = None
        self._lost: asyncio.Queue[MoshiPipeError] = asyncio.Queue()

    def failed(self, error: MoshiPipeError) -> None:
        """The engine fails; from its thread, before its sessions are ended."""
        self._loop.call_soon_threadsafe(self._tell, error)

    async def keep(self) -> None:
        """Make engines until no more are to be made; to be cancelled when the run ends."""
        while True:
            error = await self._lost.get()
            try:
                replaced = await self._replace(error)
            except Exception:
                self._source.stop()
                raise
            if not replaced:
                self._source.stop()
                return

    def _tell(self, error: MoshiPipeError) -> None:
        if error is self._told:
            return
        self._told = error
        self._ui.warn(f"the engine failed: {error}")
        self._source.engine_lost(error)
        self._lost.put_nowait(error)

    async def _replace(self, error: MoshiPipeError) -> bool:
        """Make another engine; False when too many have failed."""
        while self._may_make():
            await asyncio.to_thread(self.engine.stop)
            _forget_frames(error)
            gc.unfreeze()
            gc.collect()
            self.engine = self._make()
            self.engine.start()
            await asyncio.to_thread(self.engine.ready.wait)
            if self.engine.error is None:
                gc.collect()
                gc.freeze()  # as for the first
                self._edge.use(self.engine)
                self._source.attach(self._host(self.engine))
                self._ui.note("a new engine is ready")
                return True
            error = self.engine.error
            self._ui.warn(f"a new engine could not be made: {error}")
        made = format_count(self._restarts, "new engine")
        self._ui.warn(f"the run ends: {made} in an hour, and none lasts (engine.restarts)")
        return False

    def _may_make(self) -> bool:
        now_s = self._now_s()
        while self._made_s and now_s - self._made_s[0] >= _WITHIN_S:
            self._made_s.popleft()
        if len(self._made_s) >= self._restarts:
            return False
        self._made_s.append(now_s)
        return True


def _forget_frames(error: BaseException) -> None:
    """Let go of what was at work when it failed: the old models, for whom there is no room now."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
