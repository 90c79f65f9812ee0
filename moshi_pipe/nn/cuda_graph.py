"""A function of tensors as CUDA graphs: captured once per shape of its inputs, then replayed.

A step of these models is thousands of small kernels; replaying a graph costs the host one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]
"""Tensors, or None, in; tensors out."""

_WARM_UP_CALLS = 2  # libraries choose kernels and make workspaces, which a capture may not


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]


class GraphedCall:
    """Calls a function by replaying a graph of it, on CUDA; elsewhere it calls the function.

    What the function remembers must stay at its address: joins, leaves and resets work in place,
    and need no new graph. Who takes part in a call is an input.

    Args:
        function: Stays on its device. With inputs that are all zero it must change nothing that
            matters (nobody takes part): so it is warmed up and captured.
        device: Where it runs.
        enabled: False calls the function on CUDA as well.
    """

    def __init__(self, function: Function, device: torch.device, *, enabled: bool) -> None:
        self._function = function
        self._device = device
        self.enabled = enabled and device.type == "cuda"
        self._captured: dict[tuple[torch.Size | None, ...], _Captured] = {}
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._captured)

    @torch.inference_mode()
    def prepare(self, *inputs: Tensor | None) -> None:
        """Capture a graph for inputs of these shapes; their numbers do not matter.

        Shapes that come largest first share more memory.
        """
        if self.enabled and _shapes(inputs) not in self._captured:
            self._captured[_shapes(inputs)] = self._capture(inputs)

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Call the function.

        Args:
            inputs: On the device, or in pinned memory of the host where a graph is replayed.

        Returns:
            What the function returns; valid until the next call, whatever its shapes.
        """
        if not self.enabled:
            return self._function(*inputs)
        self.prepare(*inputs)
        captured = self._captured[_shapes(inputs)]
        with torch.inference_mode():
            for held, given in zip(captured.inputs, inputs, strict=True):
                if held is not None and given is not None:
                    held.copy_(given, non_blocking=True)
            captured.graph.replay()
        return captured.outputs

    def clear(self) -> None:
        """Let go of the graphs, before what they work on is freed."""
        self._captured.clear()

    def _capture(self, like: tuple[Tensor | None, ...]) -> _Captured:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
            self._pool = torch.cuda.graph_pool_handle()
        inputs = tuple(
            None if t is None else torch.zeros(t.shape, dtype=t.dtype, device=self._device)
            for t in like
        )
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_CALLS):
                self._function(*inputs)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread of the process may use the device meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            outputs = self._function(*inputs)
        return _Captured(graph, inputs, outputs)


def _shapes(inputs: tuple[Tensor | None, ...]) -> tuple[torch.Size | None, ...]:
    return tuple(None if tensor is None else tensor.shape for tensor in inputs)
