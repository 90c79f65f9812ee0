"""The PyTorch backend: choosing a device and a type, and opening models on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from moshi_pipe.errors import BackendError, CheckpointError, ConfigError, closest
from moshi_pipe.nn.load import load_lm, load_mimi
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi
from moshi_pipe.units import format_count

if TYPE_CHECKING:
    from collections.abc import Callable

    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Quantizer
    from moshi_pipe.models.spec import LMSpec

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How the models run.

    Attributes:
        device: Where.
        dtype: Of the language model's weights; the codec is always float32.
        kv_dtype: Of stored keys and values; None takes ``dtype``.
        numerics: ``fast`` or ``reference``; see :class:`~moshi_pipe.nn.moshi.Moshi`.
        context: Frames that the language model sees; None takes the checkpoint's.
        kernels: On CUDA, ``torch`` or ``triton``.
    """

    device: torch.device
    dtype: torch.dtype
    kv_dtype: torch.dtype | None = None
    numerics: str = "fast"
    context: int | None = None
    kernels: str = "torch"


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that is there.

    ``auto`` takes the first CUDA device, else the CPU.

    Raises:
        ConfigError: The name is no device.
        BackendError: The device is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kinds = ("auto", "cpu", "cuda", "mps")
    if name.partition(":")[0] not in kinds:
        raise ConfigError(f"unknown device '{name}'", wanted=closest(name, kinds))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"'{name}' does not name a device", wanted="for instance cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda":
        _require_cuda(name, device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendError(
            f"device {name} is not there", got="torch sees no Metal device", fix="set device=cpu"
        )
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn ``auto`` or a name into a type: bfloat16 on CUDA, else float32.

    Raises:
        ConfigError: The name is no type that the models run in.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype '{name}'", wanted=closest(name, ["auto", *DTYPES]))
    return DTYPES[name]


def choose_kv_dtype(name: str, device: torch.device) -> torch.dtype:
    """As :func:`choose_dtype`, and ``int8``: keys and values with a scale each.

    Raises:
        ConfigError: The name is no type of keys and values.
    """
    if name == "int8":
        return torch.int8
    if name not in ("auto", *DTYPES):
        raise ConfigError(
            f"unknown kv_dtype '{name}'", wanted=closest(name, ["auto", *DTYPES, "int8"])
        )
    return choose_dtype(name, device)


def open_codec(
    checkpoint: Checkpoint,
    options: TorchOptions,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Mimi:
    """Build the codec of a checkpoint and load its weights.

    Args:
        checkpoint: Opened with its codec.
        options: Where to run; its dtype is not used.
        progress: Called with bytes done and bytes in all.

    Raises:
        CheckpointError: The weights do not fit the config, or are damaged.
        BackendError: There is no triton, which the options ask for.
    """
    if checkpoint.mimi is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its codec")
    with torch.device("meta"):
        codec = Mimi(checkpoint.mimi)
    load_mimi(checkpoint, codec, options.device, progress=progress)
    codec.prepare()
    _use_kernels(codec, options)
    return codec


def open_lm(
    checkpoint: Checkpoint,
    options: TorchOptions,
    *,
    quantizer: Quantizer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Moshi:
    """Build the language model of a checkpoint and load its weights.

    Args:
        checkpoint: Opened with its language model.
        options: Where and how to run.
        quantizer: Replaces linear layers while they are loaded; None leaves them.
        progress: Called with bytes done and bytes in all.

    Raises:
        CheckpointError: The weights do not fit the config, or are damaged.
        ConfigError: The context is not usable.
        BackendError: There is no triton, which the options ask for.
    """
    spec = checkpoint.config.lm
    if spec is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its language model")
    spec = with_context(spec, options.context)
    with torch.device("meta"):
        model = Moshi(spec, numerics=options.numerics, kv_dtype=options.kv_dtype)
    load_lm(
        checkpoint, model, options.device, options.dtype, quantizer=quantizer, progress=progress
    )
    model.quant = None if quantizer is None else quantizer.summary
    _use_kernels(model, options)
    return model


def with_context(spec: LMSpec, context: int | None) -> LMSpec:
    """Return ``spec`` with another attention context, in frames; None leaves it.

    Raises:
        ConfigError: Not a positive number.
    """
    if context is None:
        return spec
    if context < 1:
        raise ConfigError("the context must be at least one frame", got=str(context))
    return replace(spec, temporal=replace(spec.temporal, context=context))


def _use_kernels(model: Mimi | Moshi, options: TorchOptions) -> None:
    """Let a model step with kernels of our own, where that was asked for and there is a GPU."""
    if options.kernels != "triton" or options.device.type != "cuda":
        return
    try:
        model.use_kernels()
    except ImportError as error:
        raise BackendError(
            "cuda_kernels=triton needs triton", got=str(error), fix="set cuda_kernels=torch"
        ) from error


def _require_cuda(name: str, index: int) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index < count:
        return
    raise BackendError(
        f"device {name} is not there",
        got=f"torch {torch.__version__} sees {format_count(count, 'CUDA device')}",
        wanted=f"an index below {count}" if count else "an NVIDIA GPU, its driver, a CUDA torch",
        fix="set device=cpu, or device=auto to take what is there",
    )
