"""What a graph's config may say, and what is said about one that is wrong."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import yaml

from moshi_pipe.config_files import choice_names, conf_dir
from moshi_pipe.errors import FormatError, GraphError
from moshi_pipe.graph.format import Audio, Codes, Text
from moshi_pipe.graph.graph import Ports, check_graph, kinds_needed, model_ports
from moshi_pipe.graph.schedule import make_schedule
from moshi_pipe.models.checkpoint import ModelConfig
from moshi_pipe.models.presets import find_preset, lm_config
from moshi_pipe.models.spec import LMSpec, MimiSpec

AUDIO = Audio(24_000, 1920)
CODES = Codes(8, 2048, Fraction(25, 2))
KINDS = {
    "codec.encode": Ports({"audio": AUDIO}, {"codes": CODES}),
    "codec.decode": Ports({"codes": CODES}, {"audio": AUDIO}),
    "narrow": Ports(
        {"codes": Codes(4, 2048, Fraction(25, 2))}, {"text": Text(10, Fraction(25, 2))}
    ),
}


def codec_graph() -> dict[str, Any]:
    return {
        "name": "mine",
        "nodes": {"encode": {"kind": "codec.encode"}, "decode": {"kind": "codec.decode"}},
        "inputs": ["user_audio"],
        "links": ["user_audio -> encode.audio", "encode.codes -> decode.codes"],
        "outputs": {"audio": "decode.audio"},
    }


def test_a_good_graph_knows_its_formats() -> None:
    graph = check_graph(codec_graph(), KINDS)

    assert graph.input == "user_audio"
    assert graph.input_format == AUDIO
    assert graph.output_formats == {"audio": AUDIO}
    assert [str(link) for link in graph.links] == codec_graph()["links"]


FITTING = [
    (name, kind)
    for name in choice_names("graph")
    for kind in ("moshi", "hibiki", "stt")
    if (name, kind) != ("dialogue", "stt")  # a model of speech to text does not speak
]


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_every_graph_in_conf_fits_every_kind_of_model_that_can(name: str, kind: str) -> None:
    config = yaml.safe_load((conf_dir() / "graph" / f"{name}.yaml").read_text())
    lm = ModelConfig.from_json(lm_config(find_preset("tiny"), kind)).lm
    assert lm is not None
    codec = MimiSpec().codec if "lm" not in kinds_needed(config) else fitting_codec(lm)
    graph = check_graph(config, model_ports(codec, lm))

    assert graph.outputs
    assert make_schedule(graph).order


def fitting_codec(lm: LMSpec) -> Any:
    from dataclasses import replace

    return replace(MimiSpec().codec, num_codebooks=lm.num_user, cardinality=lm.cardinality)


MISTAKES = {
    "unknown key": ({"link": []}, "graph 'mine': unknown key 'link'", "did you mean 'links'?"),
    "no nodes": ({"nodes": {}}, "it has no nodes", "nodes: {NAME: {kind: KIND}}"),
    "unknown kind": (
        {"nodes": {"encode": {"kind": "codec.encod"}}},
        "node 'encode' is of no known kind",
        "did you mean 'codec.encode'?",
    ),
    "no kind": ({"nodes": {"encode": {}}}, "node 'encode' is of no known kind", "no kind"),
    "two inputs": ({"inputs": ["a", "b"]}, "it needs exactly one input", "a, b"),
    "no input": ({"inputs": []}, "it needs exactly one input", "none"),
    "unreadable link": ({"links": ["encode.codes"]}, "a link cannot be read", "a.port -> b.port"),
    "starts nowhere": (
        {"links": ["user_audio -> encode.audio", "encode.code -> decode.codes"]},
        "link 'encode.code -> decode.codes' starts nowhere",
        "did you mean 'encode.codes'?",
    ),
    "ends nowhere": (
        {"links": ["user_audio -> encode.audio", "encode.codes -> decode.code"]},
        "link 'encode.codes -> decode.code' ends nowhere",
        "did you mean 'decode.codes'?",
    ),
    "not fed": (
        {"links": ["user_audio -> encode.audio"]},
        "nothing is linked to decode.codes",
        "a link '... -> decode.codes'",
    ),
    "fed twice": (
        {"links": [*codec_graph()["links"], "encode.codes -> decode.codes"]},
        "decode.codes is linked twice",
        "encode.codes and encode.codes",
    ),
    "cycle": (
        {"links": ["decode.audio -> encode.audio", "encode.codes -> decode.codes"]},
        "its links form a cycle",
        "encode -> decode -> encode",
    ),
    "unknown place": (
        {"outputs": {"audio": "decode.sound"}},
        "output 'audio' comes from nowhere",
        "did you mean 'decode.audio'?",
    ),
    "no outputs": ({"outputs": {}}, "it has no outputs", "outputs: {NAME: node.port}"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_what_was_wanted(mistake: str) -> None:
    change, what, detail = MISTAKES[mistake]

    with pytest.raises(GraphError) as caught:
        check_graph({**codec_graph(), **change}, KINDS)

    assert what in str(caught.value)
    assert detail in str(caught.value) or cycle_turned(detail) in str(caught.value)


def cycle_turned(path: str) -> str:
    """The same cycle told from its other node."""
    return "decode -> encode -> decode" if path.startswith("encode ->") else path


def test_two_formats_that_differ_are_named_with_both_ports_and_the_field() -> None:
    config = codec_graph()
    config["nodes"]["narrow"] = {"kind": "narrow"}
    config["links"].append("encode.codes -> narrow.codes")

    with pytest.raises(FormatError) as caught:
        check_graph(config, KINDS)

    for part in ("encode.codes", "narrow.codes", "num_codebooks", "8 codebooks", "4 codebooks"):
        assert part in str(caught.value)


def test_an_input_that_feeds_two_formats_is_refused() -> None:
    config = codec_graph()
    config["links"] = ["user_audio -> encode.audio", "user_audio -> decode.codes"]

    with pytest.raises(FormatError, match=r"user_audio .* decode\.codes"):
        check_graph(config, KINDS)


def test_several_mistakes_are_told_together() -> None:
    config = codec_graph() | {"links": ["a.b -> c.d", "user_audio -> encode.sound"]}

    with pytest.raises(GraphError) as caught:
        check_graph(config | {"outputs": {"x": "nowhere"}}, KINDS)

    shown = str(caught.value)
    assert "mistakes" in shown
    assert "a.b -> c.d" in shown
    assert "encode.sound" in shown
    assert "output 'x'" in shown


def test_the_order_does_not_depend_on_how_the_file_lists_nodes() -> None:
    config = codec_graph()
    turned = config | {
        "nodes": dict(reversed(config["nodes"].items())),
        "links": config["links"][::-1],
    }

    assert make_schedule(check_graph(config, KINDS)) == make_schedule(check_graph(turned, KINDS))
    assert make_schedule(check_graph(config, KINDS)).order == ("encode", "decode")


def test_nodes_that_no_wanted_output_needs_do_not_fire() -> None:
    config = codec_graph()
    config["outputs"]["codes"] = "encode.codes"
    graph = check_graph(config, KINDS)

    assert make_schedule(graph, ["codes"]).order == ("encode",)
    with pytest.raises(GraphError, match="did you mean 'codes'"):
        make_schedule(graph, ["code"])
