"""Sink ``vad``: who speaks when, found by silero-VAD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshi_pipe.hooks import hookimpl

if TYPE_CHECKING:
    from moshi_pipe.hooks import OwnedRegistry


@hookimpl
def register_nodes(registry: OwnedRegistry) -> None:
    """Offer the sink; nothing heavy is imported before it is used."""
    registry.add("sink", "vad", "moshi_pipe_vad.sink:VadSink", "moshi_pipe_vad.options:VadOptions")
