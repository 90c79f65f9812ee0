"""The command ``serve-cluster``: many replicas of a served model behind one address."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError
from moshi_pipe.units import format_count
from moshi_pipe_ray.cluster import connected, share
from moshi_pipe_ray.options import RayOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.config import RunConfig
    from moshi_pipe.server.options import ServerOptions

APP: Final = "moshi-pipe"
_NAMESPACE: Final = "moshi-pipe"
_CHOICES: Final = ("source=websocket", "sink=websocket", "engine=ray")
_DRAIN_S: Final = 10.0


def serve_cluster(words: Sequence[str]) -> int:
    """Serve until Ctrl-C; the words are those of a server, with ``engine=ray``.

    Raises:
        MoshiPipeError: The words are wrong, there is no cluster, or no replica comes up.
    """
    from moshi_pipe.compose import load_run
    from moshi_pipe.overrides import prepare
    from moshi_pipe.plugins import load_plugins

    config = load_run(prepare([*_CHOICES, *words]), load_plugins().nodes)
    options = config.engine
    if config.source.entry.name != "websocket" or not isinstance(options, RayOptions):
        raise ConfigError(
            "serve-cluster serves conversations",
            wanted="source=websocket and engine=ray, as they are",
        )
    with connected(options):
        start(config, options)
        server: ServerOptions = config.source.options.server
        count = format_count(share(config, options).actors, "replica")
        sys.stderr.write(f"talk at http://{server.host}:{server.port}, {count}; Ctrl-C ends\n")
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        stopped.wait()
        stop()
    return 0


def start(config: RunConfig, options: RayOptions) -> None:
    """Bring replicas up; returns when all can be talked to.

    One that is let go later takes no new conversation, and ends when it has none.

    Raises:
        RuntimeError: A replica did not come up; Ray Serve says why.
    """
    import ray
    from ray import serve

    from moshi_pipe_ray.directory import Directory
    from moshi_pipe_ray.door import Door, make_routes
    from moshi_pipe_ray.replica import Replica

    server: ServerOptions = config.source.options.server
    part = share(config, options)
    model = config.model
    if model.path is not None:
        model = replace(model, path=str(Path(model.path).expanduser().absolute()))
    config = replace(config, model=model)
    directory: Any = (
        ray.remote(Directory)
        .options(
            name="directory",
            namespace=_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
        )
        .remote()
    )
    serve.start(
        http_options={"host": server.host, "port": server.port},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    secret = ray.get(directory.begin.remote())
    replicas = serve.deployment(
        name="replica",
        max_ongoing_requests=options.slots,
        graceful_shutdown_timeout_s=server.max_s + _DRAIN_S,
        health_check_period_s=2,
        ray_actor_options={
            "num_cpus": part.cpus,
            "num_gpus": part.gpus,
            "resources": dict(options.resources),
            "runtime_env": dict(options.runtime_env),
        },
        **_replicas(options, part.actors),
    )(Replica).bind(config, secret, directory)
    doors = serve.deployment(
        name="door",
        num_replicas=options.doors,
        max_ongoing_requests=server.max_connections,
        graceful_shutdown_timeout_s=server.max_s + _DRAIN_S,
        ray_actor_options={"num_cpus": 0, "runtime_env": dict(options.runtime_env)},
    )(serve.ingress(make_routes())(Door))
    app = doors.bind(server, secret, directory, replicas)
    serve.run(app, name=APP, route_prefix="/")


def stop() -> None:
    """End all replicas, which let conversations end for ``server.drain_s``."""
    import ray
    from ray import serve

    directory = ray.get_actor("directory", namespace=_NAMESPACE)
    ray.get(directory.end.remote())
    serve.delete(APP)
    ray.kill(directory)
    serve.shutdown()


def _replicas(options: RayOptions, actors: int) -> dict[str, Any]:
    """How many replicas: so many, or as many as clients need."""
    if options.most_actors is None:
        return {"num_replicas": actors}
    least = options.actors or 1
    if options.most_actors < least:
        raise ConfigError(
            f"engine.most_actors cannot be {options.most_actors}", wanted=f"{least}, or more"
        )
    return {
        "autoscaling_config": {
            "min_replicas": least,
            "initial_replicas": least,
            "max_replicas": options.most_actors,
            "target_ongoing_requests": options.slots,
            "downscale_delay_s": options.scale_down_s,
            "upscale_delay_s": 0,
        }
    }
