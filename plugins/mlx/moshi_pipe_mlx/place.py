"""Where and in which types models run, and the border between torch and MLX.

MLX has one device per process, streams per thread and a graph that is computed when it is asked
for. What crosses a call of this package is therefore always evaluated: arrays that are evaluated
may be used from any thread, others may not.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np
import torch

from moshi_pipe.errors import BackendError, ConfigError, closest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from moshi_pipe.hooks import BackendOptions

DTYPES: Final = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
DEVICES: Final = ("auto", "cpu", "gpu")


@dataclass(frozen=True, slots=True)
class Place:
    """Device and types of one model.

    Attributes:
        device: MLX's CPU or GPU.
        dtype: Of activations, and of weights that are not quantized.
        kv_dtype: Of stored keys and values.
        owner_pid: Process that opened the model.
    """

    device: mx.Device
    dtype: mx.Dtype = mx.float32
    kv_dtype: mx.Dtype = mx.float32
    owner_pid: int = field(default_factory=os.getpid)

    @property
    def in_major(self) -> bool:
        """Whether matrices are stored ``[in, out]``: in float32 on a CPU.

        MLX's CPU library multiplies a row by such a matrix 1.4 to 2.4 times as fast as by the
        released ``[out, in]``; bfloat16 is 1.2 times as slow (mlx-cpu 0.32.4, x86-64).
        """
        return bool(self.device == mx.Device(mx.cpu)) and self.dtype == mx.float32

    def enter(self) -> AbstractContextManager[Any]:
        """Run what follows on this place's device.

        Raises:
            BackendError: This process was forked from the one that opened the model: MLX would
                hang.
        """
        if os.getpid() != self.owner_pid:
            raise BackendError(
                "MLX cannot be used in a forked process",
                got=f"a model of process {self.owner_pid} in process {os.getpid()}",
                fix="start processes with multiprocessing's 'spawn', and open the model in them",
            )
        return mx.stream(self.device)


def choose_place(options: BackendOptions) -> Place:
    """Turn options into a place that is there.

    ``device=auto`` takes Metal (or another GPU that this MLX was built for), else the CPU;
    ``dtype=auto`` is bfloat16 on a GPU and float32 on a CPU, which computes bfloat16 slowly.

    Raises:
        ConfigError: A device or type that MLX does not have.
        BackendError: The device is not there.
    """
    device = _choose_device(options.device)
    fallback = "float32" if device == mx.Device(mx.cpu) else "bfloat16"
    dtype = _choose_dtype("dtype", fallback if options.dtype == "auto" else options.dtype)
    kv_dtype = dtype
    if options.kv_dtype not in (None, "auto"):
        kv_dtype = _choose_dtype("kv_dtype", options.kv_dtype)
    return Place(device, dtype, kv_dtype)


def to_mx(tensor: torch.Tensor) -> mx.array:
    """Copy a tensor into MLX: int64 becomes int32, other types stay."""
    array = tensor.detach().cpu().numpy()
    return mx.array(array.astype(np.int32) if array.dtype == np.int64 else array)


def to_torch(array: mx.array) -> torch.Tensor:
    """Copy an evaluated array into torch: integers become int64, floats float32."""
    if array.dtype == mx.bool_:
        return torch.from_numpy(np.array(array))
    if mx.issubdtype(array.dtype, mx.floating):
        return torch.from_numpy(np.array(array.astype(mx.float32)))
    return torch.from_numpy(np.array(array).astype(np.int64))


def dtype_name(dtype: mx.Dtype) -> str:
    """``float32`` for ``mlx.core.float32``."""
    return str(dtype).rpartition(".")[2]


def _choose_device(name: str) -> mx.Device:
    if name not in DEVICES:
        raise ConfigError(
            f"backend mlx has no device '{name}'",
            wanted=closest(name, DEVICES),
            fix="set device=auto, or backend=torch",
        )
    has_gpu = bool(mx.is_available(mx.gpu))
    if name == "gpu" and not has_gpu:
        raise BackendError(
            "device gpu is not there",
            got=f"mlx {version('mlx')} sees only the CPU",
            wanted="a Mac with Apple silicon, or an MLX built for this GPU",
            fix="set device=cpu, or device=auto to take what is there",
        )
    return mx.Device(mx.cpu) if name == "cpu" or not has_gpu else mx.Device(mx.gpu)


def _choose_dtype(key: str, name: str | None) -> mx.Dtype:
    if name not in DTYPES:
        raise ConfigError(
            f"backend mlx has no {key} '{name}'", wanted=closest(str(name), ["auto", *DTYPES])
        )
    return DTYPES[name]
