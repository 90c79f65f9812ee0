"""The order of firing: a property of the graph, not of how its file lists it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_pipe.errors import GraphError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.graph import Graph, Ports, check_graph
from moshi_pipe.graph.schedule import Schedule, make_schedule

AUDIO = Audio(24_000, 1920)
KINDS = {
    "one": Ports({"a": AUDIO}, {"out": AUDIO}),
    "two": Ports({"a": AUDIO, "b": AUDIO}, {"out": AUDIO}),
}

# heard -> first -> left --> both -> [whole]
#            |  -> right --^   |
#            |                 -> after -> [last]
#            -> [early]
DIAMOND: dict[str, Any] = {
    "name": "diamond",
    "nodes": {
        "both": {"kind": "two"},
        "after": {"kind": "one"},
        "first": {"kind": "one"},
        "right": {"kind": "one"},
        "left": {"kind": "one"},
    },
    "inputs": ["heard"],
    "links": [
        "left.out -> both.a",
        "right.out -> both.b",
        "both.out -> after.a",
        "first.out -> left.a",
        "first.out -> right.a",
        "heard -> first.a",
    ],
    "outputs": {
        "last": "after.out",
        "whole": "both.out",
        "early": "first.out",
        "heard": "heard",
    },
}


def diamond() -> Graph:
    return check_graph(DIAMOND, KINDS)


def test_a_node_fires_after_everything_that_feeds_it() -> None:
    schedule = make_schedule(diamond())

    assert schedule == Schedule(
        input="heard",
        order=("first", "left", "right", "both", "after"),
        inputs={
            "first": {"a": "heard"},
            "left": {"a": "first.out"},
            "right": {"a": "first.out"},
            "both": {"a": "left.out", "b": "right.out"},
            "after": {"a": "both.out"},
        },
        outputs=DIAMOND["outputs"],
    )


@given(
    st.permutations(list(DIAMOND["nodes"].items())),
    st.permutations(DIAMOND["links"]),
    st.permutations(list(DIAMOND["outputs"].items())),
)
def test_how_the_file_lists_things_changes_nothing(
    nodes: list[Any], links: list[str], outputs: list[Any]
) -> None:
    config = DIAMOND | {"nodes": dict(nodes), "links": links, "outputs": dict(outputs)}

    assert make_schedule(check_graph(config, KINDS)) == make_schedule(diamond())


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (["early"], ("first",)),
        (["whole"], ("first", "left", "right", "both")),
        (["early", "last"], ("first", "left", "right", "both", "after")),
        (["heard"], ()),
        ([], ()),
    ],
    ids=str,
)
def test_nodes_that_no_wanted_output_needs_are_left_out(
    wanted: list[str], order: tuple[str, ...]
) -> None:
    schedule = make_schedule(diamond(), wanted)

    assert schedule.order == order
    assert set(schedule.inputs) == set(order)
    assert set(schedule.outputs) == set(wanted)


def test_an_output_wanted_twice_is_made_once() -> None:
    assert make_schedule(diamond(), ["early", "early"]) == make_schedule(diamond(), ["early"])


def test_an_output_that_the_graph_does_not_have_is_refused() -> None:
    with pytest.raises(GraphError) as caught:
        make_schedule(diamond(), ["hole"])

    assert str(caught.value) == (
        "graph 'diamond' makes no output 'hole'\n"
        "  wanted: did you mean 'whole'? (there are: early, heard, last, whole)"
    )
