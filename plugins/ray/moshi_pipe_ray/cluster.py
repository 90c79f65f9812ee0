"""The cluster: found or started, and what it has to offer."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moshi_pipe.config import RunConfig
    from moshi_pipe_ray.options import RayOptions

_STORE_BYTES: Final = 100 * 2**20  # what passes through Ray is small: recordings do not


@dataclass(frozen=True, slots=True)
class Share:
    """What one actor reserves, and how many there are.

    Attributes:
        actors: Engines.
        cpus: Of each.
        gpus: Of each.
    """

    actors: int
    cpus: float
    gpus: float


@contextmanager
def connected(options: RayOptions) -> Iterator[None]:
    """Be part of a cluster while the block runs; one that was there before stays.

    Raises:
        BackendError: There is no such cluster.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    address = options.address or os.environ.get("RAY_ADDRESS")
    alone: dict[str, Any] = (
        {}
        if address
        else {
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    )
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **alone)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BackendError(
            f"cannot join the Ray cluster {address or 'of this machine'}",
            got=str(error).partition("\n")[0],
            fix="start one with `ray start --head`, or leave engine.address out",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def share(config: RunConfig, options: RayOptions) -> Share:
    """How the cluster is shared out.

    Raises:
        ConfigError: A number is out of bounds, or the device is one that Ray chooses.
    """
    import ray

    device = config.backend.device
    if device.startswith("cuda:"):
        raise ConfigError(
            f"engine=ray gives each actor a device of its own, not {device}",
            fix="set device=cuda, or leave it auto",
        )
    for name in ("actors", "cpus"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise ConfigError(f"engine.{name} cannot be {value}", wanted="more than 0, or null")
    for name in ("ahead", "retries"):
        if getattr(options, name) < 0:
            raise ConfigError(
                f"engine.{name} cannot be {getattr(options, name)}", wanted="0, or more"
            )
    there = ray.cluster_resources()
    cpus = float(options.threads if options.cpus is None else options.cpus)
    may = device in ("auto", "cuda")
    gpus = float(may and there.get("GPU", 0) > 0) if options.gpus is None else options.gpus
    most = there.get("GPU", 0) / gpus if gpus else there.get("CPU", 1) / cpus
    return Share(options.actors or max(1, math.floor(most)), cpus, gpus)
