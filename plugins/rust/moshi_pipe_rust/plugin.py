"""The hooks of this package: models in Rust when ``backend=rust``.

Nothing here loads the extension before a model is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from moshi_pipe.hooks import hookimpl

if TYPE_CHECKING:
    from moshi_pipe.hooks import BackendOptions, Progress
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Codec, SpeechLM

BACKEND: Final = "rust"


@hookimpl
def open_codec(checkpoint: Checkpoint, options: BackendOptions, progress: Progress) -> Codec | None:
    """Open Mimi in Rust; where the extension is not built, on rustymimi."""
    if options.backend != BACKEND:
        return None
    from moshi_pipe_rust import opening

    return opening.open_codec(checkpoint, progress)


@hookimpl
def open_lm(checkpoint: Checkpoint, options: BackendOptions, progress: Progress) -> SpeechLM | None:
    """Open Moshi on candle."""
    if options.backend != BACKEND:
        return None
    from moshi_pipe_rust import opening

    return opening.open_lm(checkpoint, options, progress)
