"""Cells of a sweep on disk: which folder is whose, what is finished, and the index of all.

A cell is one run of a sweep. Its folder holds ``cell.json`` from before it begins, so that a sweep
which was killed finds its cells again, by what they are and not by their number.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import OutputError
from moshi_pipe.report import REPORT_NAME, read_record, read_report, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

CELL_NAME: Final = "cell.json"
INDEX_NAME: Final = "sweep.json"
_MAX_LAUNCHES: Final = 16
STATES: Final = ("running", "done", "failed", "interrupted")


@dataclass(slots=True)
class Cell:
    """One cell.

    Attributes:
        folder: Where its results are.
        key: What it is: configuration, inputs and version.
        signature: Of its configuration, as in its ``run.json``.
        number: Its place in the sweep that ran it last, from 1 on.
        overrides: Words that make it differ.
        state: One of :data:`STATES`.
        exit_code: Of its run; None while it runs.
        error: Why it failed.
        wall_s: Seconds that it took.
        launches: The last ones of the sweep that came to it, and whether each found it finished.
    """

    folder: Path
    key: str
    signature: str
    number: int
    overrides: list[str] = field(default_factory=list)
    state: str = "running"
    exit_code: int | None = None
    error: str | None = None
    wall_s: float = 0.0
    launches: dict[str, bool] = field(default_factory=dict)

    def write(self) -> None:
        """Put it on disk; a reader sees the old or the new one, never half.

        Raises:
            OutputError: It cannot be written.
        """
        write_atomically(self.folder / CELL_NAME, self._text())

    @property
    def is_finished(self) -> bool:
        """Whether its run is complete: all sessions done, every file still there.

        A ``run.json`` alone says nothing: a run that began later may have been killed.
        """
        run = read_report(self.folder)
        return (
            self.state == "done"
            and run.get("signature") == self.signature
            and run.get("exit_code") == 0
            and run.get("interrupted") is False
            and all(session.get("status") == "done" for session in run.get("sessions", ()))
            and all((self.folder / name).is_file() for name in _files(run))
        )

    @property
    def did_nothing(self) -> bool:
        """Whether its last run found all sessions done."""
        run = read_report(self.folder)
        counts = (run.get("totals") or {}).get("counts")
        if counts is None:
            counts = Counter(session.get("status") for session in run.get("sessions", ()))
        return {status for status, count in counts.items() if count} == {"skipped"}

    def finished_report(self) -> str | None:
        """Its ``run.json`` as it stands, if its run is complete."""
        if not self.is_finished:
            return None
        with suppress(OSError):
            return (self.folder / REPORT_NAME).read_text(encoding="utf-8")
        return None

    def keep_report(self, text: str | None) -> None:
        """Put an earlier report back, which tells more than one of a run that did nothing.

        Raises:
            OutputError: It cannot be written.
        """
        if text is not None:
            write_atomically(self.folder / REPORT_NAME, text)

    @contextmanager
    def held(self, waits: Callable[[], None]) -> Iterator[None]:
        """Keep other processes out of the folder; waits while another one has it.

        The system lets go when a process ends, however it ends.

        Args:
            waits: Called before it waits.
        """
        import fcntl

        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waits()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def recall(self) -> None:
        """Take over what its folder says of earlier runs of the same; call it while it is held."""
        known = read_cell(self.folder)
        if known is None:
            return
        self.launches = {**known.launches, **self.launches}
        for launch in list(self.launches)[:-_MAX_LAUNCHES]:
            del self.launches[launch]
        if known.key == self.key:
            self.state, self.exit_code = known.state, known.exit_code
            self.error, self.wall_s = known.error, known.wall_s

    def begin(self) -> None:
        """Say on disk that it runs.

        Raises:
            OutputError: It cannot be written.
        """
        self.state, self.exit_code, self.error = "running", None, None
        self.write()

    def _text(self) -> str:
        record = {name: value for name, value in asdict(self).items() if name != "folder"}
        return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def claim(cell: Cell) -> Cell:
    """Find the folder of a cell, or take one: its own if that is free, else one with a number.

    One that failed gives its folder to the same words with another input, such as one that was
    not there. Safe beside other processes that claim cells of the same sweep.

    Args:
        cell: With the folder that it would like.

    Returns:
        The cell with its folder, which exists.

    Raises:
        OutputError: No folder can be made.
    """
    sweep_dir = cell.folder.parent
    found = read_cells(sweep_dir)
    same = [known for known in found if known.key == cell.key]
    same = same or [known for known in found if known.state == "failed" and _alike(known, cell)]
    if same:
        cell.folder = same[0].folder
        return cell
    number = int(cell.folder.name)
    while not _take(cell, sweep_dir / str(number)):
        if read_record(sweep_dir / str(number) / CELL_NAME).get("key") == cell.key:
            break  # another process was faster
        number += 1
    cell.folder = sweep_dir / str(number)
    return cell


def _alike(known: Cell, cell: Cell) -> bool:
    """Whether two cells were asked for the same."""
    return known.signature == cell.signature and known.overrides == cell.overrides


def _take(cell: Cell, folder: Path) -> bool:
    """Make a folder appear with its ``cell.json`` in it; False if it is another's."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        (part / CELL_NAME).write_text(cell._text(), encoding="utf-8")
        part.rename(folder)  # fails unless there is none, or an empty one
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if folder.exists():
            return False
        raise OutputError(
            f"cannot make {folder}",
            got=error.strerror or str(error),
            fix="choose another folder: output_dir=FOLDER",
        ) from error
    return True


def read_cells(sweep_dir: Path) -> list[Cell]:
    """Cells of a sweep, by number; what cannot be read is left out."""
    cells = []
    for path in sweep_dir.glob(f"[!.]*/{CELL_NAME}"):  # not those that are being made
        cell = read_cell(path.parent)
        if cell is not None:
            cells.append(cell)
    return sorted(cells, key=lambda cell: (cell.number, cell.folder.name))


def read_cell(folder: Path) -> Cell | None:
    """The cell in a folder; None where it cannot be read, is of another version or is none."""
    with suppress(TypeError):
        return Cell(folder, **read_record(folder / CELL_NAME))
    return None


def write_index(sweep_dir: Path, words: Sequence[str], total: int | None, *, ended: bool) -> None:
    """Write the index of a sweep, from what its cells say.

    Args:
        sweep_dir: Folder of the sweep.
        words: Of the command line.
        total: Cells that there will be, if known.
        ended: Whether nothing runs any more.

    Raises:
        OutputError: It cannot be written.
    """
    cells = [
        {"folder": cell.folder.name, **json.loads(cell._text())} for cell in read_cells(sweep_dir)
    ]
    index: dict[str, Any] = {
        "words": list(words),
        "num_cells": total,
        "finished": ended and all(cell["state"] == "done" for cell in cells),
        "cells": cells,
    }
    text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
    write_atomically(sweep_dir / INDEX_NAME, text)


def _files(run: Mapping[str, Any]) -> list[str]:
    """Results of a run, as paths from its folder."""
    root = str(run.get("output_dir", ""))
    return [
        os.path.relpath(file, root)
        for session in run.get("sessions", ())
        for file in session.get("files", ())
    ]
