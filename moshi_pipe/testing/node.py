"""Whether a batched node keeps the promises of :class:`moshi_pipe.graph.node.BatchedNode`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.graph.format import Audio, Codes, Format, Text
from moshi_pipe.graph.node import BatchedNode, SessionSettings, Tick, Value
from moshi_pipe.models.spec import CodecSpec
from moshi_pipe.testing.conformance import Output, Play, check_slots, require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MIMI_SPEC = CodecSpec(sample_rate=24_000, frame_size=1_920, num_codebooks=8, cardinality=2_048)
"""The released codec: what a node is fitted to unless told otherwise."""


def check_node(
    make: Callable[[], BatchedNode],
    *,
    codec: CodecSpec = MIMI_SPEC,
    device: str = "cpu",
    settings: SessionSettings | None = None,
    num_slots: int = 8,
    frames: int = 6,
    tolerance: float = 0.0,
) -> None:
    """Check a batched node: ports, shapes and types, slots, masks, joins and a second opening.

    Args:
        make: Constructs the node; called many times, as lightly as a graph is checked.
        codec: What the node is fitted to.
        device: Where its inputs are.
        settings: Of its sessions.
        num_slots: Slots that are tried; 4 or a multiple.
        frames: Frames per session.
        tolerance: Largest difference of floats between runs that should be equal.

    Raises:
        ConformanceError: A promise is broken.
    """
    subject = _Node(make, codec, device, settings or SessionSettings())
    _check_ports(subject)
    _check_forms(subject, num_slots)
    check_slots(subject, num_slots=num_slots, frames=frames, tolerance=tolerance)
    node = subject.new(1)
    node.leave(0)
    node.close()


class _Node:
    name = "step"

    def __init__(
        self,
        make: Callable[[], BatchedNode],
        codec: CodecSpec,
        device: str,
        settings: SessionSettings,
    ) -> None:
        self._make = make
        self._codec = codec
        self._device = device
        self._settings = settings

    def make(self) -> BatchedNode:
        node = self._make()
        require(isinstance(node, BatchedNode), "it is no BatchedNode", got=type(node).__mro__)
        node.fit(self._codec)
        return node

    def new(self, num_slots: int) -> BatchedNode:
        """A node is its own state: open one, and begin a session in every slot."""
        node = self.make()
        node.open(num_slots)
        self.reset(node, range(num_slots))
        return node

    def reset(self, state: BatchedNode, slots: Sequence[int]) -> None:
        for slot in slots:
            state.leave(slot)
            state.join(slot, self._settings)

    def step(self, state: BatchedNode, plays: Sequence[Play | None]) -> list[Output | None]:
        inputs, tick = self.inputs(state, plays)
        made = state.step(inputs, tick)
        rows: list[Output | None] = []
        for i, play in enumerate(plays):
            given = {
                port: value.tensor[i].detach().cpu().numpy().copy()
                for port, value in made.items()
                if value.valid[i]
            }
            rows.append(None if play is None else given)
        return rows

    def inputs(
        self, node: BatchedNode, plays: Sequence[Play | None]
    ) -> tuple[dict[str, Value], Tick]:
        valid = np.array([play is not None for play in plays])
        inputs = {}
        for number, (port, form) in enumerate(sorted(node.inputs.items())):
            rows = [_garbage(form) if p is None else _frame(form, p, number) for p in plays]
            tensor = torch.from_numpy(np.stack(rows)).to(self._device)
            inputs[port] = Value(tensor, valid.copy())
        return inputs, Tick(len(plays), valid.copy(), np.zeros(len(plays), dtype=bool))


def _check_ports(subject: _Node) -> None:
    node = subject.make()
    for side in ("inputs", "outputs"):
        ports: Mapping[str, Any] = getattr(node, side, {})
        require(ports, f"the node has no {side}", wanted="a port: set on the class, or by fit")
        for port, form in ports.items():
            require(
                isinstance(form, Format),
                f"port '{port}' has no format",
                got=form,
                wanted="Audio, Codes or Text of moshi_pipe.graph.format",
            )


def _check_forms(subject: _Node, num_slots: int) -> None:
    node = subject.new(num_slots)
    plays: list[Play | None] = [None if i == 1 else Play(i, 0) for i in range(num_slots)]
    inputs, tick = subject.inputs(node, plays)
    kept = {port: value.tensor.clone() for port, value in inputs.items()}
    made = node.step(inputs, tick)
    for port, value in inputs.items():
        same = torch.equal(value.tensor.nan_to_num(), kept[port].nan_to_num())
        require(same, f"step changes what it was given at port '{port}'")
    require(
        set(made) == set(node.outputs),
        "step gives other ports than it declares",
        got=", ".join(made),
        wanted=", ".join(node.outputs),
    )
    for port, form in node.outputs.items():
        value = made[port]
        shape = (num_slots, *form.shape)
        what = f"output '{port}'"
        require(isinstance(value, Value), f"{what} is no Value", got=type(value))
        dtype = str(value.tensor.dtype).removeprefix("torch.")
        require(dtype == form.dtype, f"{what}: wrong type", got=dtype, wanted=form.dtype)
        require(
            tuple(value.tensor.shape) == shape,
            f"{what}: wrong shape",
            got=list(value.tensor.shape),
            wanted=str(list(shape)),
        )
        valid = value.valid
        require(
            isinstance(valid, np.ndarray) and valid.dtype == bool and valid.shape == (num_slots,),
            f"{what}: valid is no numpy bool [n]",
            got=repr(valid),
        )
        require(not valid[1], f"{what} is valid in a slot that has no input")


def _frame(form: Format, play: Play, port: int) -> Any:
    """One frame of a recording in a port's format."""
    generator = np.random.default_rng([play.stream, play.frame, port])
    if isinstance(form, Audio):
        return generator.uniform(-0.8, 0.8, form.shape).astype(np.float32)
    return generator.integers(0, form.cardinality, form.shape)


def _garbage(form: Format) -> Any:
    """What a row that is not valid may hold."""
    if isinstance(form, Audio):
        return np.full(form.shape, np.nan, dtype=np.float32)
    assert isinstance(form, Codes | Text), form
    return np.full(form.shape, -2, dtype=np.int64)
