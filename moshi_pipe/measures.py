"""Sinks that measure: what they need of the graph and of the source, before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError
from moshi_pipe.registry import BUILT_IN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moshi_pipe.config import ChosenNode

_BENCH: Final = "fdb"
"""The source that gives samples of Full-Duplex-Bench, and the sink that writes answers to it."""


def check_measures(
    graph: Mapping[str, Any], source: ChosenNode, sinks: Sequence[ChosenNode]
) -> None:
    """Refuse sinks that no session of this run could satisfy.

    Sessions of a plugin's source may be samples of the benchmark as well; there, each is looked at
    when it begins.

    Args:
        graph: Its configuration.
        source: Where sessions come from.
        sinks: Where results go.

    Raises:
        ConfigError: Names the choice and what it needs.
    """
    ours = source.entry.owner in BUILT_IN
    for sink in sinks:
        chosen = _choice(sink)
        if ours and source.entry.name != _BENCH and _is_bench(sink):
            raise ConfigError(
                f"{chosen} is for samples of Full-Duplex-Bench",
                got=f"source={source.entry.name}",
                fix=f"choose source=fdb source.path=DATA, or leave {chosen} out",
            )
        if _is(sink, "metrics") and sink.options.codec and not _is_round_trip(graph):
            raise ConfigError(
                "metric=codec compares what goes into a codec with what comes out of it",
                got=f"graph '{graph.get('name')}', which does something else",
                fix="choose graph=codec, or leave metric=codec out",
            )


def _is(sink: ChosenNode, name: str) -> bool:
    return sink.entry.name == name and sink.entry.owner in BUILT_IN


def _is_bench(sink: ChosenNode) -> bool:
    return _is(sink, _BENCH) or (_is(sink, "metrics") and sink.options.fdb)


def _choice(sink: ChosenNode) -> str:
    """How a user chose it."""
    return f"metric={_BENCH}" if _is(sink, "metrics") else f"sink={sink.label}"


def _is_round_trip(graph: Mapping[str, Any]) -> bool:
    """Whether sound goes in and comes out, and nobody wrote anything in between."""
    outputs = graph.get("outputs") or {}
    return "text" not in outputs and {"audio", "user_audio"} <= set(outputs)
