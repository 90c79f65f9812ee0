"""Manifests: lists of recordings, read row by row however long they are.

A manifest is read twice: once to check every row and the names, of which eight bytes each are kept,
and once for what is processed.
"""

from __future__ import annotations

import csv
import json
import os
from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TextIO

import numpy as np

from moshi_pipe import urls
from moshi_pipe.errors import InputError, closest
from moshi_pipe.identity import MANIFEST_SUFFIXES
from moshi_pipe.nodes.files import unique_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SUFFIXES: Final = MANIFEST_SUFFIXES
"""Endings of manifests."""

_KEYS: Final = ("path", "id", "seed", "start_s", "duration_s", "channel")
_MOST_ALIKE: Final = 10_000
"""Recordings whose stems are not their own, for which longer names are still looked for."""


@dataclass(slots=True)
class Entry:
    """One recording to process.

    Attributes:
        place: An absolute path, or an address.
        name: What its results are called; empty until it is known.
        seed: Of its session; None derives one.
        start_s: Where to begin, in seconds.
        duration_s: How much to take; None takes all that is left.
        channel: From 0; None mixes all.
    """

    place: str
    name: str = ""
    seed: int | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    channel: int | None = None

    @property
    def stem(self) -> str:
        """Name of the file without its ending; of a million rows, pathlib would keep every part."""
        return os.path.splitext(self.place.rpartition("/")[2] or os.path.basename(self.place))[0]

    @property
    def path(self) -> PurePosixPath | Path:
        """What names are made of."""
        return urls.as_path(self.place) if urls.is_url(self.place) else Path(self.place)


