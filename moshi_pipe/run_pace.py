"""How a run's sessions wait: for the models, for their sinks, and for each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import ConfigError
from moshi_pipe.run_facts import late_policy
from moshi_pipe.units import NS_PER_MS, NS_PER_SECOND

if TYPE_CHECKING:
    from moshi_pipe.config import EngineOptions, RunConfig
    from moshi_pipe.engine.engine import TickOptions
    from moshi_pipe.graph.node import Source

_MIN_INTERVAL_MS: Final = 20.0  # with several slots, so that sessions share ticks

_LIVE_POLICIES: Final = {
    "drop_oldest": "drop_oldest",
    "skip_to_live": "drop_all",
    "fail": "close",
}


def tick_options(config: RunConfig, frame_s: float, source: Source, device: str) -> TickOptions:
    """How ticks are formed.

    Args:
        config: The run.
        frame_s: Duration of a frame in seconds.
        source: Where sessions come from.
        device: Where the graph's inputs go.
    """
    from moshi_pipe.engine.engine import TickOptions

    engine, live = config.engine, source.live
    budget_ms = frame_s * 1000 if engine.budget_ms is None else engine.budget_ms
    interval_ms = engine.min_interval_ms
    if interval_ms is None:
        interval_ms = 0.0 if engine.slots == 1 else _MIN_INTERVAL_MS
    return TickOptions(
        num_slots=engine.slots,
        live=live,
        fill=not source.endless,
        all_rows=not live or config.backend.numerics == "reference",
        min_interval_ns=round(interval_ms * NS_PER_MS),
        frame_ns=round(frame_s * NS_PER_SECOND),
        budget_ns=round(budget_ms * NS_PER_MS),
        admit_ns=_admit_ns(engine, source),
        device=device,
    )


def _admit_ns(engine: EngineOptions, source: Source) -> int | None:
    """Longest tick for which one more session is let in; None where nobody has to stay out."""
    waits = late_policy(engine.late, live=source.live) == "slow_down"
    limit_ms = engine.admit_ms
    if limit_ms is None or math.isinf(limit_ms) or waits or not source.endless:
        return None
    return round(limit_ms * NS_PER_MS)


def ring_options(engine: EngineOptions, frame_s: float, source: Source) -> tuple[int, int, str]:
    """Frames in the inbox and in the outbox, and the inbox's policy.

    Raises:
        ConfigError: The policy is not for this source.
    """
    live, late = source.live, late_policy(engine.late, live=source.live)
    waits = late == "slow_down"
    if (waits and live and not source.can_wait) or not (waits or live):
        raise ConfigError(
            f"engine.late={late} is not for this source",
            got="a live source, which does not wait" if live else "recordings, which wait",
            wanted=", ".join(_LIVE_POLICIES) if live else "slow_down, or null",
        )
    if waits:
        return engine.inbox_frames, engine.outbox_frames, "block"
    waiting = max(1, int(engine.max_lag_ms / 1000 / frame_s))
    return waiting, engine.outbox_frames, _LIVE_POLICIES[late]
