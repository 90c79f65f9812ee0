"""Source ``file``: one session per recording."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moshi_pipe import urls
from moshi_pipe.errors import InputError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.nodes import manifest
from moshi_pipe.nodes.audio_reader import SUFFIXES, AudioProperties, probe, read
from moshi_pipe.nodes.files import find_files, unique_names
from moshi_pipe.nodes.manifest import Entry, Manifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.nodes.options import FileSourceOptions


class FileSource(Source):
    """Reads recordings in pieces, so that an hour takes no more memory than a second.

    A manifest is read row by row, so that a million of them take no more than some; recordings at
    addresses are fetched one by one, when their turn has come.
    """

    def __init__(self, options: FileSourceOptions) -> None:
        self.options = options
        self._found: Manifest | list[Entry] | None = None

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield the recordings: files in natural order, a manifest in its own.

        Raises:
            InputError: Nothing is found, or a line of the manifest is wrong.
        """
        for index, entry in enumerate(self._entries()):
            yield FileInput(entry, index)

    def num_sessions(self) -> int:
        """Recordings that were found."""
        return len(self._entries())

    def _entries(self) -> Manifest | list[Entry]:
        """What is to be read; looked for once."""
        if self._found is None:
            self._found = self._find()
        return self._found

    def _find(self) -> Manifest | list[Entry]:
        options = self.options
        if urls.is_url(options.path):
            if options.path.lower().endswith(manifest.SUFFIXES):
                return Manifest(options.path, options.channel)
            places: Sequence[str] = urls.find(options.path, SUFFIXES, recursive=options.recursive)
            paths = [Path(urls.as_path(place)) for place in places]
        else:
            path = Path(options.path).expanduser()
            if path.suffix.lower() in manifest.SUFFIXES and path.is_file():
                return Manifest(str(path), options.channel)
            paths = find_files(options.path, suffixes=SUFFIXES, recursive=options.recursive)
            places = [str(path) for path in paths]
        return [
            Entry(place, name, channel=options.channel)
            for place, name in zip(places, unique_names(paths), strict=True)
        ]


class FileInput(SessionInput):
    """One recording.

    Its header is read when ``sample_rate`` or ``num_samples`` is first asked for; a file that
    cannot be read then raises :class:`~moshi_pipe.errors.InputError`. One at an address is copied
    to the disk for as long as its session lasts.
    """

    def __init__(self, entry: Entry, index: int) -> None:
        self.id = entry.name
        self.seed = entry.seed
        self.warnings: list[str] = []
        path = entry.path
        self.meta: dict[str, Any] = {
            "stem": entry.name,
            "path": entry.place,
            "name": path.name,
            "parent": path.parent.name,
            "index": index,
            "start_s": entry.start_s,
            "duration_s": entry.duration_s,
            "channel": entry.channel,
        }
        self._entry = entry
        self._properties: AudioProperties | None = None
        self._path = None if urls.is_url(entry.place) else Path(entry.place)

    async def prepare(self) -> None:
        """Fetch what is at an address, on another thread.

        Raises:
            InputError: It cannot be fetched.
        """
        if self._path is None:
            await asyncio.to_thread(self._fetched)

    async def release(self) -> None:
        """Remove what was fetched."""
        if self._path is not None and urls.is_url(self._entry.place):
            self._path.unlink(missing_ok=True)
            self._path = None

    @property
    def properties(self) -> AudioProperties:
        """What the header says.

        Raises:
            InputError: The file cannot be read.
        """
        if self._properties is None:
            self._properties = probe(self._fetched())
        return self._properties

    @property
    def sample_rate(self) -> int:  # type: ignore[override]
        """Hz of the recording."""
        return self.properties.sample_rate

    @property
    def num_samples(self) -> int | None:  # type: ignore[override]
        """Samples per channel that will come, None when the header does not tell."""
        total = self.properties.num_samples
        if total is None:
            return None
        start, stop = self._bounds()
        return max(0, min(total, stop if stop is not None else total) - start)

    async def chunks(self) -> AsyncIterator[npt.NDArray[np.float32]]:
        """Yield float32 ``[C, N]`` pieces; files are read on a thread beside the event loop.

        May be cancelled or closed at any time; a piece that is being read then is waited for.
        """
        self.warnings.clear()
        pieces = self._pieces()
        step: asyncio.Task[npt.NDArray[np.float32] | None] | None = None
        try:
            while True:
                step = asyncio.create_task(asyncio.to_thread(next, pieces, None))
                piece_CN = await asyncio.shield(step)
                if piece_CN is None:
                    return
                yield piece_CN
        finally:
            if step is not None and not step.done():
                await asyncio.wait([step])  # a generator cannot be closed while it runs
            await asyncio.to_thread(pieces.close)

    def _pieces(self) -> Generator[npt.NDArray[np.float32], None, None]:
        properties = self.properties
        channel = self._entry.channel
        if channel is not None and not 0 <= channel < properties.channels:
            raise InputError(
                f"{self._entry.place} has no channel {channel}",
                got=f"{properties.channels} channel{'s' * (properties.channels != 1)}",
                wanted=f"0 to {properties.channels - 1}",
                fix="set source.channel=null to mix all of them",
            )
        start, stop = self._bounds()
        position = 0
        given = False
        for piece_CN in read(self._fetched(), properties, self.warnings.append):
            begin, end = position, position + piece_CN.shape[1]
            position = end
            low = max(0, start - begin)
            high = piece_CN.shape[1] if stop is None else max(0, min(end, stop) - begin)
            piece_CN = piece_CN[:, low:high]
            if piece_CN.shape[1]:
                given = True
                yield piece_CN if channel is None else piece_CN[channel : channel + 1]
            if stop is not None and end >= stop:
                break
        if not given:
            raise InputError(
                f"{self._entry.place} has no audio from {self._entry.start_s:g} s on",
                got=f"{position / properties.sample_rate:.1f} s of audio",
                wanted="start_s inside the recording and duration_s above 0",
            )

    def _fetched(self) -> Path:
        """The file on the disk."""
        if self._path is None:
            suffix = self._entry.path.suffix
            descriptor, path = tempfile.mkstemp(prefix="moshi-pipe-", suffix=suffix)
            os.close(descriptor)
            self._path = Path(path)
            urls.fetch(self._entry.place, self._path)
        return self._path

    def _bounds(self) -> tuple[int, int | None]:
        """First sample and the one after the last, from the manifest's seconds."""
        rate, entry = self.properties.sample_rate, self._entry
        start = round(entry.start_s * rate)
        stop = None if entry.duration_s is None else start + round(entry.duration_s * rate)
        return start, stop
