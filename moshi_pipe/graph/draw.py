"""Graphs as pictures: text for a terminal, SVG for a page."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from graphlib import TopologicalSorter
from html import escape
from typing import TYPE_CHECKING, Final

from moshi_pipe.graph.schedule import make_schedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moshi_pipe.graph.graph import Graph

_WIDTH: Final = 78  # columns of a box; a terminal has 80

# Sizes of the SVG in CSS pixels.
_BOX_WIDTH: Final = 230
_COLUMN_GAP: Final = 90
_ROW_GAP: Final = 28
_HEAD: Final = 46
_PORT: Final = 36
_MARGIN: Final = 24
_TITLE: Final = 34
_LANE: Final = 13  # between links that pass below boxes
_LETTERS: Final = 24  # of a name that has a row of a box to itself
_SMALL_LETTERS: Final = 38

_STYLE: Final = """
  text { font: 14px system-ui, sans-serif; fill: #1c2733; }
  .title { font-size: 18px; font-weight: 600; }
  .name { font-weight: 600; }
  .small { font-size: 11px; fill: #5b6b7b; }
  .box { fill: #f4f7fa; stroke: #7b8fa3; }
  .end { fill: #e3f0e8; stroke: #5f9a78; }
  .link { fill: none; stroke: #4a78a8; stroke-width: 1.6; }
  .dot { fill: #4a78a8; }
  .page { fill: #ffffff; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .small { fill: #9fb0c0; }
    .box { fill: #1d2733; stroke: #5b7187; }
    .end { fill: #1b3226; stroke: #5f9a78; }
    .link { stroke: #7fb0e0; }
    .dot { fill: #7fb0e0; }
    .page { fill: #0f151c; }
  }
"""


def draw_text(graph: Graph) -> str:
    """Draw a graph with line characters, in firing order, at most 80 columns wide."""
    feeds = {link.target: link.source for link in graph.links}
    goes_to = _destinations(graph)
    blocks = [
        _cut(graph.name, _WIDTH),
        "",
        *_box(graph.input, [], [_out_row(graph, graph.input, goes_to)]),
    ]
    for name in _order(graph):
        ports = graph.ports[name]
        takes = [f"{port} ◀─ {feeds[f'{name}.{port}']}" for port in ports.inputs]
        gives = [_out_row(graph, f"{name}.{port}", goes_to) for port in ports.outputs]
        blocks += ["   │", "   ▼", *_box(f"{name}: {graph.nodes[name]}", takes, gives)]
    return "\n".join([*blocks, "", "[name]: an output, for sinks"])


def _order(graph: Graph) -> tuple[str, ...]:
    """Firing order; nodes that feed no output come last, each behind what feeds it."""
    fired = make_schedule(graph).order
    before: dict[str, set[str]] = {node: set() for node in graph.nodes}
    for link in graph.links:
        before[_name(link.target)] |= {_name(link.source)} - {graph.input}
    ordered = TopologicalSorter({node: sorted(before[node]) for node in sorted(before)})
    return (*fired, *(node for node in ordered.static_order() if node not in fired))


def _name(place: str) -> str:
    """The node of a place, or the input itself."""
    return place.partition(".")[0]


def _destinations(graph: Graph) -> dict[str, list[str]]:
    """Where each place leads: ports, and outputs in brackets."""
    found: dict[str, list[str]] = defaultdict(list)
    for link in graph.links:
        found[link.source].append(link.target)
    for output, place in graph.outputs.items():
        found[place].append(f"[{output}]")
    return found


def _out_row(graph: Graph, place: str, goes_to: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    """What a place gives and to whom, and its format."""
    port = place.partition(".")[2] or place
    targets = ", ".join(goes_to.get(place, ())) or "nothing"
    return f"{port} ─▶ {targets}", str(graph.format_of(place))


def _box(title: str, takes: Sequence[str], gives: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of one box; a format that does not fit beside its row goes under it."""
    room = _WIDTH - 4
    rows = [part for row in takes for part in _folded(row, room)]
    for left, right in gives:
        if len(left) + 2 + len(right) <= room:
            rows.append(f"{left}{right:>{room - len(left)}}")
        else:
            rows += [*_folded(left, room), f"{_cut(right, room):>{room}}"]
    head = f"┌─ {_cut(title, room - 1)} "
    lines = [f"{head:─<{_WIDTH - 1}}┐"]
    lines += [f"│ {row:<{room}} │" for row in rows]
    return [*lines, "└" + "─" * (_WIDTH - 2) + "┘"]


def _folded(text: str, room: int) -> list[str]:
    """A row broken at its blanks, every part at most ``room`` wide."""
    lines, line = [], ""
    for word in (_cut(word, room - 3) for word in text.split(" ")):
        if line and len(line) + 1 + len(word) > room:
            lines.append(line)
            line = "  "
        line = f"{line} {word}" if line else word
    return [*lines, line]


def _cut(text: str, room: int) -> str:
    """A text that does not fit loses its end to an ellipsis."""
    return text if len(text) <= room else f"{text[: room - 1]}…"


@dataclass(slots=True)
class _Card:
    """One box of the SVG."""

    name: str
    kind: str
    takes: Sequence[str]
    gives: Sequence[tuple[str, str]]
    column: int
    x: float = 0.0
    y: float = 0.0

    @property
    def height(self) -> float:
        return _HEAD + _PORT * max(1, len(self.takes), len(self.gives))

    def port_y(self, row: int) -> float:
        return self.y + _HEAD + _PORT * row + 12


def draw_svg(graph: Graph) -> str:
    """Draw a graph as an SVG that needs nothing else, from left to right."""
    cards = _cards(graph)
    width, bottom = _place(list(cards.values()))
    links, lowest = _links(graph, cards)
    height = max(bottom, lowest) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img" aria-labelledby="title">',
        f'<title id="title">moshi-pipe graph: {escape(graph.name)}</title>',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{width:g}" height="{height:g}"/>',
        f'<text class="title" x="{_MARGIN}" y="{_MARGIN + 8}">{escape(graph.name)}</text>',
        *links,
        *(_card(card) for card in cards.values()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _cards(graph: Graph) -> dict[str, _Card]:
    """Boxes by name: the input, the nodes, and the outputs in a last column."""
    ranks = {graph.input: 0}
    feeds: dict[str, list[str]] = defaultdict(list)
    for link in graph.links:
        feeds[_name(link.target)].append(_name(link.source))
    for name in _order(graph):
        ranks[name] = 1 + max((ranks[source] for source in feeds[name]), default=0)
    given = [(graph.input, str(graph.input_format))]
    cards = {graph.input: _Card(graph.input, "input", [], given, 0)}
    for name in _order(graph):
        ports = graph.ports[name]
        gives = [(port, str(form)) for port, form in ports.outputs.items()]
        cards[name] = _Card(name, graph.nodes[name], list(ports.inputs), gives, ranks[name])
    last = 1 + max(ranks.values())
    if graph.outputs:
        outputs = list(graph.outputs)
        cards["outputs "] = _Card("outputs", "to the sinks", outputs, [], last)
    return cards


def _place(cards: Sequence[_Card]) -> tuple[float, float]:
    """Give every box its place; return the right edge of the page and the bottom of the boxes."""
    columns: dict[int, list[_Card]] = defaultdict(list)
    for card in cards:
        columns[card.column].append(card)
    tall = max(sum(c.height + _ROW_GAP for c in column) - _ROW_GAP for column in columns.values())
    for number, column in columns.items():
        y = _MARGIN + _TITLE + (tall - sum(c.height + _ROW_GAP for c in column) + _ROW_GAP) / 2
        for card in column:
            card.x, card.y = _MARGIN + number * (_BOX_WIDTH + _COLUMN_GAP), y
            y += card.height + _ROW_GAP
    width = 2 * _MARGIN + (max(columns) + 1) * (_BOX_WIDTH + _COLUMN_GAP) - _COLUMN_GAP
    return width, tall + _TITLE + _MARGIN


def _links(graph: Graph, cards: Mapping[str, _Card]) -> tuple[list[str], float]:
    """Curves from ports to ports, each with its format for whoever points at it; the lowest point.

    A curve that skips columns goes below their boxes, each at a height of its own.
    """
    last = max(card.column for card in cards.values())
    between = [card for card in cards.values() if 0 < card.column < last]
    lane = max((card.y + card.height for card in between), default=0.0)
    ends = [(link.source, link.target) for link in graph.links]
    ends += [(place, f"outputs .{name}") for name, place in graph.outputs.items()]
    lines = []
    for source, target in ends:
        start, from_port = _card_and_port(cards, source)
        end, to_port = _card_and_port(cards, target)
        x1, y1 = start.x + _BOX_WIDTH, start.port_y([p for p, _ in start.gives].index(from_port))
        x2, y2 = end.x, end.port_y(list(end.takes).index(to_port))
        far = end.column - start.column > 1
        lane += _LANE * far
        tip = f"{source}: {graph.format_of(source)}"
        lines.append(_curve(x1, y1, x2, y2, lane if far else None, tip))
    return lines, lane


def _card_and_port(cards: Mapping[str, _Card], place: str) -> tuple[_Card, str]:
    name, _, port = place.partition(".")
    return cards[name], port or name


def _curve(x1: float, y1: float, x2: float, y2: float, under: float | None, tip: str) -> str:
    """One link; ``under`` is the height at which it passes below other boxes."""
    bend = _COLUMN_GAP / 2
    if under is None:
        path = f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
    else:
        path = (
            f"M{x1:g} {y1:g} C{x1 + bend:g} {y1:g} {x1 + bend / 2:g} {under:g} "
            f"{x1 + _COLUMN_GAP:g} {under:g} L{x2 - _COLUMN_GAP:g} {under:g} "
            f"C{x2 - bend / 2:g} {under:g} {x2 - bend:g} {y2:g} {x2:g} {y2:g}"
        )
    dots = "".join(
        f'<circle class="dot" cx="{x:g}" cy="{y:g}" r="3.5"/>' for x, y in ((x1, y1), (x2, y2))
    )
    return f'<g><title>{escape(tip)}</title><path class="link" d="{path}"/>{dots}</g>'


def _card(card: _Card) -> str:
    kind = "box" if card.takes and card.gives else "end"
    lines = [
        f'<rect class="{kind}" x="{card.x:g}" y="{card.y:g}" width="{_BOX_WIDTH}" '
        f'height="{card.height:g}" rx="8"/>',
        f'<text class="name" x="{card.x + 12:g}" y="{card.y + 22:g}">'
        f"{escape(_cut(card.name, _LETTERS))}</text>",
        f'<text class="small" x="{card.x + 12:g}" y="{card.y + 37:g}">'
        f"{escape(_cut(card.kind, _SMALL_LETTERS))}</text>",
    ]
    room = _LETTERS // 2 if card.takes and card.gives else _LETTERS
    for row, port in enumerate(card.takes):
        y = card.port_y(row) + 4
        lines.append(f'<text x="{card.x + 12:g}" y="{y:g}">{escape(_cut(port, room))}</text>')
    for row, (port, form) in enumerate(card.gives):
        x, y = card.x + _BOX_WIDTH - 12, card.port_y(row) + 4
        lines += [
            f'<text x="{x:g}" y="{y:g}" text-anchor="end">{escape(_cut(port, room))}</text>',
            f'<text class="small" x="{x:g}" y="{y + 14:g}" text-anchor="end">'
            f"{escape(_cut(_short(form), _SMALL_LETTERS))}</text>",
        ]
    return "\n".join(lines)


def _short(form: str) -> str:
    """A format without its first word, which the port's name says already."""
    return form.partition(" ")[2]
