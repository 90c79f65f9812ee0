"""A graph as a config file describes it, checked before any weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import FormatError, GraphError, closest
from moshi_pipe.graph.format import Audio, Codes, Format, Text, differing_fields

if TYPE_CHECKING:
    from moshi_pipe.models.spec import CodecSpec, LMSpec

_SHAPES: Final = {
    "nodes": ("table", "nodes: {NAME: {kind: KIND}}"),
    "inputs": ("list", "inputs: [user_audio]"),
    "links": ("list", "links: [a.port -> b.port]"),
    "outputs": ("table", "outputs: {NAME: node.port}"),
}
_KEYS: Final = ("name", *_SHAPES)
_NODE_KEYS: Final = ("kind", "options")

# A dot parts a node from its port.
_NAME: Final = re.compile(r"[\w-]+")


@dataclass(frozen=True, slots=True)
class Ports:
    """What a kind of node takes and gives.

    Attributes:
        inputs: Format per input port.
        outputs: Format per output port.
    """

    inputs: Mapping[str, Format]
    outputs: Mapping[str, Format]


@dataclass(frozen=True, slots=True)
class Link:
    """A connection from a place (the graph's input, or ``node.port``) to a ``node.port``."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked graph.

    Attributes:
        name: What the graph is called.
        nodes: Kind per node name.
        ports: Ports per node name.
        input: Name of the one input.
        input_format: Its format, taken from the ports that it feeds.
        links: All connections.
        outputs: Place per output name.
        options: Options per node that has some.
    """

    name: str
    nodes: Mapping[str, str]
    ports: Mapping[str, Ports]
    input: str
    input_format: Format
    links: tuple[Link, ...]
    outputs: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)

    def format_of(self, place: str) -> Format:
        """Format of a place: the input, or a node's output port."""
        if place == self.input:
            return self.input_format
        node, _, port = place.partition(".")
        return self.ports[node].outputs[port]

    @property
    def output_formats(self) -> dict[str, Format]:
        """Format per output."""
        return {name: self.format_of(place) for name, place in self.outputs.items()}


def kinds_needed(config: Mapping[str, Any]) -> set[str]:
    """Kinds of nodes that a graph's config names; for finding out which model files are needed."""
    nodes = config.get("nodes")
    entries = nodes.values() if isinstance(nodes, Mapping) else ()
    return {str(entry.get("kind")) for entry in entries if isinstance(entry, Mapping)}


def model_ports(codec: CodecSpec | None, lm: LMSpec | None) -> dict[str, Ports]:
    """Ports of the kinds that a model gives: ``codec.encode``, ``codec.decode`` and ``lm``.

    Args:
        codec: The codec, or None where a graph needs none.
        lm: The language model, likewise.
    """
    kinds: dict[str, Ports] = {}
    if codec is not None:
        audio = Audio(codec.sample_rate, codec.frame_size, codec.channels)
        codes = Codes(codec.num_codebooks, codec.cardinality, codec.frame_rate)
        # A decoder takes any number of codebooks up to the codec's: here, what the model makes.
        own = replace(codes, num_codebooks=lm.num_generated) if lm and lm.num_generated else codes
        kinds["codec.encode"] = Ports({"audio": audio}, {"codes": codes})
        kinds["codec.decode"] = Ports({"codes": own}, {"audio": audio})
    if lm is not None and codec is not None:
        rate = codec.frame_rate
        outputs: dict[str, Format] = {"text": Text(lm.text_cardinality, rate)}
        if lm.num_generated:
            outputs["codes"] = Codes(lm.num_generated, lm.cardinality, rate)
        kinds["lm"] = Ports({"user_codes": Codes(lm.num_user, lm.cardinality, rate)}, outputs)
    return kinds


def check_graph(
    config: Mapping[str, Any],
    kinds: Mapping[str, Ports],
    own_ports: Mapping[str, Ports] | None = None,
) -> Graph:
    """Read and check a graph.

    Args:
        config: ``nodes`` (name to ``{kind: ...}``), ``inputs`` (a list of one name), ``links``
            (``a.port -> b.port``) and ``outputs`` (name to place).
        kinds: Ports of every kind of node that is known.
        own_ports: Ports of nodes that follow from their options; only these take ``options``.

    Raises:
        FormatError: The only mistake is a link between two formats.
        GraphError: Anything else; several mistakes are listed together.
    """
    return _Checker(config, kinds, own_ports or {}).check()


class _Checker:
    """Collects every mistake of one graph before it raises."""

    def __init__(
        self,
        config: Mapping[str, Any],
        kinds: Mapping[str, Ports],
        own_ports: Mapping[str, Ports],
    ) -> None:
        self.name = str(config.get("name") or "graph")
        self.own_ports = own_ports
        self.options: dict[str, Any] = {}
        self.config = config
        self.kinds = kinds
        self.errors: list[GraphError] = []
        self.nodes: dict[str, str] = {}
        self.ports: dict[str, Ports] = {}

    def check(self) -> Graph:
        self.check_keys()
        self.read_nodes()
        self.stop_on_errors()
        inputs = self.read_inputs()
        links = self.read_links()
        self.stop_on_errors()
        links = self.check_sources(links, inputs)
        self.check_inputs_fed(links)
        self.check_cycles(links)
        outputs = self.read_outputs(inputs)
        input_format = self.input_format(inputs, links)
        self.check_formats(links)
        self.stop_on_errors()
        if input_format is None:
            raise GraphError(f"graph '{self.name}': its input feeds nothing")
        return Graph(
            self.name,
            self.nodes,
            self.ports,
            inputs[0],
            input_format,
            tuple(links),
            outputs,
            self.options,
        )

    def fail(self, what: str, *, got: str | None = None, wanted: str | None = None) -> None:
        self.errors.append(GraphError(f"graph '{self.name}': {what}", got=got, wanted=wanted))

    def stop_on_errors(self) -> None:
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            rows = "\n".join(f"- {error}" for error in self.errors)
            raise GraphError(f"graph '{self.name}' has {len(self.errors)} mistakes\n{rows}")

    def check_keys(self) -> None:
        for key in sorted(str(key) for key in self.config if key not in _KEYS):
            self.fail(f"unknown key '{key}'", wanted=closest(key, _KEYS))
        readable = True
        for key, (shape, wanted) in _SHAPES.items():
            value = self.config.get(key)
            fits = isinstance(value, Mapping if shape == "table" else (list, tuple))
            if value is not None and not fits:
                self.fail(f"'{key}' is not a {shape}", got=str(value), wanted=wanted)
                readable = False
        if not readable:
            self.stop_on_errors()

    def check_name(self, what: str, name: str) -> None:
        if not _NAME.fullmatch(name):
            self.fail(f"{what} cannot be called '{name}'", wanted="letters, digits, '_' and '-'")

    def read_nodes(self) -> None:
        nodes = self.config.get("nodes")
        if not nodes:
            self.fail("it has no nodes", wanted=_SHAPES["nodes"][1])
            return
        for name, entry in nodes.items():
            self.check_name("a node", str(name))
            self.read_node(str(name), entry)

    def read_node(self, name: str, entry: Any) -> None:
        if not isinstance(entry, Mapping):
            self.fail(f"node '{name}' is not a table", got=str(entry), wanted="{kind: KIND}")
            return
        for key in sorted(str(key) for key in entry if key not in _NODE_KEYS):
            self.fail(f"node '{name}' has an unknown key '{key}'", wanted=closest(key, _NODE_KEYS))
        kind = str(entry.get("kind") or "")
        if kind not in self.kinds:
            got = f"kind '{kind}'" if kind else "no kind"
            wanted = closest(kind, self.kinds)
            self.fail(f"node '{name}' is of no known kind", got=got, wanted=wanted)
            return
        options = entry.get("options")
        if options is not None:
            if name not in self.own_ports:
                self.fail(f"node '{name}' takes no options", got=f"options of kind '{kind}'")
            self.options[name] = options
        self.nodes[name] = kind
        self.ports[name] = self.own_ports.get(name, self.kinds[kind])

    def read_inputs(self) -> list[str]:
        inputs = [str(name) for name in self.config.get("inputs") or []]
        if len(inputs) != 1:
            got = ", ".join(inputs) or "none"
            self.fail("it needs exactly one input", got=got, wanted=_SHAPES["inputs"][1])
        for name in inputs:
            self.check_name("an input", name)
            if name in self.nodes:
                self.fail(f"input '{name}' has the name of a node", wanted="a name of its own")
        return inputs

    def read_links(self) -> list[Link]:
        links = []
        for text in self.config.get("links") or []:
            source, arrow, target = (part.strip() for part in str(text).partition("->"))
            if not (source and arrow and "." in target):
                self.fail("a link cannot be read", got=str(text), wanted="a.port -> b.port")
                continue
            links.append(Link(source, target))
        return links

    def check_sources(self, links: Sequence[Link], inputs: Sequence[str]) -> list[Link]:
        """Drop links that name something unknown, with a mistake each."""
        known = [*inputs, *self.places("outputs")]
        targets = self.places("inputs")
        good = []
        for link in links:
            if link.source not in known:
                wanted = closest(link.source, known)
                self.fail(f"link '{link}' starts nowhere", got=link.source, wanted=wanted)
            elif link.target not in targets:
                wanted = closest(link.target, targets)
                self.fail(f"link '{link}' ends nowhere", got=link.target, wanted=wanted)
            else:
                good.append(link)
        return good

    def places(self, side: str) -> list[str]:
        return [f"{n}.{port}" for n, ports in self.ports.items() for port in getattr(ports, side)]

    def check_inputs_fed(self, links: Sequence[Link]) -> None:
        if self.errors:
            return
        for place in self.places("inputs"):
            feeding = [link.source for link in links if link.target == place]
            if not feeding:
                self.fail(f"nothing is linked to {place}", wanted=f"a link '... -> {place}'")
            if len(feeding) > 1:
                self.fail(f"{place} is linked twice", got=" and ".join(feeding), wanted="one link")

    def check_cycles(self, links: Sequence[Link]) -> None:
        before: dict[str, set[str]] = {node: set() for node in self.nodes}
        for link in links:
            source = link.source.partition(".")[0]
            if source in self.nodes:
                before[link.target.partition(".")[0]].add(source)
        try:
            # Sorted, so that the same graph is always told the same way.
            TopologicalSorter({node: sorted(names) for node, names in before.items()}).prepare()
        except CycleError as error:
            path = " -> ".join(reversed(error.args[1]))
            self.fail("its links form a cycle", got=path, wanted="every link pointing onward")

    def read_outputs(self, inputs: Sequence[str]) -> dict[str, str]:
        known = [*inputs, *self.places("outputs")]
        outputs = {str(k): str(v) for k, v in (self.config.get("outputs") or {}).items()}
        if not outputs:
            self.fail("it has no outputs", wanted=_SHAPES["outputs"][1])
        for name, place in outputs.items():
            self.check_name("an output", name)
            if place not in known:
                self.fail(
                    f"output '{name}' comes from nowhere", got=place, wanted=closest(place, known)
                )
        return outputs

    def input_format(self, inputs: Sequence[str], links: Sequence[Link]) -> Format | None:
        fed = [self.target_format(link) for link in links if link.source in inputs]
        if not fed and not self.errors:
            self.fail(
                f"its input '{inputs[0]}' feeds nothing", wanted=f"a link '{inputs[0]} -> ...'"
            )
        return fed[0] if fed else None

    def target_format(self, link: Link) -> Format:
        node, _, port = link.target.partition(".")
        return self.ports[node].inputs[port]

    def check_formats(self, links: Sequence[Link]) -> None:
        first = next((self.target_format(x) for x in links if "." not in x.source), None)
        for link in links:
            node, _, port = link.source.partition(".")
            # The input has the format of the first port that it feeds; others must agree.
            offered = self.ports[node].outputs[port] if port else first
            wanted = self.target_format(link)
            if offered is None:
                continue
            differing = differing_fields(offered, wanted)
            if differing:
                self.errors.append(
                    FormatError(
                        link.source,
                        link.target,
                        offered=str(offered),
                        wanted=str(wanted),
                        fields=differing,
                    )
                )
