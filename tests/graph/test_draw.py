"""Graphs as pictures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from fractions import Fraction
from typing import Any

import pytest
import yaml

from moshi_pipe.config_files import choice_names, conf_dir
from moshi_pipe.graph.draw import draw_svg, draw_text
from moshi_pipe.graph.format import Audio, Text
from moshi_pipe.graph.graph import Graph, Ports, check_graph, model_ports
from moshi_pipe.models.spec import MOSHI_7B_CONFIG, LMSpec, MimiSpec
from moshi_pipe.remote.assembly import remote_graph

NAMES = choice_names("graph")
SVG = "{http://www.w3.org/2000/svg}"


def graph(name: str) -> Graph:
    config: dict[str, Any] = yaml.safe_load((conf_dir() / "graph" / f"{name}.yaml").read_text())
    if name == "remote":
        return remote_graph(config, "any")
    lm = LMSpec.from_config(MOSHI_7B_CONFIG)
    ports = Ports({"audio": Audio(24_000, 1920)}, {"text": Text(8000, Fraction(25, 2))})
    listener = {"stt": ports}
    return check_graph(config, {**model_ports(MimiSpec().codec, lm), **listener}, listener)


def side_chain(long: str) -> Graph:
    """Feeds an output by one node of a long name, and a meter, behind two more nodes, nothing."""
    audio = Audio(24_000, 1920)
    through = Ports({"in": audio}, {"out": audio})
    config = {
        "name": long,
        "nodes": {
            long: {"kind": "through"},
            "z": {"kind": "through"},
            "a": {"kind": "through"},
            "meter": {"kind": "meter"},
        },
        "inputs": ["heard"],
        "links": [
            f"heard -> {long}.in",
            f"{long}.out -> z.in",
            "z.out -> a.in",
            "a.out -> meter.one",
            f"{long}.out -> meter.two",
            "heard -> meter.three",
        ],
        "outputs": {"audio": f"{long}.out"},
    }
    meter = Ports({"one": audio, "two": audio, "three": audio}, {})
    return check_graph(config, {"through": through, "meter": meter})


@pytest.mark.parametrize("name", NAMES)
def test_the_terminal_shows_every_node_link_output_and_format(name: str) -> None:
    drawn = graph(name)

    text = draw_text(drawn)

    assert max(map(len, text.splitlines())) <= 80
    for node, kind in drawn.nodes.items():
        assert f"┌─ {node}: {kind} " in text
    for link in drawn.links:
        assert f"{link.target.partition('.')[2]} ◀─ {link.source}" in text
        assert link.target in text
    for output in drawn.outputs:
        assert f"[{output}]" in text
    assert str(drawn.input_format) in text


def test_the_terminal_shows_a_graph_whole() -> None:
    assert draw_text(graph("encode")) == "\n".join(
        [
            "encode",
            "",
            "┌─ user_audio ───────────────────────────────────────────────────────────────┐",
            "│ user_audio ─▶ encode.audio, [user_audio]                                   │",
            "│                                 audio 24000 Hz, 1 ch, 1920 samples a frame │",
            "└────────────────────────────────────────────────────────────────────────────┘",
            "   │",
            "   ▼",
            "┌─ encode: codec.encode ─────────────────────────────────────────────────────┐",
            "│ audio ◀─ user_audio                                                        │",
            "│ codes ─▶ [codes]                       codes, 8 codebooks of 2048, 12.5 Hz │",
            "└────────────────────────────────────────────────────────────────────────────┘",
            "",
            "[name]: an output, for sinks",
        ]
    )


@pytest.mark.parametrize("length", [1, 40, 70, 71, 72, 73, 74, 75, 200])
def test_long_names_stay_within_the_terminal(length: int) -> None:
    lines = draw_text(side_chain("n" * length)).splitlines()

    assert max(map(len, lines)) <= 80
    assert {len(line) for line in lines if line.startswith(("┌", "└", "│ "))} == {78}


def test_nodes_that_feed_no_output_are_shown_behind_what_feeds_them() -> None:
    drawn = side_chain("gain")

    heads = [line.split()[1] for line in draw_text(drawn).splitlines() if line.startswith("┌")]
    svg = draw_svg(drawn)

    assert heads == ["heard", "gain:", "z:", "a:", "meter:"]
    columns = {name: float(x) for x, name in re.findall(r'class="name" x="(\d+)"[^>]*>(\w+)', svg)}
    assert columns["gain"] < columns["z"] < columns["a"] < columns["meter"] < columns["outputs"]


def test_links_that_skip_columns_pass_below_every_box_between() -> None:
    page = ET.fromstring(draw_svg(side_chain("gain")))

    boxes = [box for box in page.iter(f"{SVG}rect") if box.get("class") in ("box", "end")]
    bottom = max(float(b.attrib["y"]) + float(b.attrib["height"]) for b in boxes)
    flat = [float(y) for y in re.findall(r"L\S+ (\S+)", draw_svg(side_chain("gain")))]
    assert len(flat) == 3
    assert len(set(flat)) == 3
    assert min(flat) > bottom


@pytest.mark.parametrize("name", [*NAMES, "side chain"])
def test_the_picture_stands_alone_and_keeps_within_its_edges(name: str) -> None:
    drawn = side_chain("n" * 60) if name == "side chain" else graph(name)

    svg = draw_svg(drawn)

    page = ET.fromstring(svg)
    width, height = (float(page.attrib[key]) for key in ("width", "height"))
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    for box in page.iter(f"{SVG}rect"):
        assert 0 <= float(box.get("x", 0)) <= width - float(box.attrib["width"])
        assert 0 <= float(box.get("y", 0)) <= height - float(box.attrib["height"])
    for path in page.iter(f"{SVG}path"):
        points = [float(n) for n in re.findall(r"[-\d.]+", path.attrib["d"])]
        assert all(0 <= x <= width for x in points[::2])
        assert all(0 <= y <= height for y in points[1::2])
    links = len(drawn.links) + len(drawn.outputs)
    assert len(list(page.iter(f"{SVG}path"))) == links
    assert drawn.name in "".join(page.find(f"{SVG}title").itertext())  # type: ignore[union-attr]


def test_names_that_mean_something_in_xml_are_escaped() -> None:
    config = {
        "name": "a<b & c",
        "nodes": {"encode": {"kind": "codec.encode"}},
        "inputs": ["user_audio"],
        "links": ["user_audio -> encode.audio"],
        "outputs": {"codes": "encode.codes"},
    }

    svg = draw_svg(check_graph(config, model_ports(MimiSpec().codec, None)))

    assert "a&lt;b &amp; c" in svg
    ET.fromstring(svg)


def test_the_picture_has_a_title_for_those_who_hear_it_and_colours_for_the_dark() -> None:
    svg = draw_svg(graph("dialogue"))

    page = ET.fromstring(svg)
    title = page.find(f"{SVG}title")
    assert page.attrib["role"] == "img"
    assert title is not None
    assert title.attrib["id"] == page.attrib["aria-labelledby"]
    assert title.text == "moshi-pipe graph: dialogue"
    assert "@media (prefers-color-scheme: dark)" in svg
    tips = [tip.text for tip in page.iter(f"{SVG}title")]
    assert "lm.codes: codes, 8 codebooks of 2048, 12.5 Hz" in tips
