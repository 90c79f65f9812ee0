"""Source ``telephone``: a session per call, with the way back as its own sink.

And a command ``phone``, which calls it with a recording.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshi_pipe.hooks import Command, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.hooks import OwnedRegistry


@hookimpl
def register_nodes(registry: OwnedRegistry) -> None:
    """Offer the source; nothing heavy is imported before it is used."""
    registry.add(
        "source",
        "telephone",
        "moshi_pipe_telephone.server:TelephoneSource",
        "moshi_pipe_telephone.options:TelephoneOptions",
    )


@hookimpl
def register_commands() -> Sequence[Command]:
    """Offer ``moshi-pipe phone``."""
    return [
        Command("phone", "call source=telephone with a recording", _phone, "URL IN.wav OUT.wav")
    ]


def _phone(words: Sequence[str]) -> int:
    from moshi_pipe_telephone.client import main

    return main(words)
