"""Engine ``ray``, recordings over a cluster; command ``serve-cluster``, conversations over one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshi_pipe.hooks import Command, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.hooks import OwnedRegistry


@hookimpl
def register_nodes(registry: OwnedRegistry) -> None:
    """Offer the engine; Ray is imported when it runs."""
    registry.add(
        "engine", "ray", "moshi_pipe_ray.engine:RayEngine", "moshi_pipe_ray.options:RayOptions"
    )


@hookimpl
def register_commands() -> Sequence[Command]:
    """Offer the server of a cluster."""
    return [
        Command(
            "serve-cluster",
            "serve conversations from many replicas of a model, on Ray",
            _serve_cluster,
            "[key=value ...]",
        )
    ]


def _serve_cluster(words: Sequence[str]) -> int:
    from moshi_pipe_ray.serving import serve_cluster

    return serve_cluster(words)
