"""What a graph's config may say, and what is said about one that is wrong."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

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
    "sink": Ports({}, {}),
    "tone": Ports({}, {"audio": AUDIO}),
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
    if name != "remote"  # whose model is of no kind that is known here
    for kind in ("moshi", "hibiki", "stt")
    # A model of speech to text does not speak.
    if (name, kind) not in (("dialogue", "stt"), ("dialogue_stt", "stt"))
]


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_every_graph_in_conf_fits_every_kind_of_model_that_can(name: str, kind: str) -> None:
    config = yaml.safe_load((conf_dir() / "graph" / f"{name}.yaml").read_text())
    lm = ModelConfig.from_json(lm_config(find_preset("tiny"), kind)).lm
    assert lm is not None
    codec = MimiSpec().codec if "lm" not in kinds_needed(config) else fitting_codec(lm)
    listener = {"stt": Ports({"audio": AUDIO}, {"text": Text(8000, Fraction(25, 2))})}
    graph = check_graph(config, {**model_ports(codec, lm), **listener}, listener)

    assert graph.outputs
    assert make_schedule(graph).order


def fitting_codec(lm: LMSpec) -> Any:
    return replace(MimiSpec().codec, num_codebooks=lm.num_user, cardinality=lm.cardinality)


LINKS = codec_graph()["links"]
KIND_NAMES = "codec.decode, codec.encode, narrow, sink, tone"
NAMING = "letters, digits, '_' and '-'"

# What is changed in a good graph, and the whole message after "graph 'mine': ".
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"link": []},
        "unknown key 'link'\n"
        "  wanted: did you mean 'links'? (there are: inputs, links, name, nodes, outputs)",
    ),
    "no nodes": ({"nodes": {}}, "it has no nodes\n  wanted: nodes: {NAME: {kind: KIND}}"),
    "nodes in a list": (
        {"nodes": ["encode"]},
        "'nodes' is not a table\n  got:    ['encode']\n  wanted: nodes: {NAME: {kind: KIND}}",
    ),
    "a dot in a node's name": (
        {"nodes": codec_graph()["nodes"] | {"a.b": {"kind": "sink"}}},
        f"a node cannot be called 'a.b'\n  wanted: {NAMING}",
    ),
    "a node that is a text": (
        {"nodes": {"encode": "codec.encode"}},
        "node 'encode' is not a table\n  got:    codec.encode\n  wanted: {kind: KIND}",
    ),
    "unknown key of a node": (
        {"nodes": codec_graph()["nodes"] | {"encode": {"kind": "codec.encode", "kin": 1}}},
        "node 'encode' has an unknown key 'kin'\n"
        "  wanted: did you mean 'kind'? (there are: kind, options)",
    ),
    "unknown kind": (
        {"nodes": codec_graph()["nodes"] | {"encode": {"kind": "codec.encod"}}},
        "node 'encode' is of no known kind\n"
        "  got:    kind 'codec.encod'\n"
        f"  wanted: did you mean 'codec.encode'? (there are: {KIND_NAMES})",
    ),
    "no kind": (
        {"nodes": codec_graph()["nodes"] | {"encode": {}}},
        f"node 'encode' is of no known kind\n  got:    no kind\n  wanted: one of: {KIND_NAMES}",
    ),
    "two inputs": (
        {"inputs": ["a", "b"]},
        "it needs exactly one input\n  got:    a, b\n  wanted: inputs: [user_audio]",
    ),
    "no input": (
        {"inputs": []},
        "it needs exactly one input\n  got:    none\n  wanted: inputs: [user_audio]",
    ),
    "an input without its brackets": (
        {"inputs": "user_audio"},
        "'inputs' is not a list\n  got:    user_audio\n  wanted: inputs: [user_audio]",
    ),
    "a dot in the input's name": (
        {"inputs": ["user.audio"]},
        f"an input cannot be called 'user.audio'\n  wanted: {NAMING}",
    ),
    "an input called like a node": (
        {"inputs": ["encode"], "links": ["encode -> encode.audio", LINKS[1]]},
        "input 'encode' has the name of a node\n  wanted: a name of its own",
    ),
    "an input that feeds nothing": (
        {
            "nodes": {"tone": {"kind": "tone"}},
            "links": [],
            "outputs": {"audio": "tone.audio"},
        },
        "its input 'user_audio' feeds nothing\n  wanted: a link 'user_audio -> ...'",
    ),
    "a link that cannot be read": (
        {"links": [*LINKS, "encode.codes"]},
        "a link cannot be read\n  got:    encode.codes\n  wanted: a.port -> b.port",
    ),
    "a link to a node without its port": (
        {"links": [LINKS[0], "encode.codes -> decode"]},
        "a link cannot be read\n  got:    encode.codes -> decode\n  wanted: a.port -> b.port",
    ),
    "links in one text": (
        {"links": LINKS[0]},
        "'links' is not a list\n"
        "  got:    user_audio -> encode.audio\n"
        "  wanted: links: [a.port -> b.port]",
    ),
    "a link that starts nowhere": (
        {"links": [LINKS[0], "encode.code -> decode.codes"]},
        "link 'encode.code -> decode.codes' starts nowhere\n"
        "  got:    encode.code\n"
        "  wanted: did you mean 'encode.codes'? "
        "(there are: decode.audio, encode.codes, user_audio)",
    ),
    "a link that ends nowhere": (
        {"links": [LINKS[0], "encode.codes -> decode.code"]},
        "link 'encode.codes -> decode.code' ends nowhere\n"
        "  got:    decode.code\n"
        "  wanted: did you mean 'decode.codes'? (there are: decode.codes, encode.audio)",
    ),
    "a port that nothing feeds": (
        {"links": LINKS[:1]},
        "nothing is linked to decode.codes\n  wanted: a link '... -> decode.codes'",
    ),
    "a port that is fed twice": (
        {
            "nodes": codec_graph()["nodes"] | {"tone": {"kind": "tone"}},
            "links": [*LINKS, "tone.audio -> encode.audio"],
        },
        "encode.audio is linked twice\n  got:    user_audio and tone.audio\n  wanted: one link",
    ),
    "a link given twice": (
        {"links": [*LINKS, LINKS[1]]},
        "decode.codes is linked twice\n  got:    encode.codes and encode.codes\n  wanted: one link",
    ),
    "a cycle": (
        {
            "nodes": codec_graph()["nodes"] | {"again": {"kind": "codec.encode"}},
            "inputs": ["heard"],
            "links": ["decode.audio -> encode.audio", LINKS[1], "heard -> again.audio"],
        },
        "its links form a cycle\n"
        "  got:    encode -> decode -> encode\n"
        "  wanted: every link pointing onward",
    ),
    "an output from nowhere": (
        {"outputs": {"audio": "decode.sound"}},
        "output 'audio' comes from nowhere\n"
        "  got:    decode.sound\n"
        "  wanted: did you mean 'decode.audio'? "
        "(there are: decode.audio, encode.codes, user_audio)",
    ),
    "an output that cannot be a name": (
        {"outputs": {"my audio": "decode.audio"}},
        f"an output cannot be called 'my audio'\n  wanted: {NAMING}",
    ),
    "outputs in a list": (
        {"outputs": ["decode.audio"]},
        "'outputs' is not a table\n"
        "  got:    ['decode.audio']\n"
        "  wanted: outputs: {NAME: node.port}",
    ),
    "no outputs": (
        {"outputs": {}},
        "it has no outputs\n  wanted: outputs: {NAME: node.port}",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_what_was_got_and_wanted(mistake: str) -> None:
    change, message = MISTAKES[mistake]

    with pytest.raises(GraphError) as caught:
        check_graph(codec_graph() | change, KINDS)

    assert str(caught.value) == f"graph 'mine': {message}"


def test_two_formats_that_differ_are_named_with_both_ports_and_the_field() -> None:
    config = codec_graph()
    config["nodes"]["narrow"] = {"kind": "narrow"}
    config["links"].append("encode.codes -> narrow.codes")

    with pytest.raises(FormatError) as caught:
        check_graph(config, KINDS)

    assert str(caught.value) == (
        "cannot link encode.codes -> narrow.codes: they differ in num_codebooks\n"
        "  got:    encode.codes offers codes, 8 codebooks of 2048, 12.5 Hz\n"
        "  wanted: narrow.codes takes codes, 4 codebooks of 2048, 12.5 Hz"
    )
    assert caught.value.upstream == "encode.codes"
    assert caught.value.downstream == "narrow.codes"
    assert caught.value.fields == ("num_codebooks",)


def test_an_input_that_feeds_two_formats_is_refused() -> None:
    config = codec_graph()
    config["links"] = ["user_audio -> encode.audio", "user_audio -> decode.codes"]

    with pytest.raises(FormatError) as caught:
        check_graph(config, KINDS)

    assert str(caught.value) == (
        "cannot link user_audio -> decode.codes: they differ in kind\n"
        "  got:    user_audio offers audio 24000 Hz, 1 ch, 1920 samples a frame\n"
        "  wanted: decode.codes takes codes, 8 codebooks of 2048, 12.5 Hz"
    )


def test_several_mistakes_are_told_together() -> None:
    config = codec_graph() | {
        "links": ["a.b -> c.d", "user_audio -> encode.audio", "encode.codes -> decode.code"],
        "outputs": {"x": "nothing"},
    }

    with pytest.raises(GraphError) as caught:
        check_graph(config, KINDS)

    assert str(caught.value) == (
        "graph 'mine' has 3 mistakes\n"
        "- graph 'mine': link 'a.b -> c.d' starts nowhere\n"
        "  got:    a.b\n"
        "  wanted: one of: decode.audio, encode.codes, user_audio\n"
        "- graph 'mine': link 'encode.codes -> decode.code' ends nowhere\n"
        "  got:    decode.code\n"
        "  wanted: did you mean 'decode.codes'? (there are: decode.codes, encode.audio)\n"
        "- graph 'mine': output 'x' comes from nowhere\n"
        "  got:    nothing\n"
        "  wanted: one of: decode.audio, encode.codes, user_audio"
    )


def test_two_links_of_wrong_formats_are_both_told() -> None:
    config = codec_graph()
    config["nodes"] |= {"n": {"kind": "narrow"}, "m": {"kind": "narrow"}}
    config["links"] += ["encode.codes -> n.codes", "encode.codes -> m.codes"]

    with pytest.raises(GraphError, match="has 2 mistakes") as caught:
        check_graph(config, KINDS)

    assert "cannot link encode.codes -> n.codes" in str(caught.value)
    assert "cannot link encode.codes -> m.codes" in str(caught.value)


JUNK = st.recursive(
    st.none() | st.integers() | st.sampled_from(["encode", "a.b", "user_audio -> encode.audio"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "encode", "audio", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*codec_graph(), "other"]), JUNK, max_size=3))
def test_no_config_however_wrong_raises_anything_else(change: dict[str, Any]) -> None:
    config = codec_graph() | change

    kinds_needed(config)
    with contextlib.suppress(GraphError):
        make_schedule(check_graph(config, KINDS))


def test_kinds_are_known_before_the_graph_is_checked() -> None:
    assert kinds_needed(codec_graph()) == {"codec.encode", "codec.decode"}
    assert kinds_needed({"nodes": ["encode"]}) == set()
    assert kinds_needed({"nodes": {"encode": "codec.encode"}}) == set()


def test_only_nodes_whose_ports_follow_from_their_options_take_options() -> None:
    nodes = codec_graph()["nodes"] | {"encode": {"kind": "codec.encode", "options": {"gain": 1}}}

    with pytest.raises(GraphError, match="node 'encode' takes no options"):
        check_graph(codec_graph() | {"nodes": nodes}, KINDS)
