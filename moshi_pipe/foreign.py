"""Batched nodes of plugins: constructed with their options, and named when they fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moshi_pipe.errors import ConfigError, GraphError, MoshiPipeError
from moshi_pipe.graph.graph import Ports
from moshi_pipe.graph.node import BatchedNode
from moshi_pipe.registry import BUILT_IN, plugin_failed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from moshi_pipe.graph.graph import Graph
    from moshi_pipe.graph.node import TextReader, Tick, Value
    from moshi_pipe.models.spec import CodecSpec
    from moshi_pipe.plugins import Plugins
    from moshi_pipe.registry import NodeEntry


class Guarded(BatchedNode):
    """Passes everything on to a node, and says whose it is when that raises.

    Errors of :mod:`moshi_pipe.errors` pass as they are: they know what to say.

    Args:
        node: The node.
        what: How an error calls it, such as ``node 'gain'``.
        owner: The plugin that it comes from.
    """

    def __init__(self, node: BatchedNode, what: str, owner: str) -> None:
        self.inputs, self.outputs = node.inputs, node.outputs
        self.plugin = owner
        self.node = node
        self._what = what

    def readers(self) -> Mapping[str, TextReader]:
        """Ask what its tokens stand for."""
        readers: Mapping[str, TextReader] = self._do("readers")
        return readers

    def files(self) -> Sequence[Path]:
        """Ask which files shape its results."""
        files: Sequence[Path] = self._do("files")
        return files

    def open(self, num_slots: int) -> None:
        """Open it."""
        self._do("open", num_slots)

    def join(self, slot: int, settings: Any) -> None:
        """Begin a session."""
        self._do("join", slot, settings)

    def leave(self, slot: int) -> None:
        """End a session."""
        self._do("leave", slot)

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        """Advance it."""
        values: dict[str, Value] = self._do("step", inputs, tick)
        return values

    @property
    def can_snapshot(self) -> bool:
        """Whether it can keep a session's state."""
        try:
            return bool(self.node.can_snapshot)
        except Exception as error:  # foreign code
            raise plugin_failed(self._what, self.plugin or "", "can_snapshot", error) from error

    def snapshot(self, slot: int) -> Any:
        """Copy what it remembers of a session."""
        return self._do("snapshot", slot)

    def restore(self, slot: int, snapshot: Any, settings: Any) -> None:
        """Go on with a session."""
        self._do("restore", slot, snapshot, settings)

    def failed(self) -> Sequence[int]:
        """Ask which slots are not finite."""
        slots: Sequence[int] = self._do("failed")
        return slots

    def close(self) -> None:
        """Close it."""
        self._do("close")

    def _do(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.node, name)(*arguments)
        except MoshiPipeError:
            raise
        except Exception as error:  # foreign code
            raise plugin_failed(self._what, self.plugin or "", name, error) from error


def make_foreign(entry: NodeEntry, options: Any, codec: CodecSpec) -> BatchedNode:
    """Construct a plugin's batched node for a codec.

    Args:
        entry: The registered node.
        options: An instance of its dataclass; a mapping of its fields; or None for the defaults.
        codec: Of the run.

    Raises:
        ConfigError: The options do not fit.
        MoshiPipeError: The node cannot be constructed.
    """
    wanted = entry.load_options()
    if wanted is not None and not isinstance(options, wanted):
        try:
            options = wanted(**(options or {}))
        except TypeError as error:
            raise ConfigError(
                f"the options of a node of kind '{entry.name}' do not fit", got=str(error)
            ) from error
    elif wanted is None and options:
        raise ConfigError(f"a node of kind '{entry.name}' takes no options", got=str(options))
    node: BatchedNode = entry.make(options)
    try:
        node.fit(codec)
    except MoshiPipeError:
        raise
    except Exception as error:  # foreign code
        raise plugin_failed(f"node '{entry.name}'", entry.owner, "fit", error) from error
    if not hasattr(node, "inputs") or not hasattr(node, "outputs"):
        raise GraphError(
            f"a node of kind '{entry.name}' of plugin {entry.owner} has no ports",
            wanted="inputs and outputs: set on the class, in __init__ or in fit",
        )
    return node


def foreign_nodes(graph: Graph, plugins: Plugins, codec: CodecSpec) -> dict[str, BatchedNode]:
    """Nodes of a checked graph that are registered, made anew and fitted, by name; not opened."""
    found: dict[str, BatchedNode] = {}
    kinds = plugins.nodes.names("node")
    for name, kind in graph.nodes.items():
        if kind in kinds:
            entry = plugins.nodes.get("node", kind)
            node = make_foreign(entry, graph.options.get(name), codec)
            own = entry.owner in BUILT_IN
            found[name] = node if own else Guarded(node, f"node '{name}'", entry.owner)
    return found


def foreign_ports(graph: Mapping[str, Any], plugins: Plugins, codec: CodecSpec) -> dict[str, Ports]:
    """Ports of the nodes of a graph that come from plugins, by node; other kinds are left out.

    Args:
        graph: Its configuration, not checked yet.
        plugins: Give the kinds.
        codec: Of the run.

    Raises:
        MoshiPipeError: A node cannot be constructed with its options.
    """
    ports: dict[str, Ports] = {}
    nodes = graph.get("nodes")
    kinds = plugins.nodes.names("node")
    for name, node in nodes.items() if isinstance(nodes, Mapping) else ():
        kind = node.get("kind") if isinstance(node, Mapping) else None
        if kind in kinds:
            entry = plugins.nodes.get("node", str(kind))
            made = make_foreign(entry, node.get("options"), codec)
            ports[str(name)] = Ports(made.inputs, made.outputs)
    return ports
