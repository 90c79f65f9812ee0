"""Source ``file``: one session per recording."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import InputError, closest
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.nodes.audio_reader import SUFFIXES, AudioProperties, probe, read
from moshi_pipe.nodes.files import find_files, unique_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

_MANIFEST_KEYS: Final = ("path", "id", "seed", "start_s", "duration_s", "channel")


@dataclass
class FileSourceOptions:
    """Which recordings are read.

    Attributes:
        path: A file, a glob, a folder, or a ``.jsonl`` manifest: one object a line with ``path``
            (relative to the manifest) and optionally ``id``, ``seed``, ``start_s``, ``duration_s``
            and ``channel``.
        recursive: Look into sub-folders of a folder.
        channel: Use this channel only, from 0; null mixes all of them down.
    """

    path: str = "???"
    recursive: bool = False
    channel: int | None = None


@dataclass(slots=True)
class _Entry:
    """One recording to process."""

    path: Path
    name: str
    seed: int | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    channel: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class FileSource(Source):
    """Reads recordings in pieces, so that an hour takes no more memory than a second."""

    def __init__(self, options: FileSourceOptions) -> None:
        self.options = options

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

    def _entries(self) -> list[_Entry]:
        path = Path(self.options.path).expanduser()
        if path.suffix.lower() in (".jsonl", ".ndjson") and path.is_file():
            return _read_manifest(path, self.options.channel)
        paths = find_files(self.options.path, suffixes=SUFFIXES, recursive=self.options.recursive)
        names = unique_names(paths)
        return [
            _Entry(path, name, channel=self.options.channel)
            for path, name in zip(paths, names, strict=True)
        ]


class FileInput(SessionInput):
    """One recording.

    Its header is read when ``sample_rate`` or ``num_samples`` is first asked for; a file that
    cannot be read then raises :class:`~moshi_pipe.errors.InputError`.
    """

    def __init__(self, entry: _Entry, index: int) -> None:
        self.id = entry.name
        self.seed = entry.seed
        self.meta = {
            **entry.extra,
            "stem": entry.name,
            "path": str(entry.path),
            "name": entry.path.name,
            "parent": entry.path.parent.name,
            "index": index,
        }
        self._entry = entry
        self._properties: AudioProperties | None = None

    @property
    def properties(self) -> AudioProperties:
        """What the header says.

        Raises:
            InputError: The file cannot be read.
        """
        if self._properties is None:
            self._properties = probe(self._entry.path)
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
        """Yield float32 ``[C, N]`` pieces; files are read on a thread beside the event loop."""
        pieces = self._pieces()
        try:
            while True:
                piece_CN = await asyncio.to_thread(next, pieces, None)
                if piece_CN is None:
                    return
                yield piece_CN
        finally:
            await asyncio.to_thread(pieces.close)  # type: ignore[attr-defined]

    def _pieces(self) -> Iterator[npt.NDArray[np.float32]]:
        properties = self.properties
        channel = self._entry.channel
        if channel is not None and not 0 <= channel < properties.channels:
            raise InputError(
                f"{self._entry.path} has no channel {channel}",
                got=f"{properties.channels} channel{'s' * (properties.channels != 1)}",
                wanted=f"0 to {properties.channels - 1}",
                fix="set source.channel=null to mix all of them",
            )
        start, stop = self._bounds()
        position = 0
        for piece_CN in read(self._entry.path, properties):
            begin, end = position, position + piece_CN.shape[1]
            position = end
            low = max(0, start - begin)
            high = piece_CN.shape[1] if stop is None else max(0, min(end, stop) - begin)
            piece_CN = piece_CN[:, low:high]
            if piece_CN.shape[1]:
                yield piece_CN if channel is None else piece_CN[channel : channel + 1]
            if stop is not None and end >= stop:
                return

    def _bounds(self) -> tuple[int, int | None]:
        """First sample and the one after the last, from the manifest's seconds."""
        rate, entry = self.properties.sample_rate, self._entry
        start = round(entry.start_s * rate)
        stop = None if entry.duration_s is None else start + round(entry.duration_s * rate)
        return start, stop


def _read_manifest(path: Path, channel: int | None) -> list[_Entry]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the manifest {path}", got=str(error)) from error
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"the manifest {path} is empty", wanted='lines such as {"path": "a.wav"}')
    entries = [_read_line(path, i, line, channel) for i, line in numbered]
    names = unique_names([entry.path for entry in entries])
    for entry, name in zip(entries, names, strict=True):
        entry.name = entry.name or name
    _refuse_equal_ids(path, entries)
    return entries


def _read_line(manifest: Path, number: int, line: str, channel: int | None) -> _Entry:
    where = f"line {number} of the manifest {manifest}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is no JSON", got=str(error)) from error
    if not isinstance(record, dict) or not isinstance(record.get("path"), str):
        raise InputError(f"{where} has no path", got=line[:80], wanted='{"path": "a.wav"}')
    unknown = sorted(set(record) - set(_MANIFEST_KEYS))
    if unknown:
        raise InputError(
            f"{where} has an unknown key '{unknown[0]}'", wanted=closest(unknown[0], _MANIFEST_KEYS)
        )
    try:
        return _Entry(
            path=(manifest.parent / Path(record["path"]).expanduser()).absolute(),
            name=_safe_name(str(record.get("id") or "")),
            seed=None if record.get("seed") is None else int(record["seed"]),
            start_s=_seconds(record.get("start_s") or 0.0),
            duration_s=None if record.get("duration_s") is None else _seconds(record["duration_s"]),
            channel=channel if record.get("channel") is None else int(record["channel"]),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} has a value of the wrong kind", got=str(error)) from error


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{value} is no duration in seconds")
    return seconds


def _safe_name(name: str) -> str:
    return name.replace("/", "-").replace("\\", "-").strip(". ")


def _refuse_equal_ids(path: Path, entries: Sequence[_Entry]) -> None:
    seen: dict[str, Path] = {}
    for entry in entries:
        if entry.name in seen:
            raise InputError(
                f"the manifest {path} gives two recordings the id '{entry.name}'",
                got=f"{seen[entry.name]} and {entry.path}",
                wanted="a different id for each",
            )
        seen[entry.name] = entry.path
