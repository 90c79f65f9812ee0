"""Source ``file``: one session per recording."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import InputError, closest
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.nodes.audio_reader import SUFFIXES, AudioProperties, probe, read
from moshi_pipe.nodes.files import find_files, unique_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from moshi_pipe.nodes.options import FileSourceOptions

_MANIFEST_KEYS: Final = ("path", "id", "seed", "start_s", "duration_s", "channel")


@dataclass(slots=True)
class Recording:
    """One recording to process.

    Attributes:
        path: The file.
        name: The session's id.
        seed: Of the session; None to derive one.
        start_s: Where to begin, in seconds.
        duration_s: How much of it; None takes all.
        channel: Take this channel alone; None mixes all.
    """

    path: Path
    name: str
    seed: int | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    channel: int | None = None


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

    def _entries(self) -> list[Recording]:
        path = Path(self.options.path).expanduser()
        if path.suffix.lower() in (".jsonl", ".ndjson") and path.is_file():
            return _read_manifest(path, self.options.channel)
        paths = find_files(self.options.path, suffixes=SUFFIXES, recursive=self.options.recursive)
        names = unique_names(paths)
        return [
            Recording(path, name, channel=self.options.channel)
            for path, name in zip(paths, names, strict=True)
        ]


class FileInput(SessionInput):
    """One recording.

    Its header is read when ``sample_rate`` or ``num_samples`` is first asked for; a file that
    cannot be read then raises :class:`~moshi_pipe.errors.InputError`.
    """

    def __init__(self, entry: Recording, index: int) -> None:
        self.id = entry.name
        self.seed = entry.seed
        self.warnings: list[str] = []
        self.meta: dict[str, Any] = {
            "stem": entry.name,
            "path": str(entry.path),
            "name": entry.path.name,
            "parent": entry.path.parent.name,
            "index": index,
            "start_s": entry.start_s,
            "duration_s": entry.duration_s,
            "channel": entry.channel,
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
                f"{self._entry.path} has no channel {channel}",
                got=f"{properties.channels} channel{'s' * (properties.channels != 1)}",
                wanted=f"0 to {properties.channels - 1}",
                fix="set source.channel=null to mix all of them",
            )
        start, stop = self._bounds()
        position = 0
        given = False
        for piece_CN in read(self._entry.path, properties, self.warnings.append):
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
                f"{self._entry.path} has no audio from {self._entry.start_s:g} s on",
                got=f"{position / properties.sample_rate:.1f} s of audio",
                wanted="start_s inside the recording and duration_s above 0",
            )

    def _bounds(self) -> tuple[int, int | None]:
        """First sample and the one after the last, from the manifest's seconds."""
        rate, entry = self.properties.sample_rate, self._entry
        start = round(entry.start_s * rate)
        stop = None if entry.duration_s is None else start + round(entry.duration_s * rate)
        return start, stop


def _read_manifest(path: Path, channel: int | None) -> list[Recording]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
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


def _read_line(manifest: Path, number: int, line: str, channel: int | None) -> Recording:
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
    name = record.get("id")
    start_s = _number(where, record, "start_s", minimum=0)
    given_channel = _number(where, record, "channel", minimum=0, whole=True)
    return Recording(
        path=(manifest.parent / Path(record["path"]).expanduser()).absolute(),
        name="" if name is None else _safe_name(str(name)),
        seed=_number(where, record, "seed", minimum=0, whole=True),
        start_s=start_s or 0.0,
        duration_s=_number(where, record, "duration_s", minimum=0),
        channel=channel if given_channel is None else given_channel,
    )


def _number(
    where: str, record: Mapping[str, Any], key: str, *, minimum: float = -inf, whole: bool = False
) -> Any:
    """The number under ``key``, None where there is none."""
    value = record.get(key)
    if value is None:
        return None
    kinds = int if whole else (int, float)
    if isinstance(value, kinds) and not isinstance(value, bool) and minimum <= value < inf:
        return value
    wanted = ("a whole number" if whole else "a number") + (", 0 or more" if minimum == 0 else "")
    raise InputError(f"{where} has a wrong {key}", got=json.dumps(value), wanted=wanted)


def _safe_name(name: str) -> str:
    return name.replace("/", "-").replace("\\", "-").strip(". ")


def _refuse_equal_ids(path: Path, entries: Sequence[Recording]) -> None:
    seen: dict[str, Path] = {}
    for entry in entries:
        if entry.name in seen:
            raise InputError(
                f"the manifest {path} gives two recordings the id '{entry.name}'",
                got=f"{seen[entry.name]} and {entry.path}",
                wanted="a different id for each",
            )
        seen[entry.name] = entry.path
