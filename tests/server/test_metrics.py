from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from server.fake_edge import FakeHost

from moshi_pipe.engine.statistics import Histogram
from moshi_pipe.server.counts import ServerCounts
from moshi_pipe.server.info import edge_facts, server_info
from moshi_pipe.server.lobby import Lobby, LobbyRules
from moshi_pipe.server.metrics import ServerMetrics
from moshi_pipe.server.options import ServerOptions


def lobby() -> Lobby:
    doors: Any = SimpleNamespace()
    return Lobby(LobbyRules(4, 30, 0), doors, lambda: 0.0)


def read(metrics: ServerMetrics) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text())
        for sample in family.samples
    }


def test_the_numbers_of_a_server_are_shown() -> None:
    counts = ServerCounts()
    counts.sessions["done"] += 2
    counts.edges.update({"bad_messages.empty": 3, "sent_away.too_fast": 7})
    counts.gauges = {0: {"connections": 2}, 1: {"connections": 3}}
    counts.latency.add_ns(25_000_000)
    counts.latency.add_ns(5_000_000_000)
    metrics = ServerMetrics(counts, lobby())
    assert read(metrics)["moshi_pipe_ready", ()] == 0
    host = FakeHost(4)
    host.done.tick.add(10_000_000)
    host.done.nodes["lm"] = Histogram()
    host.done.nodes["lm"].add(4_000_000)
    metrics.host = host
    got = read(metrics)
    assert got["moshi_pipe_ready", ()] == 1
    assert got["moshi_pipe_slots", ("total",)] == 4
    assert got["moshi_pipe_sessions_total", ("done",)] == 2
    assert got["moshi_pipe_edge_bad_messages_total", ("empty",)] == 3
    assert got["moshi_pipe_edge_sent_away_total", ("too_fast",)] == 7
    assert got["moshi_pipe_edge_connections", ()] == 5
    assert got["moshi_pipe_latency_seconds_bucket", ("0.02",)] == 0
    assert got["moshi_pipe_latency_seconds_bucket", ("0.03",)] == 1
    assert got["moshi_pipe_latency_seconds_count", ()] == 2
    assert got["moshi_pipe_tick_seconds_sum", ()] == 0.01
    assert got["moshi_pipe_node_seconds_sum", ("lm",)] == 0.004


def test_two_servers_in_a_process_have_their_own_numbers() -> None:
    one, other = ServerCounts(), ServerCounts()
    one.frames = 5
    first, second = ServerMetrics(one, lobby()), ServerMetrics(other, lobby())
    assert read(first)["moshi_pipe_frames_total", ()] == 5
    assert read(second)["moshi_pipe_frames_total", ()] == 0


def test_the_info_holds_what_edges_are_told() -> None:
    host = FakeHost(3)
    info = server_info(host, ServerOptions(max_s=60), lobby())
    assert info["slots"] == {"total": 3, "usable": 3, "used": 0, "parked": 0, "waiting": 0}
    assert info["frame_ms"] == 80.0
    assert info["settings"]["max_s"]["max"] == 60
    facts = edge_facts(host.facts, ServerOptions(max_s=60))
    assert facts.items() <= info.items()
    assert facts["frame_samples"] == 1920
