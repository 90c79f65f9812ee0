"""The nodes of a schedule, opened: what happens to all of them at once.

Belongs to the engine's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moshi_pipe.engine.node_timer import make_timer
from moshi_pipe.graph.node import BatchedNode, Tick, Value
from moshi_pipe.nn.transfer import HostCopy

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from moshi_pipe.engine.clock import Clock
    from moshi_pipe.graph.schedule import Schedule

    Outputs = Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]
    """Rows on the host and which of them hold something, by the graph's outputs."""


class ScheduledNodes:
    """Fires nodes in order, and passes on what becomes of sessions.

    Args:
        schedule: Order of firing and wiring.
        device: Where the graph's input goes.
        clock: Source of time.
    """

    def __init__(self, schedule: Schedule, *, device: str, clock: Clock) -> None:
        self._schedule = schedule
        self._device = torch.device(device)
        self._timer = make_timer(clock, self._device)
        self._nodes: Mapping[str, BatchedNode] = {}

    def open(self, nodes: Mapping[str, BatchedNode], num_slots: int) -> None:
        """Make state for so many slots, and warm up."""
        self._nodes = nodes
        for name in self._schedule.order:
            nodes[name].open(num_slots)

    def close(self) -> None:
        """Free it."""
        for node in self._nodes.values():
            node.close()
        self._nodes = {}

    def join(self, slot: int, settings: Any) -> None:
        """Begin a session, whatever the slot held.

        Raises:
            MoshiPipeError: A node cannot do what the settings ask for.
        """
        for name in self._schedule.order:
            self._nodes[name].join(slot, settings)

    def leave(self, slot: int) -> None:
        """End a session."""
        for name in self._schedule.order:
            self._nodes[name].leave(slot)

    @property
    def can_snapshot(self) -> bool:
        """Whether all can keep a session without a slot."""
        return bool(self._nodes) and all(
            self._nodes[name].can_snapshot for name in self._schedule.order
        )

    def snapshot(self, slot: int) -> dict[str, Any]:
        """Copy what is remembered of a session to the host, by node.

        Raises:
            MoshiPipeError: A node cannot.
        """
        return {name: self._nodes[name].snapshot(slot) for name in self._schedule.order}

    def restore(self, slot: int, snapshot: Mapping[str, Any], settings: Any) -> None:
        """Go on with a session, whatever the slot held.

        Raises:
            MoshiPipeError: A node cannot.
        """
        for name in self._schedule.order:
            self._nodes[name].restore(slot, snapshot[name], settings)

    def step(
        self, tick: Tick, frames: torch.Tensor, fed: npt.NDArray[np.bool_]
    ) -> tuple[Outputs, list[tuple[int, int]]]:
        """Fire all once.

        Args:
            tick: Rows and who advances.
            frames: Of the graph's input, on the host; a row per row of the tick.
            fed: Which rows hold a frame.

        Returns:
            The graph's outputs on the host, and begin and end of each node.
        """
        if self._device.type != "cpu":
            frames = frames.to(self._device, non_blocking=True)
        values = {self._schedule.input: Value(frames, fed)}
        marks = []
        for name in self._schedule.order:
            begin = self._timer.mark()
            links = self._schedule.inputs[name]
            made = self._nodes[name].step({port: values[at] for port, at in links.items()}, tick)
            values.update({f"{name}.{port}": value for port, value in made.items()})
            marks.append((begin, self._timer.mark()))
        copies = {
            name: (HostCopy(values[place].tensor), values[place].valid)
            for name, place in self._schedule.outputs.items()
        }
        outputs = {name: (copy.numpy(), valid) for name, (copy, valid) in copies.items()}
        return outputs, self._timer.spans(marks)

    def broken(self) -> dict[int, str]:
        """Slots whose numbers are not finite, with the node that made them."""
        return {
            slot: name
            for name in reversed(self._schedule.order)
            for slot in self._nodes[name].failed()
        }


def held_bytes(snapshot: Any) -> int:
    """Bytes of the tensors and arrays in nested containers."""
    if isinstance(snapshot, torch.Tensor):
        return snapshot.nelement() * snapshot.element_size()
    if isinstance(snapshot, np.ndarray | np.generic):
        return snapshot.nbytes
    if isinstance(snapshot, dict):
        return sum(held_bytes(one) for one in snapshot.values())
    if isinstance(snapshot, list | tuple):
        return sum(held_bytes(one) for one in snapshot)
    return 0
