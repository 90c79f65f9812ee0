"""moshi-pipe: full-duplex speech models as a streaming graph that a config file describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moshi_pipe.api import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Find the version and the Python API when they are first asked for: importing stays cheap."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("moshi-pipe")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    if name == "load":
        from moshi_pipe.api import load

        return load
    raise AttributeError(f"module 'moshi_pipe' has no attribute '{name}'")
