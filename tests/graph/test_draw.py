"""Graphs as pictures."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
import yaml

from moshi_pipe.config_files import conf_dir
from moshi_pipe.graph.draw import draw_svg, draw_text
from moshi_pipe.graph.graph import Graph, check_graph, model_ports
from moshi_pipe.models.spec import MOSHI_7B_CONFIG, LMSpec, MimiSpec

NAMES = ["codec", "decode", "dialogue", "encode", "transcribe"]
SVG = "{http://www.w3.org/2000/svg}"


def graph(name: str) -> Graph:
    config: dict[str, Any] = yaml.safe_load((conf_dir() / "graph" / f"{name}.yaml").read_text())
    lm = LMSpec.from_config(MOSHI_7B_CONFIG)
    return check_graph(config, model_ports(MimiSpec().codec, lm))


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


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_stands_alone_and_keeps_within_its_edges(name: str) -> None:
    drawn = graph(name)

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
