"""Numbers of a server in the text format of Prometheus."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from moshi_pipe.server.counts import BUCKETS_S, Durations
from moshi_pipe.server.info import slot_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from moshi_pipe.graph.host import Host
    from moshi_pipe.server.counts import ServerCounts
    from moshi_pipe.server.lobby import Lobby

_EDGE_COUNTS = {
    "bad_messages": ("kind", "Messages of clients that the protocol does not know"),
    "refused": ("reason", "Connections refused before they could wait"),
    "requests": ("with", "Requests of clients that were let in"),
    "sent_away": ("reason", "Clients that were sent away"),
    "broken": ("close", "Clients that broke the rules of websockets"),
}


class ServerMetrics:
    """What ``/metrics`` shows; numbers are read when they are asked for.

    Args:
        counts: Of the desk.
        lobby: Of the desk.
    """

    def __init__(self, counts: ServerCounts, lobby: Lobby) -> None:
        from prometheus_client import CollectorRegistry

        self.host: Host | None = None
        self._counts = counts
        self._lobby = lobby
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> str:
        """All of it."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry).decode()

    def describe(self) -> list[Any]:
        """Nothing: names are not asked for when it is registered."""
        return []

    def collect(self) -> Iterator[Any]:
        """Called by the registry for each scrape."""
        yield from self._slots()
        yield from self._conversations()
        yield from self._edges()
        yield _histogram(
            "latency_seconds", "From a frame's arrival to its answer", self._counts.latency
        )
        if self.host is not None:
            yield from self._engine(self.host)

    def _slots(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        ready = GaugeMetricFamily("moshi_pipe_ready", "Whether conversations can begin")
        ready.add_metric([], float(self.host is not None))
        yield ready
        if self.host is not None:
            slots = GaugeMetricFamily("moshi_pipe_slots", "Slots", labels=["state"])
            for state, number in slot_numbers(self.host, self._lobby).items():
                slots.add_metric([state], number)
            yield slots
        parked = GaugeMetricFamily("moshi_pipe_parked_bytes", "Memory of parked states")
        parked.add_metric([], self._lobby.parked_bytes)
        yield parked

    def _conversations(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily

        counts, lobby = self._counts, self._lobby.counts
        labelled = {
            "sessions": ("outcome", "Conversations that ended", counts.sessions),
            "refused_clients": ("reason", "Clients that got no slot", lobby.refused),
        }
        for name, (label, text, values) in labelled.items():
            family = CounterMetricFamily(f"moshi_pipe_{name}", text, labels=[label])
            for value, number in values.items():
                family.add_metric([value], number)
            yield family
        plain = {
            "frames": ("Frames of clients that were taken", counts.frames),
            "answers": ("Answers with audio", counts.answers),
            "skipped_answers": ("Answers that found no room", counts.skipped),
            "dropped_frames": ("Frames that the engine dropped", counts.dropped),
            "resumes": ("Clients that came back", lobby.resumed),
            "takeovers": ("Clients that came back while their connection lived", lobby.taken_over),
            "parks": ("Conversations whose state went to memory", lobby.parked),
            "lost": ("Conversations whose client did not come back", lobby.lost),
            "edge_restarts": ("Edge processes that ended", counts.edge_ends),
        }
        for name, (text, number) in plain.items():
            yield CounterMetricFamily(f"moshi_pipe_{name}", text, value=number)

    def _edges(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families: dict[str, Any] = {}
        for key, number in sorted(self._counts.edges.items()):
            name, _, value = key.partition(".")
            label, text = _EDGE_COUNTS.get(name, ("what", "Counted by edge processes"))
            if name not in families:
                families[name] = CounterMetricFamily(
                    f"moshi_pipe_edge_{name}", text, labels=[label]
                )
            families[name].add_metric([value], number)
        gauges: dict[str, float] = {}
        for values in self._counts.gauges.values():
            for name, gauge in values.items():
                gauges[name] = gauges.get(name, 0.0) + gauge
        for name, gauge in gauges.items():
            families[f"gauge {name}"] = GaugeMetricFamily(
                f"moshi_pipe_edge_{name}", "Now, over all edge processes", value=gauge
            )
        yield from families.values()

    def _engine(self, host: Host) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, SummaryMetricFamily

        statistics = host.statistics()
        plain = {
            "ticks": ("Ticks", statistics["ticks"]),
            "engine_frames": ("Frames that went through the models", statistics["frames"]),
            "engine_rows": ("Rows of ticks, idle ones included", statistics["rows"]),
            "late_frames": ("Frames that were answered after their deadline", statistics["late"]),
        }
        for name, (text, number) in plain.items():
            yield CounterMetricFamily(f"moshi_pipe_{name}", text, value=number)
        for name, text in (
            ("tick", "Time per tick"),
            ("overhead", "Time per tick outside of the models"),
        ):
            family = SummaryMetricFamily(f"moshi_pipe_{name}_seconds", text)
            _add(family, {}, statistics[name])
            yield family
        nodes = SummaryMetricFamily(
            "moshi_pipe_node_seconds", "Time per tick and node", labels=["node"]
        )
        for node, durations in statistics["nodes"].items():
            _add(nodes, {"node": node}, durations)
        yield nodes


def _add(family: Any, labels: Mapping[str, str], durations: Mapping[str, float]) -> None:
    for quantile, key in ((0.5, "p50_ms"), (0.99, "p99_ms")):
        named = {**labels, "quantile": str(quantile)}
        family.add_sample(family.name, named, durations[key] / 1000)
    family.add_metric([*labels.values()], durations["count"], durations["total_ms"] / 1000)


def _histogram(name: str, text: str, durations: Durations) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    bounds = [*map(str, BUCKETS_S), "+Inf"]
    buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
    family = HistogramMetricFamily(f"moshi_pipe_{name}", text)
    family.add_metric([], buckets, sum_value=durations.total_s)
    return family