class Manifest:
    """A list of recordings: JSON lines, or CSV with the keys in its first line.

    Args:
        place: A path or an address.
        channel: Of rows that name none.
    """

    def __init__(self, place: str, channel: int | None) -> None:
        self.place = place if urls.is_url(place) else str(Path(place).absolute())
        self._folder = "" if urls.is_url(self.place) else str(Path(self.place).parent)
        self._channel = channel
        self._num_rows: int | None = None
        self._longer: dict[int, str] = {}  # names of rows whose stems are not their own

    def __len__(self) -> int:
        """Recordings that it lists; checks them all when first asked.

        Raises:
            InputError: A row is wrong, two have the same id, or there are none.
        """
        if self._num_rows is None:
            self._num_rows = self._check()
        return self._num_rows

    def __iter__(self) -> Iterator[Entry]:
        """The recordings, in order.

        Raises:
            InputError: As of ``len``.
        """
        len(self)
        for row, entry in enumerate(self._entries()):
            entry.name = entry.name or self._longer.get(row) or entry.stem
            yield entry

    def _check(self) -> int:
        """Read every row once; remember the names of those whose stems are not their own."""
        stems, ids, given = array("q"), array("q"), array("b")
        for entry in self._entries():
            stem = entry.stem
            stems.append(hash(stem))
            ids.append(hash(entry.name or stem))
            given.append(bool(entry.name))
        if not stems:
            raise InputError(
                f"the manifest {self.place} is empty", wanted='lines such as {"path": "a.wav"}'
            )
        alike = _repeated(stems)
        while True:
            self._longer = self._lengthen(alike, given)
            names = {hash(name) for name in self._longer.values()}
            more = {i for i, stem in enumerate(stems) if stem in names} - alike if names else set()
            if not more:
                break
            alike |= more
        for row, name in self._longer.items():
            ids[row] = ids[row] if given[row] else hash(name)
        self._refuse_equal_ids(_repeated(ids))
        return len(stems)

    def _lengthen(self, rows: set[int], given: array[int]) -> dict[int, str]:
        """Names for rows that share their stems."""
        without = sum(not given[row] for row in rows)
        if not without:
            return {}
        if len(rows) > _MOST_ALIKE:
            raise InputError(
                f"too many recordings of the manifest {self.place} are called the same",
                got=f"{len(rows)} whose stems another one has too",
                wanted='an "id" for each',
            )
        paths = {i: Path(entry.path) for i, entry in enumerate(self._entries()) if i in rows}
        return dict(zip(paths, unique_names(list(paths.values())), strict=True))

    def _refuse_equal_ids(self, rows: set[int]) -> None:
        """Refuse a name that comes twice among the rows whose hashes do."""
        seen: dict[str, str] = {}
        for row, entry in enumerate(self._entries() if rows else ()):
            if row not in rows:
                continue
            name = entry.name or self._longer.get(row) or entry.stem
            if name in seen:
                raise InputError(
                    f"the manifest {self.place} gives two recordings the id '{name}'",
                    got=f"{seen[name]} and {entry.place}",
                    wanted="a different id for each",
                )
            seen[name] = entry.place

    def _entries(self) -> Iterator[Entry]:
        """The rows as they are written, their names perhaps empty."""
        try:
            with _open(self.place) as text:
                rows = _csv_rows(text) if self.place.lower().endswith(".csv") else _json_rows(text)
                for number, record in rows:
                    yield self._entry(f"line {number} of the manifest {self.place}", record)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"cannot read the manifest {self.place}", got=str(error)) from error

    def _entry(self, where: str, record: Any) -> Entry:
        if isinstance(record, str):
            raise InputError(f"{where} is no JSON", got=record)
        if not isinstance(record, dict) or not isinstance(record.get("path"), str):
            got = json.dumps(record, ensure_ascii=False)[:80]
            raise InputError(f"{where} has no path", got=got, wanted='{"path": "a.wav"}')
        unknown = sorted(str(key) for key in record if key not in _KEYS)
        if unknown:
            raise InputError(
                f"{where} has an unknown key '{unknown[0]}'", wanted=closest(unknown[0], _KEYS)
            )
        name = record.get("id")
        given_channel = _number(where, record, "channel", minimum=0, whole=True)
        return Entry(
            place=self._place(record["path"]),
            name="" if name is None else _safe_name(str(name)),
            seed=_number(where, record, "seed", minimum=0, whole=True),
            start_s=_number(where, record, "start_s", minimum=0) or 0.0,
            duration_s=_number(where, record, "duration_s", minimum=0),
            channel=self._channel if given_channel is None else given_channel,
        )

    def _place(self, path: str) -> str:
        """Relative to the manifest."""
        if urls.is_url(path):
            return path
        if urls.is_url(self.place):
            return urls.join(urls.parent(self.place), path)
        if "./" in path or "//" in path or path.startswith("~"):
            path = str(Path(path).expanduser())
        return os.path.join(self._folder, path)


@contextmanager
def _open(place: str) -> Iterator[TextIO]:
    if urls.is_url(place):
        with urls.open_text(place) as text:
            yield text
    else:
        with Path(place).open(encoding="utf-8-sig") as text:
            yield text


def _json_rows(text: TextIO) -> Iterator[tuple[int, Any]]:
    """Line numbers and what the lines hold; the reason, as a text, where that is no JSON."""
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, str(error)
        else:
            yield number, record if not isinstance(record, str) else [record]


def _csv_rows(text: TextIO) -> Iterator[tuple[int, Any]]:
    """Line numbers and rows; empty cells are left out, numbers are numbers."""
    reader = csv.DictReader(text, restkey="", skipinitialspace=True)
    for row in reader:
        record = {key: _cell(key, cell) for key, cell in row.items() if cell not in (None, "")}
        if record:
            yield reader.line_num, record


def _cell(key: str, cell: Any) -> Any:
    if key in ("path", "id") or not isinstance(cell, str):
        return cell
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def _repeated(hashes: array[int]) -> set[int]:
    """Rows whose hash another row has too."""
    if not hashes:
        return set()
    values = np.frombuffer(hashes, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    same = values[order][1:] == values[order][:-1]
    return {int(i) for i in order[1:][same]} | {int(i) for i in order[:-1][same]}


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
