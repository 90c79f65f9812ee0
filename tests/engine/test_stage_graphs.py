"""Stages in the form that CUDA graphs need, with a stand-in for the graphs themselves.

``tests/gpu`` runs the same with real ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.ticks import Dialogue, come_and_go, make_models
from torch import Tensor

from moshi_pipe.nn import cuda_graph
from moshi_pipe.nn.cuda_graph import GraphedCall

CPU = torch.device("cpu")


class StandIn:
    """Computes what a graph would, from and into the same memory every time."""

    def __init__(self, call: GraphedCall, like: tuple[Tensor | None, ...]) -> None:
        self.function = call._function
        self.inputs = tuple(
            None if t is None else torch.zeros(t.shape, dtype=t.dtype) for t in like
        )
        self.outputs = tuple(t.clone() for t in self.function(*self.inputs))
        self.graph = self

    def replay(self) -> None:
        for held, made in zip(self.outputs, self.function(*self.inputs), strict=True):
            held.copy_(made)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GraphedCall, "_capture", lambda call, like: StandIn(call, like))


def graphed(dialogue: Dialogue) -> Dialogue:
    """Have the stages replay on a CPU, where only a stand-in can."""
    for stage in dialogue.stages.values():
        stage._call.enabled = True
    return dialogue


def test_replayed_stages_give_what_called_ones_give(stand_in: None) -> None:
    models = make_models()
    called, replayed = Dialogue(*models), graphed(Dialogue(*models))
    called.open()
    replayed.open()
    num_graphs = replayed.num_graphs
    wanted, got = come_and_go(called), come_and_go(replayed)
    assert replayed.num_graphs == num_graphs == 3 * 3  # stages, and ticks of 1, 4 and 8 rows
    assert called.num_graphs == 0
    assert got.text == wanted.text
    assert got.codes == wanted.codes
    assert wanted.audio.keys() == got.audio.keys()
    assert len(wanted.audio) == 6
    for name, frames in wanted.audio.items():
        np.testing.assert_array_equal(got.audio[name], frames)


def test_a_shape_is_captured_once_and_none_is_a_shape(stand_in: None) -> None:
    calls = []

    def double(x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        calls.append(y is None)
        return (2 * x if y is None else 2 * x + y,)

    call = GraphedCall(double, CPU, enabled=True)
    call.enabled = True
    assert not calls
    (made,) = call(torch.ones(3), None)
    assert made.tolist() == [2, 2, 2]
    (other,) = call(torch.ones(3), torch.ones(3))
    assert other.tolist() == [3, 3, 3]
    (again,) = call(torch.full((3,), 5.0), None)
    assert again is made  # the same memory
    assert again.tolist() == [10, 10, 10]
    assert call.num_graphs == 2
    call.clear()
    assert call.num_graphs == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_a_cpu_calls_the_function(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("captured")

    monkeypatch.setattr(cuda_graph.GraphedCall, "_capture", refuse)
    given = torch.ones(2)
    call = GraphedCall(lambda x: (x,), CPU, enabled=enabled)
    call.prepare(given)
    assert call(given)[0] is given
