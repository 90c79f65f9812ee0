"""Sink ``webhook``: the words of a session, posted to a URL as they are said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshi_pipe.hooks import hookimpl

if TYPE_CHECKING:
    from moshi_pipe.hooks import OwnedRegistry


@hookimpl
def register_nodes(registry: OwnedRegistry) -> None:
    """Offer the sink; nothing heavy is imported before it is used."""
    registry.add(
        "sink",
        "webhook",
        "moshi_pipe_webhook.sink:WebhookSink",
        "moshi_pipe_webhook.options:WebhookOptions",
    )
