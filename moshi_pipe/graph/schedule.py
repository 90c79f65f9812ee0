"""The order in which a graph's nodes fire, fixed before the first tick."""

from __future__ import annotations

from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from moshi_pipe.errors import GraphError, closest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from moshi_pipe.graph.graph import Graph


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a tick does. A place is the name of the input or ``node.port``.

    Attributes:
        input: Name of the graph's input.
        order: Nodes in firing order.
        inputs: Per node, the place that feeds each input port.
        outputs: Place per wanted output.
    """

    input: str
    order: tuple[str, ...]
    inputs: Mapping[str, Mapping[str, str]]
    outputs: Mapping[str, str]


def make_schedule(graph: Graph, wanted: Iterable[str] | None = None) -> Schedule:
    """Sort a checked graph, leaving out what no wanted output depends on.

    Args:
        graph: Checked.
        wanted: Outputs that somebody takes; None means all.

    Raises:
        GraphError: An output is wanted that the graph does not have.
    """
    names = list(graph.outputs) if wanted is None else sorted(set(wanted))
    for name in names:
        if name not in graph.outputs:
            raise GraphError(
                f"graph '{graph.name}' makes no output '{name}'",
                wanted=closest(name, graph.outputs),
            )
    feeds: dict[str, dict[str, str]] = {node: {} for node in graph.nodes}
    for link in graph.links:
        node, _, port = link.target.partition(".")
        feeds[node][port] = link.source
    needed: set[str] = set()
    todo = [graph.outputs[name].partition(".")[0] for name in names]
    while todo:
        node = todo.pop()
        if node in needed or node not in feeds:
            continue
        needed.add(node)
        todo += [place.partition(".")[0] for place in feeds[node].values()]
    # Sorted by name within a rank: the order must not depend on how the file lists nodes.
    sorter = TopologicalSorter(
        {
            node: sorted({p.partition(".")[0] for p in feeds[node].values() if "." in p})
            for node in sorted(needed)
        }
    )
    return Schedule(
        input=graph.input,
        order=tuple(sorter.static_order()),
        inputs={node: feeds[node] for node in needed},
        outputs={name: graph.outputs[name] for name in names},
    )
