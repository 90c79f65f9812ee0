"""How much memory a model needs, from its config alone, and whether the device has it.

No weights are read and no torch is imported: sizes follow from the layout, free memory from the
kernel or the GPU driver's own tool.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.models.checkpoint import (
    LM,
    MIMI,
    ModelConfig,
    ModelOptions,
    read_specs,
)
from moshi_pipe.models.layout import TensorSpec, is_linear, lm_layout, mimi_layout
from moshi_pipe.models.spec import LMSpec, MimiSpec, TransformerSpec, gated_hidden
from moshi_pipe.units import format_bytes, format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DTYPE_SIZES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}
_KV_SIZES: Final = {**DTYPE_SIZES, "int8": 1}
"""Bytes per element of the types that a model can run in."""

LINEAR_BITS: Final[Mapping[str, Callable[[int], float]]] = {
    "int8": lambda group: 8.0,  # and 4 bytes a row, under a thousandth
    "int4": lambda group: 4 + 32 / group,
}
"""Bits of an element of a quantized linear weight, from the size of a group."""

_FLOAT: Final = 4
_RUNTIME_CPU: Final = 450_000_000  # bytes: Python and torch after import
_RUNTIME_CUDA: Final = 900_000_000  # bytes: context, kernels and workspaces


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One use of memory.

    Attributes:
        part: ``lm``, ``mimi`` or ``runtime``.
        what: ``weights``, ``kv cache``, ``state`` or ``activations``; with detail.
        num_bytes: Over all slots.
        per_slot: Bytes of one slot; 0 where the number of slots does not matter.
        exact: False for an estimate.
    """

    part: str
    what: str
    num_bytes: int
    per_slot: int = 0
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would need, and what there is.

    Attributes:
        model: Name of the model.
        device: Where it would run.
        dtype: Type of the language model.
        slots: Sessions at once.
        context: Frames that the language model sees; None without one.
        rows: Every use of memory.
        free_bytes: Memory that the device has free; None when nothing could tell.
        num_parameters: Elements of the weights.
        warnings: What a user should know.
    """

    model: str
    device: str
    dtype: str
    slots: int
    context: int | None
    rows: tuple[PlanRow, ...]
    free_bytes: int | None
    num_parameters: int
    warnings: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """All rows together."""
        return sum(row.num_bytes for row in self.rows)

    @property
    def per_slot_bytes(self) -> int:
        """What one more session costs."""
        return sum(row.per_slot for row in self.rows)

    @property
    def fits(self) -> bool | None:
        """Whether it fits the device; None when its free memory is not known."""
        return None if self.free_bytes is None else self.total_bytes <= self.free_bytes

    @property
    def max_slots(self) -> int | None:
        """Sessions that would fit, None when not known."""
        if self.free_bytes is None or not self.per_slot_bytes:
            return None
        fixed = self.total_bytes - self.slots * self.per_slot_bytes
        return max((self.free_bytes - fixed) // self.per_slot_bytes, 0)

    @property
    def verdict(self) -> str:
        """One sentence: fits or not, and what to change."""
        need = format_bytes(self.total_bytes)
        if self.free_bytes is None:
            return f"needs {need}; the free memory of {self.device} is not known"
        free = f"{format_bytes(self.free_bytes)} free on {self.device}"
        if self.fits:
            room = f", room for {format_count(self.max_slots, 'slot')}" if self.max_slots else ""
            return f"fits: needs {need} of {free}{room}"
        return f"does not fit: needs {need}, {free}; {self._advice()}"

    def _advice(self) -> str:
        """What to change, the least intrusive first."""
        free = self.free_bytes or 0
        if self.max_slots:
            return f"try engine.slots={self.max_slots}"
        kv_bytes = sum(row.num_bytes for row in self.rows if row.what.startswith("kv cache"))
        if self.context is not None and self.slots == 1 and kv_bytes:
            without = self.total_bytes - kv_bytes
            frames = int(self.context * max(free - without, 0) / kv_bytes)
            if frames >= 125:  # 10 s
                return f"try a context of {frames // 25 * 25} frames instead of {self.context}"
        if self.dtype == "float32":
            return "try dtype=bfloat16, fewer slots, or a smaller model"
        return "try another device or a smaller model"


def plan_model(
    options: ModelOptions,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv_dtype: str | None = None,
    slots: int = 1,
    context: int | None = None,
    parts: Sequence[str] = (LM, MIMI),
    rows_per_slot: int = 1,
    quant: str = "none",
    quant_group: int = 32,
) -> Plan:
    """Predict the memory of a run.

    Args:
        options: Which model; its config alone is read.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto`` (a GPU if the driver's tool shows one).
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (bfloat16 on a GPU, else float32).
        kv_dtype: Type of stored keys and values: as ``dtype``, or ``int8``; None takes the
            weights'.
        slots: Sessions at once.
        context: Frames that the language model sees; None takes the model's own.
        parts: ``lm`` and ``mimi``, or one of them.
        rows_per_slot: 2 with classifier-free guidance.
        quant: How linear weights are stored; a form that is not ``int8`` or ``int4`` counts as
            none, with a warning.
        quant_group: Weights that share a scale, for ``int4``.

    Raises:
        CheckpointError: The model's config cannot be had or used.
        ConfigError: A dtype, device or number that is not legal.
    """
    gpus = free_gpu_bytes() if device == "auto" or device.startswith("cuda") else []
    if device == "auto":
        device = "cuda:0" if gpus else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if kv_dtype in (None, "auto"):
        kv_dtype = dtype
    for given, known in ((dtype, DTYPE_SIZES), (kv_dtype, _KV_SIZES)):
        if given not in known:
            raise ConfigError(f"unknown dtype '{given}'", wanted=closest(given, known))
    if slots < 1:
        raise ConfigError("a plan needs at least one slot", got=str(slots))
    config, mimi = read_specs(options)
    rows: list[PlanRow] = []
    tensors: list[TensorSpec] = []
    lm = config.lm if LM in parts else None
    if lm is not None:
        tensors += _weights_of(config)
        rows += lm_rows(
            lm,
            dtype,
            kv_dtype,
            slots * rows_per_slot,
            context,
            slots,
            LINEAR_BITS[quant](quant_group) if quant in LINEAR_BITS else None,
        )
    if MIMI in parts:
        tensors += mimi_layout(mimi).tensors.values()
        rows += mimi_rows(mimi, slots)
    on_gpu = device.startswith("cuda")
    rows.append(PlanRow("runtime", "torch", _RUNTIME_CUDA if on_gpu else _RUNTIME_CPU, exact=False))
    return Plan(
        model=options.path or options.repo or options.name,
        device=device,
        dtype=dtype,
        slots=slots,
        context=None if lm is None else (context or lm.temporal.context),
        rows=tuple(rows),
        free_bytes=_free_bytes(device, gpus),
        num_parameters=sum(spec.num_elements for spec in tensors),
        warnings=_warnings(config, quant),
    )


def lm_rows(
    lm: LMSpec,
    dtype: str,
    kv_dtype: str,
    num_rows: int,
    context: int | None = None,
    slots: int = 1,
    linear_bits: float | None = None,
) -> list[PlanRow]:
    """Memory of a language model.

    Args:
        lm: The model.
        dtype: Type of the weights.
        kv_dtype: Type of the temporal transformer's keys and values.
        num_rows: Rows of state: slots, twice that with guidance.
        context: Frames seen; None takes the model's own.
        slots: Sessions, for the cost of one.
        linear_bits: Of an element of a linear weight; None where it is of ``dtype``.
    """
    size = DTYPE_SIZES[dtype]
    stacks = {"temporal": 0, "depth": 0, "embeddings and heads": 0}
    for name, spec in lm_layout(lm).tensors.items():
        if name.endswith("_scb"):
            continue  # int8 weights become the model's type when they are loaded
        kept = name.startswith("condition_provider.")
        bytes_each: float = _FLOAT if kept else size
        if linear_bits is not None and not kept and is_linear(name):
            bytes_each = linear_bits / 8
        is_table = "emb" in name or name.startswith(("text_linear", "linears", "extra_heads"))
        part = "temporal" if name.startswith("transformer.") else "depth"
        stacks["embeddings and heads" if is_table else part] += int(spec.num_elements * bytes_each)
    rows = [PlanRow("lm", f"weights, {what}", count) for what, count in stacks.items() if count]
    frames = context or lm.temporal.context or 0
    rows.append(
        _per_row(
            "lm",
            f"kv cache, {frames} frames",
            _kv_bytes(lm.temporal, frames, kv_dtype),
            num_rows,
            slots,
        )
    )
    if lm.depth is not None:
        depth = _kv_bytes(lm.depth, lm.num_generated, dtype)
        rows.append(_per_row("lm", "kv cache, depth", depth, num_rows, slots))
    widest = max(2 * gated_hidden(lm.temporal.dim, lm.temporal.feedforward[0]), lm.text_head_size)
    activations = 6 * (widest + 4 * lm.temporal.dim) * _FLOAT + lm.text_head_size * 4 * _FLOAT
    rows.append(_per_row("lm", "activations", activations, num_rows, slots, exact=False))
    return rows


def mimi_rows(mimi: MimiSpec, slots: int) -> list[PlanRow]:
    """Memory of a codec, always float32."""
    weights = sum(spec.num_bytes for spec in mimi_layout(mimi).tensors.values())
    positions = mimi.transformer.context or 0
    kv_bytes = 2 * _kv_bytes(mimi.transformer, positions, "float32")  # encoder and decoder
    pads = _conv_state(mimi)
    # The widest activations are those at the sample rate: a frame of the narrowest width.
    activations = 6 * mimi.frame_size * mimi.num_filters * _FLOAT
    return [
        PlanRow("mimi", "weights", weights),
        _per_row("mimi", f"kv cache, {positions} positions", kv_bytes, slots, slots),
        _per_row("mimi", "convolution state", pads, slots, slots),
        _per_row("mimi", "activations", activations, slots, slots, exact=False),
    ]


def free_cpu_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can be had without swapping; None where the kernel does not say."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def free_gpu_bytes(tool: str = "nvidia-smi") -> list[int]:
    """Free memory of each NVIDIA GPU, by the driver's own tool; empty without one."""
    path = shutil.which(tool)
    if path is None:
        return []
    command = [path, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = (line.strip() for line in answer.stdout.splitlines())
    return [int(line) * 2**20 for line in lines if line.isdigit()]


def _free_bytes(device: str, gpus: Sequence[int]) -> int | None:
    if device == "cpu":
        return free_cpu_bytes()
    if device.startswith("cuda"):
        index = device.partition(":")[2] or "0"
        known = index.isdigit() and int(index) < len(gpus)
        return gpus[int(index)] if known else None
    if device == "mps":
        return None  # shared with everything else that runs
    kinds = ("auto", "cpu", "cuda", "mps")
    raise ConfigError(f"unknown device '{device}'", wanted=closest(device, kinds))


def _warnings(config: ModelConfig, quant: str) -> tuple[str, ...]:
    warnings = ["this model's weights are random"] if config.is_random else []
    if quant not in ("none", *LINEAR_BITS):
        warnings.append(f"the size of quant={quant} is not known: counted as quant=none")
    return tuple(warnings)


def _weights_of(config: ModelConfig) -> list[TensorSpec]:
    if config.lm is None:
        return []
    tensors = lm_layout(config.lm).tensors
    return [spec for name, spec in tensors.items() if not name.endswith("_scb")]


def _per_row(
    part: str, what: str, row_bytes: int, num_rows: int, slots: int, *, exact: bool = True
) -> PlanRow:
    total = row_bytes * num_rows
    return PlanRow(part, what, total, total // slots, exact)


def _kv_bytes(spec: TransformerSpec, positions: int, dtype: str) -> int:
    """Keys and values of one row of a stack; int8 has a float32 scale beside each entry."""
    scale = _FLOAT if dtype == "int8" else 0
    entry = spec.head_dim * _KV_SIZES[dtype] + scale
    return 2 * spec.num_layers * positions * spec.num_kv_heads * entry


def _conv_state(mimi: MimiSpec) -> int:
    """Samples that the convolutions of both directions carry from frame to frame, in bytes."""
    width, count = mimi.num_filters, mimi.channels * (mimi.kernel_size - 1)
    for ratio in reversed(mimi.ratios):
        residual = sum(
            (mimi.residual_kernel_size - 1) * mimi.dilation_base**i * width
            for i in range(mimi.num_residual_layers)
        )
        # encoder: residual and strided convolution; decoder: transposed one and residual
        count += residual + width * ratio + width * ratio + residual
        width *= 2
    last = mimi.last_kernel_size - 1
    count += last * width + last * mimi.num_filters  # last convolutions
    count += (mimi.kernel_size - 1) * mimi.dimension  # first of the decoder
    count += 2 * mimi.stride * mimi.dimension  # down- and up-sampling
    return count * _FLOAT
