"""Source ``fdb``: one session per input of Full-Duplex-Bench."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from moshi_pipe.errors import InputError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.nodes.fdb_layout import ANSWERS, CLEAN_INPUT, INPUT, Sample, find_samples
from moshi_pipe.nodes.file_source import FileInput
from moshi_pipe.nodes.manifest import Entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from moshi_pipe.nodes.options import FdbSourceOptions


class FdbSource(Source):
    """Reads the inputs of samples; those of v1.5 twice: with the overlap, and without it.

    A session's id is ``TASK-SAMPLE`` (``TASK-SAMPLE-clean`` without the overlap), wherever the
    data lies and whichever part of it is run, and so is its seed.
    """

    def __init__(self, options: FdbSourceOptions) -> None:
        self.options = options

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Yield the inputs in natural order of their folders.

        Raises:
            InputError: There are none.
        """
        for index, (sample, file) in enumerate(self._inputs()):
            yield _make_input(sample, file, index)

    def num_sessions(self) -> int:
        """Inputs that were found."""
        return len(self._inputs())

    def _inputs(self) -> list[tuple[Sample, str]]:
        found = []
        for sample in find_samples(self.options.path):
            found.append((sample, INPUT))
            if self.options.clean and (sample.folder / CLEAN_INPUT).is_file():
                found.append((sample, CLEAN_INPUT))
        return found


def _make_input(sample: Sample, file: str, index: int) -> FileInput:
    name = f"{sample.task}-{sample.name}" + ("-clean" if file == CLEAN_INPUT else "")
    item = FileInput(Entry(str((sample.folder / file).absolute()), name), index)
    item.meta |= {
        "task": sample.task,
        "sample": sample.name,
        "folder": str(sample.folder),
        "answer": ANSWERS[file],
    }
    with suppress(InputError):  # it will fail when it is read, and alone
        if item.num_samples is not None:
            item.meta |= {"num_samples": item.num_samples, "sample_rate": item.sample_rate}
    return item
