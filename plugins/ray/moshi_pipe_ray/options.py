"""Options of the engine; apart from it, so that composing a configuration imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moshi_pipe.config import EngineOptions


@dataclass
class RayOptions(EngineOptions):
    """How recordings are spread over a cluster; further keys are those of ``engine=default``.

    Attributes:
        node: What runs the sessions.
        slots: Sessions at once per actor; 1 or a multiple of 4, others are rounded up.
        threads: Threads of torch on the CPU, per actor.
        address: Of the cluster: ``auto``, ``HOST:PORT``; null takes that of ``RAY_ADDRESS``, or
            starts one on this machine.
        actors: Engines; null is one per GPU, or one per ``cpus`` where there are none.
        cpus: CPUs that an actor reserves; null is ``threads``.
        gpus: GPUs that an actor reserves; null is 1 where there are GPUs and ``device`` may be one.
        resources: Further resources of Ray that an actor reserves, by name.
        ahead: Recordings that an actor takes before a slot is free, for inputs that are slow to
            fetch.
        retries: How often a recording is given to another actor when its own is lost.
        runtime_env: Of the actors, as Ray takes it.
        progress_s: Seconds between two looks at what the actors do.
        doors: Of ``serve-cluster``: processes that hold the clients' connections.
        most_actors: Of ``serve-cluster``: engines at most, made as clients come and let go as they
            leave; null keeps ``actors``.
        scale_down_s: Of ``serve-cluster``: seconds with too few clients before an engine is let go.
    """

    node: str = "ray"
    address: str | None = None
    actors: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    resources: dict[str, float] = field(default_factory=dict)
    ahead: int = 0
    retries: int = 3
    runtime_env: dict[str, Any] = field(default_factory=dict)
    progress_s: float = 0.5
    doors: int = 1
    most_actors: int | None = None
    scale_down_s: float = 300.0
