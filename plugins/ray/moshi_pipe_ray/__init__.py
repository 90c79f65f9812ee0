"""Engine ``ray``: recordings spread over the devices of a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshi_pipe.hooks import hookimpl

if TYPE_CHECKING:
    from moshi_pipe.hooks import OwnedRegistry


@hookimpl
def register_nodes(registry: OwnedRegistry) -> None:
    """Offer the engine; Ray is imported when it runs."""
    registry.add(
        "engine", "ray", "moshi_pipe_ray.engine:RayEngine", "moshi_pipe_ray.options:RayOptions"
    )
