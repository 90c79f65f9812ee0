"""Results that go elsewhere: written into a folder of this machine, then moved.

Sinks need a disk: they fill headers in and survive a crash. So a run whose results belong to an
address writes them into a folder and moves those of a session when it is over. Its record goes
last, so that whoever finds a record finds the rest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe import urls
from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.graph.node import Sink
from moshi_pipe.report import read_record, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from moshi_pipe.graph.node import SessionEnd, SessionInfo
    from moshi_pipe.graph.packet import Packet

_LOG: Final = logging.getLogger(__name__)
_THREADS: Final = 4


class ResultStore:
    """Where the results of a run belong, and the folder that they are written in.

    Args:
        place: An address, or an absolute path.
        folder: Theirs until they are moved; made here, gone with :meth:`close`. None makes one
            in the system's folder for temporary files.

    Attributes:
        place: Where results belong.
        folder: Where they are written.
    """

    def __init__(self, place: str, folder: Path | None = None) -> None:
        self.place = place.rstrip("/")
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix=f"moshi-pipe-{os.getpid()}-"))
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pool = ThreadPoolExecutor(_THREADS, "moshi-pipe-results")
        self._moving: dict[str, Future[None]] = {}

    def where(self, path: str | Path) -> str:
        """Where a file of the folder belongs; any other stays where it is."""
        absolute = Path(path).resolve()
        if not absolute.is_relative_to(self.folder):
            return str(path)
        return f"{self.place}/{absolute.relative_to(self.folder).as_posix()}"

    def move(self, path: Path) -> None:
        """Move a file to its place, where it appears whole; nothing if it is not there.

        Raises:
            OutputError: It cannot be written there.
        """
        if path.is_file():
            urls.put(path, self.where(path))
            path.unlink()

    def recall(self, name: str) -> Path:
        """Bring back what an earlier run wrote about itself or a session, if its files are there.

        Returns:
            The file in the folder; it may not be there.

        Raises:
            InputError: The place cannot be looked at.
        """
        path = self.folder / name
        text = urls.read_text(f"{self.place}/{name}")
        if text is not None:
            write_atomically(path, text)
            if not all(map(urls.exists, read_record(path).get("files", ()))):
                path.unlink()
        return path

    def move_session(self, session_id: str, files: Iterable[Path], record: Path, text: str) -> None:
        """Write the record of a session and move it after all its files; on another thread."""
        left = [*files, record]
        record.parent.mkdir(parents=True, exist_ok=True)

        def work() -> None:
            write_atomically(record, text)
            for path in left:
                self.move(path)

        moving = self._pool.submit(work)
        self._moving[session_id] = moving
        moving.add_done_callback(lambda done: self._moved(session_id, done))

    async def settled(self, session_id: str) -> None:
        """Wait until a session is all in its place, or could not be moved, which was logged."""
        moving = self._moving.get(session_id)
        if moving is not None:
            await asyncio.wait([asyncio.wrap_future(moving)])

    async def finish(self) -> None:
        """Wait until all that ended is in its place."""
        moving = [asyncio.wrap_future(one) for one in list(self._moving.values())]
        if moving:
            await asyncio.wait(moving)

    def close(self) -> None:
        """Remove the folder."""
        self._pool.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sink(self, sinks: Sequence[Sink]) -> Sink:
        """What comes after a session's sinks, and moves what they wrote."""
        return _Mover(self, sinks)

    def _moved(self, session_id: str, done: Future[None]) -> None:
        self._moving.pop(session_id, None)
        error = done.exception()
        if error is not None:
            reason = error if isinstance(error, MoshiPipeError) else repr(error)
            _LOG.warning("the record of %s is not in its place: %s", session_id, reason)


class _Mover(Sink):
    """Moves the files of a session while its end is waited for: nothing heaps up."""

    realtime = True  # it does nothing until the end, and must come last

    def __init__(self, store: ResultStore, sinks: Sequence[Sink]) -> None:
        self._store = store
        self._sinks = sinks
        self._session: SessionInfo | None = None

    async def open(self, session: SessionInfo) -> None:
        """Remember the session."""
        self._session = session

    async def write(self, packet: Packet) -> None:
        """Take nothing."""

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Move what the other sinks say they wrote.

        Raises:
            OutputError: It cannot be written there.
        """
        if self._session is not None:
            for path in [path for sink in self._sinks for path in sink.outputs(self._session)]:
                await asyncio.to_thread(self._store.move, path)
        return {}
