"""The compiled extension: whether it is there, and its failures as ours."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILD: Final = (
    "pip install ./plugins/rust (needs Rust 1.89 or newer, see https://rustup.rs), or backend=torch"
)


def load_native() -> Any:
    """Import the extension.

    Raises:
        BackendError: It was not built for this Python or machine.
    """
    try:
        return import_module("moshi_pipe_rust._native")
    except ImportError as error:
        raise BackendError(
            "backend rust needs its extension, which is not built here",
            got=f"{type(error).__name__}: {error}",
            fix=BUILD,
        ) from error


@contextmanager
def failing_as(what: str, fix: str | None = None) -> Iterator[None]:
    """Turn what the extension raises into one error of ours.

    Raises:
        BackendError: With ``what``, and the extension's one line as what was got.
    """
    try:
        yield
    except RuntimeError as error:  # NativeError, and a second thread in the same state
        raise BackendError(what, got=str(error), fix=fix) from error
