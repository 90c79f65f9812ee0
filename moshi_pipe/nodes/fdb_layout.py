"""The folders of Full-Duplex-Bench v1 and v1.5: one per sample, ``TASK/SAMPLE/input.wav``.

What a task asks for is told by the annotation beside the input: ``pause.json``,
``turn_taking.json``, ``interrupt.json`` (v1), ``metadata.json`` (v1.5, with the same words
without an overlap in ``clean_input.wav``), or none, for back-channels.

Source: DanielLin94144/Full-Duplex-Bench v1_v1.5/README.md, and its ``dataset`` and ``evaluation``
folders.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moshi_pipe.errors import InputError
from moshi_pipe.nodes.files import natural_key

INPUT: Final = "input.wav"
CLEAN_INPUT: Final = "clean_input.wav"
ANSWERS: Final = {INPUT: "output", CLEAN_INPUT: "clean_output"}
"""What the answer to an input is called, without its ending."""

ANNOTATIONS: Final = {
    "interrupt.json": "user_interruption",
    "turn_taking.json": "smooth_turn_taking",
    "pause.json": "pause_handling",
    "metadata.json": "overlap",
}
"""Annotation files, and what is asked of a model where one is there."""

BACKCHANNEL: Final = "backchannel"
"""What is asked where there is no annotation."""

KEPT: Final = (
    *(INPUT, CLEAN_INPUT, *ANNOTATIONS),
    *("transcription.json", "input.json", "clean_input.json", "context.wav", "interrupt.wav"),
)
"""Files of a sample that are not answers."""


_LATEST_S: Final = 1e6  # of an annotation; NaN and Infinity, which Python reads as JSON, are none


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of the benchmark.

    Attributes:
        folder: Holds the input and its annotation.
    """

    folder: Path

    @property
    def name(self) -> str:
        """Its number, in the released data."""
        return self.folder.name

    @property
    def task(self) -> str:
        """The folder it is in, such as ``candor_pause_handling``."""
        return self.folder.parent.name

    @property
    def kind(self) -> str:
        """What is asked: a value of :data:`ANNOTATIONS`, or :data:`BACKCHANNEL`."""
        for file, kind in ANNOTATIONS.items():
            if (self.folder / file).is_file():
                return kind
        return BACKCHANNEL

    def event_s(self) -> tuple[float, float] | None:
        """Start and end of what is annotated; None where nothing is.

        Of ``turn_taking.json`` the start is the end of the user's turn; of ``interrupt.json`` and
        ``metadata.json`` these are the times of the interruption or overlap.

        Raises:
            InputError: The annotation cannot be read, or has no times of which the first is not
                after the second.
        """
        kind = self.kind
        if kind in (BACKCHANNEL, ANNOTATIONS["pause.json"]):
            return None
        file = next(name for name, asked in ANNOTATIONS.items() if asked == kind)
        path = self.folder / file
        try:
            given = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read the annotation {path}", got=str(error)) from error
        times = _times(given)
        if times is None:
            raise InputError(
                f"the annotation {path} has no times",
                got=json.dumps(given)[:80],
                wanted='{"timestamps": [START, END]} or [{"timestamp": [START, END]}], in seconds, '
                "START <= END",
            )
        return times


def find_samples(text: str) -> list[Sample]:
    """Samples under a folder: that of a sample, of a task, or of all tasks; in natural order.

    Args:
        text: What the user wrote; ``~`` is the home folder.

    Raises:
        InputError: There is no such folder, or no sample in it, or two have the same name.
    """
    root = Path(text).expanduser().absolute()
    if not root.is_dir():
        raise InputError(
            f"there is no folder {root}",
            wanted="a folder of Full-Duplex-Bench: of a sample, a task, or all tasks",
        )
    found = sorted(root.rglob(INPUT), key=natural_key)
    samples = [
        Sample(path.parent)
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    if not samples:
        raise InputError(f"no sample lies under {root}", wanted=f"folders that hold an {INPUT}")
    seen: dict[tuple[str, str], Sample] = {}
    for sample in samples:
        first = seen.setdefault((sample.task, sample.name), sample)
        if first is not sample:
            raise InputError(
                f"two samples under {root} are called {sample.task}/{sample.name}",
                got=f"{first.folder} and {sample.folder}",
                fix="run them apart, with a source.path and an output_dir for each",
            )
    return samples


def _times(given: Any) -> tuple[float, float] | None:
    """The times of an annotation; None where they are none, or end before they start."""
    if isinstance(given, list) and given:
        given = given[0]
    if not isinstance(given, dict):
        return None
    times = given.get("timestamps", given.get("timestamp"))
    if not isinstance(times, list) or len(times) != 2:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in times):
        return None
    start, end = times
    return (float(start), float(end)) if -_LATEST_S <= start <= end <= _LATEST_S else None
