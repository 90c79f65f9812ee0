"""The hooks of this package: models on MLX when ``backend=mlx``.

Nothing here imports MLX before a model is opened.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import BackendError
from moshi_pipe.hooks import hookimpl

if TYPE_CHECKING:
    from moshi_pipe.hooks import BackendOptions, Progress
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Codec, SpeechLM

BACKEND: Final = "mlx"


@hookimpl
def open_codec(checkpoint: Checkpoint, options: BackendOptions, progress: Progress) -> Codec | None:
    """Open Mimi on MLX."""
    if options.backend != BACKEND:
        return None
    require_mlx()
    from moshi_pipe_mlx import opening

    return opening.open_codec(checkpoint, options, progress)


@hookimpl
def open_lm(checkpoint: Checkpoint, options: BackendOptions, progress: Progress) -> SpeechLM | None:
    """Open Moshi on MLX."""
    if options.backend != BACKEND:
        return None
    require_mlx()
    from moshi_pipe_mlx import opening

    return opening.open_lm(checkpoint, options, progress)


def require_mlx() -> None:
    """Import MLX, or say how to install it.

    Raises:
        BackendError: It is not installed, or its CPU or Metal library is not.
    """
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        wanted = "mlx" if sys.platform == "darwin" else "mlx[cpu]"
        raise BackendError(
            "backend mlx needs MLX, which cannot be imported",
            got=f"{type(error).__name__}: {error}",
            wanted="mlx 0.32 or newer",
            fix=f"pip install '{wanted}>=0.32', or set backend=torch",
        ) from error
