"""Copies between host and device that nobody waits for before their numbers are needed.

On a CPU nothing is copied. On CUDA a copy goes through pinned memory; torch's allocator of it keeps
a block until the copy is through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Give an array to a device.

    Args:
        array: On a CPU the tensor shares its memory; elsewhere it may be overwritten at once.
        device: Where to.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_rows(slots: Sequence[int], device: torch.device) -> Tensor:
    """Give indices of slots to a device, int64."""
    return to_device(np.array(slots, dtype=np.int64), device)


class HostCopy:
    """A tensor on its way to the host.

    Args:
        tensor: On CUDA it may be overwritten by what is queued after this; elsewhere not before
            :meth:`numpy`.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            held.copy_(self._tensor, non_blocking=True)
            self._tensor = held
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def numpy(self) -> npt.NDArray[Any]:
        """The numbers; waits until they have come."""
        if self._arrived is not None:
            self._arrived.synchronize()
        array: npt.NDArray[Any] = self._tensor.cpu().numpy()
        return array
