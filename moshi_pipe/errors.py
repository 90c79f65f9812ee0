"""Every error a user can meet, by whose fault it is.

::

    MoshiPipeError            exit 1
    ├── ConfigError           exit 2   a key, group, value or file of the configuration
    │   └── GraphError        exit 2   the wiring: unknown node, cycle, open port
    │       └── FormatError   exit 2   two linked ports carry different formats
    ├── InputError            exit 3   a source cannot be read
    ├── OutputError           exit 4   a sink cannot be written
    ├── CheckpointError       exit 5   weights, tokenizer or config of a model
    ├── BackendError          exit 6   a device, driver or library that is not there or failed
    └── SessionError          exit 7   a session failed while it ran; others may have finished

A message says what failed, what was got, what was wanted and what to do, in that order.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class MoshiPipeError(Exception):
    """Base of all errors that moshi-pipe raises on purpose.

    Args:
        what: What could not be done, one line.
        got: What was found.
        wanted: What would have been right.
        fix: What the user can do about it.

    Attributes:
        exit_code: What the command returns when this error ends it.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        got: str | None = None,
        wanted: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.got = got
        self.wanted = wanted
        self.fix = fix
        rows = [("got:    ", got), ("wanted: ", wanted), ("do:     ", fix)]
        lines = [f"  {label}{_indent(text)}" for label, text in rows if text is not None]
        super().__init__("\n".join([what, *lines]))


class ConfigError(MoshiPipeError):
    """The configuration cannot be used as it stands."""

    exit_code = 2


class GraphError(ConfigError):
    """The wiring of a graph is wrong."""


class FormatError(GraphError):
    """Two linked ports carry different formats.

    Attributes:
        upstream: ``node.port`` that offers.
        downstream: ``node.port`` that refuses.
        fields: The fields that differ.
    """

    def __init__(
        self, upstream: str, downstream: str, *, offered: str, wanted: str, fields: Iterable[str]
    ) -> None:
        self.upstream = upstream
        self.downstream = downstream
        self.fields = tuple(fields)
        super().__init__(
            f"cannot link {upstream} -> {downstream}: they differ in {', '.join(self.fields)}",
            got=f"{upstream} offers {offered}",
            wanted=f"{downstream} takes {wanted}",
        )


class InputError(MoshiPipeError):
    """A source cannot be read."""

    exit_code = 3


class OutputError(MoshiPipeError):
    """A sink cannot be written."""

    exit_code = 4


class CheckpointError(MoshiPipeError):
    """A model's files are missing, damaged or of another shape."""

    exit_code = 5


class BackendError(MoshiPipeError):
    """A device, driver or library is missing or failed."""

    exit_code = 6


class SessionError(MoshiPipeError):
    """A session failed while it ran."""

    exit_code = 7


def closest(name: str, options: Iterable[str]) -> str:
    """Sentence that helps with a wrong name: the nearest option, or all of them.

    Args:
        name: What the user wrote.
        options: What would have been right.

    Returns:
        ``did you mean 'x'? (there are: a, b, x)``, or the list alone without a near match.
    """
    known = sorted(options)
    listed = ", ".join(known) if known else "none"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'? (there are: {listed})" if near else f"one of: {listed}"


def _indent(text: str) -> str:
    """Align the further lines of a many-line field under its first."""
    return text.replace("\n", "\n" + " " * 10)
