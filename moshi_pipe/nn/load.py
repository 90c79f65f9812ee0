"""Weights straight from a file into a module that was built on the meta device.

Each tensor is read from its byte range into the memory it will stay in, one after the other: on a
CPU there is never a second copy; a cast or another device needs one buffer, the size of the
largest tensor, and a quantized matrix becomes numbers a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from moshi_pipe.errors import BackendError, CheckpointError
from moshi_pipe.models.formats.contents import AFFINE, PLAIN
from moshi_pipe.models.layout import Layout, is_linear, lm_layout, mimi_layout
from moshi_pipe.models.safetensors_header import read_header
from moshi_pipe.models.weight_check import match_weights
from moshi_pipe.nn.huge_pages import HugePages, gathered
from moshi_pipe.nn.weight_reader import TORCH_DTYPES, WeightReader, fill, reading

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.protocols import Quantizer

Progress = Callable[[int, int], None]
"""Called with bytes read so far and bytes in all."""


def load_mimi(
    checkpoint: Checkpoint,
    module: nn.Module,
    device: torch.device | str = "cpu",
    *,
    progress: Progress | None = None,
) -> None:
    """Load a codec, always in float32.

    Raises:
        CheckpointError: See :func:`load_into`.
    """
    if checkpoint.mimi_weights is None or checkpoint.mimi is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its codec")
    load_into(
        module,
        checkpoint.mimi_weights,
        mimi_layout(checkpoint.mimi),
        device=device,
        dtype=torch.float32,
        check_finite=checkpoint.check_finite,
        progress=progress,
    )


def load_lm(
    checkpoint: Checkpoint,
    module: nn.Module,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    quantizer: Quantizer | None = None,
    progress: Progress | None = None,
) -> None:
    """Load a language model.

    Conditions stay float32, LoRA is added to the weights, packed weights become ``dtype`` where no
    quantizer takes them, and Hibiki reads an end of stream that it emits too early as padding.

    Raises:
        CheckpointError: See :func:`load_into`.
    """
    spec = checkpoint.config.lm
    if checkpoint.lm_weights is None or spec is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its language model")
    lora = open_lora(checkpoint)
    memory = HugePages() if quantizer is None and lora is None else None
    packed_on_cpu = memory is None and torch.device(device).type == "cpu"
    with gathered() if packed_on_cpu else nullcontext():
        load_into(
            module,
            checkpoint.lm_weights,
            lm_layout(spec),
            device=device,
            dtype=dtype,
            keep_float32=keeps_float32,
            check_finite=checkpoint.check_finite,
            lora=lora,
            quantizer=quantizer,
            progress=progress,
            memory=memory,
        )
    if checkpoint.config.model_type == "hibiki":
        # Source: kyutai-labs/moshi@e6a55d2 moshi/moshi/models/loaders.py, get_moshi.
        table = module.get_parameter("text_emb.weight")
        with torch.no_grad():
            table[2] = table[3]


def read_lm(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Read a language model tensor by tensor, for backends that keep it in a form of their own.

    The tensors are those that :func:`load_lm` loads: LoRA is added, Hibiki's early end of stream
    reads as padding, and weights are finite where the checkpoint asks for that.
    :func:`open_lm_weights` gives quantized ones without loss instead.

    Args:
        checkpoint: Opened with its language model.
        dtype: Of all tensors; None keeps the file's float types, float32 for quantized ones.

    Yields:
        In-memory name, and the tensor on the CPU in memory of its own.

    Raises:
        CheckpointError: See :func:`load_into`.
    """
    lora = open_lora(checkpoint)
    with open_lm_weights(checkpoint) as reader:
        for name in reader.names():
            if dtype is None:
                stored = reader.stored(name)
                own = TORCH_DTYPES[stored.dtype] if stored.encoding == PLAIN else torch.float32
            tensor = reader.read(name, dtype or own)
            if checkpoint.check_finite:
                _refuse_not_finite(tensor, name, reader.path)
            if lora is not None:
                tensor = lora.add_to(tensor, name)
            if name == "text_emb.weight" and checkpoint.config.model_type == "hibiki":
                tensor[2] = tensor[3]
            yield name, tensor


@contextmanager
def open_lm_weights(checkpoint: Checkpoint) -> Iterator[WeightReader]:
    """Open the language model's file of any released format, compared with its config.

    Its :meth:`~moshi_pipe.nn.weight_reader.WeightReader.packed` gives codes, scales and biases as
    they are stored. LoRA is not added.

    Raises:
        CheckpointError: The file is damaged or holds another model.
    """
    spec, path = checkpoint.config.lm, checkpoint.lm_weights
    if path is None or spec is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its language model")
    contents = match_weights(path, lm_layout(spec))
    with reading(path) as file, torch.no_grad():
        yield WeightReader(file, contents)


def open_lora(checkpoint: Checkpoint) -> _Lora | None:
    """Read a checkpoint's LoRA file, if it has one: small, so it is held in memory.

    Raises:
        CheckpointError: It does not fit the model, or is damaged.
    """
    spec, scaling = checkpoint.config.lm, checkpoint.config.lora_scaling
    if checkpoint.lora is None or scaling is None or spec is None:
        return None
    return _Lora.open(checkpoint.lora, lm_layout(spec), scaling)


def keeps_float32(name: str) -> bool:
    """Whether a tensor stays float32 whatever the model's type: conditions and int8 scales."""
    return name.startswith(("condition_provider.", "fuser.")) or name.endswith("_scb")


def load_into(
    module: nn.Module,
    path: Path,
    layout: Layout,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    keep_float32: Callable[[str], bool] = lambda name: False,
    check_finite: bool = True,
    lora: _Lora | None = None,
    quantizer: Quantizer | None = None,
    progress: Progress | None = None,
    memory: HugePages | None = None,
) -> None:
    """Fill a module from a weight file of any released format.

    Parameters and buffers are replaced, not copied into, so the module may be on the meta device.

    Args:
        module: Its parameters and buffers have the layout's in-memory names.
        path: The weights.
        layout: What the file must hold.
        device: Where the tensors go.
        dtype: Type of all floating tensors.
        keep_float32: Names that become float32 instead.
        check_finite: Refuse NaN and infinity.
        lora: Low-rank update to add, or None.
        quantizer: Replaces linear layers, those of ``keep_float32`` excepted; None leaves them.
        progress: Called after every tensor.
        memory: Where plain tensors go that stay on a CPU; None leaves it to torch.

    Raises:
        CheckpointError: The file is damaged or does not fit the layout, a weight is not finite,
            or the module has parameters that the layout does not name.
        BackendError: The device has no room.
    """
    contents = match_weights(path, layout)
    _refuse_strangers(module, layout, path)

    def prepare(tensor: Tensor, name: str) -> Tensor:
        if check_finite:
            _refuse_not_finite(tensor, name, path)
        return tensor if lora is None else lora.add_to(tensor, name)

    done = 0
    with reading(path) as file, torch.no_grad():
        reader = WeightReader(file, contents, memory)
        for name in reader.names():
            kept = keep_float32(name)
            target = torch.float32 if kept else dtype
            with _room_for(name, device):
                if quantizer is not None and is_linear(name) and not kept:
                    _quantize(module, name, reader, quantizer, prepare)
                else:
                    tensor = reader.read(name, target, torch.device(device))
                    _assign(module, name, prepare(tensor, name))
            done += contents.stored[name].num_bytes
            if progress is not None:
                progress(done, contents.num_bytes)


@dataclass(frozen=True, slots=True)
class _Lora:
    """A low-rank update of linear weights: ``W + scaling * B @ A``, in the model's type.

    Attributes:
        path: The file, for messages.
        scaling: Weight of the product.
        pairs: In-memory weight name to its A and B, each with the layer's own rows cut out.
    """

    path: Path
    scaling: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def open(cls, path: Path, layout: Layout, scaling: float) -> _Lora:
        """Read a LoRA file: small, so it is held in memory while the model loads.

        Raises:
            CheckpointError: It names weights that this model does not have, or is damaged.
        """
        header = read_header(path)
        halves: dict[str, dict[str, Tensor]] = {}
        unknown = []
        with reading(path) as file:
            for name, entry in header.entries.items():
                stem, _, tail = name.rpartition(".lora_")
                targets = layout.resolve(f"{stem}.weight") if stem else ()
                linear = bool(targets) and is_linear(targets[0])
                rows = entry.spec.shape[0] if len(entry.spec.shape) == 2 else 0
                whole_parts = linear and rows > 0 and rows % len(targets) == 0
                if not whole_parts or tail not in ("A.weight", "B.weight"):
                    unknown.append(name)
                    continue
                dtype = TORCH_DTYPES[entry.spec.dtype]
                whole = fill(file, entry.start, torch.empty(entry.spec.shape, dtype=dtype))
                parts = whole.view(len(targets), -1, whole.shape[-1])
                for target, part in zip(targets, parts, strict=True):
                    halves.setdefault(target, {})[tail[0]] = part
        unknown += [f"{name} without its other half" for name, ab in halves.items() if len(ab) < 2]
        if unknown:
            raise CheckpointError(
                f"the LoRA file {path} does not fit the model",
                got=f"{len(unknown)} tensors of no linear layer of it: {', '.join(unknown[:5])}",
                wanted="NAME.lora_A.weight and NAME.lora_B.weight of its linear layers",
            )
        pairs = {name: (ab["A"], ab["B"]) for name, ab in halves.items()}
        return cls(path, scaling, pairs)

    def add_to(self, weight: Tensor, name: str) -> Tensor:
        """Add the update of one weight, if there is one."""
        if name not in self.pairs:
            return weight
        down, up = (half.to(weight.device, weight.dtype) for half in self.pairs[name])
        if down.shape[0] != up.shape[1] or (up.shape[0], down.shape[1]) != tuple(weight.shape):
            raise CheckpointError(
                f"the LoRA file {self.path} does not fit '{name}'",
                got=f"A {list(down.shape)}, B {list(up.shape)}",
                wanted=f"A [rank, {weight.shape[1]}], B [{weight.shape[0]}, rank]",
            )
        return weight + self.scaling * (up @ down)


def _refuse_strangers(module: nn.Module, layout: Layout, path: Path) -> None:
    """Every parameter of the module must be filled, and every tensor must have its place."""
    own = {name for name, _ in module.named_parameters()}
    own |= {name for name, _ in module.named_buffers()}
    wrong = sorted(own ^ set(layout.weights))
    if wrong:
        raise CheckpointError(
            f"cannot load {path} into {type(module).__name__}: module and config do not agree",
            got=", ".join(wrong[:10]),
            wanted="the same tensors in both",
        )


def _refuse_not_finite(tensor: Tensor, name: str, path: Path) -> None:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    least, most = torch.aminmax(tensor)  # either is NaN if any element is
    if not bool(torch.isfinite(least) & torch.isfinite(most)):
        raise CheckpointError(
            f"{path} has weights that are not finite",
            got=f"'{name}' ranges from {least.item()} to {most.item()} as {tensor.dtype}",
            wanted="finite numbers",
            fix="download or copy the file again; with dtype=float16 try bfloat16",
        )


def _quantize(
    module: nn.Module,
    name: str,
    reader: WeightReader,
    quantizer: Quantizer,
    prepare: Callable[[Tensor, str], Tensor],
) -> None:
    """Put what a quantizer makes of one weight in the place of its linear layer."""
    place = name.removesuffix(".weight")
    parent, _, last = place.rpartition(".")
    owner, plain = module.get_submodule(parent), module.get_submodule(place)
    bias_O = plain.bias if isinstance(plain, nn.Linear) else None
    rows, made = reader.read_int8(name), None
    packed = reader.packed(name) if reader.stored(name).encoding == AFFINE else None
    if rows is not None:
        made = quantizer.adopt_int8(name, *rows, bias_O)
    if packed is not None and packed.biases is not None:
        groups = (packed.codes, packed.scales, packed.biases)
        made = quantizer.adopt_affine(name, *groups, bias_O, bits=packed.bits)
    if made is None:
        made = quantizer.linear(name, prepare(reader.read_stored(name), name), bias_O)
    owner.register_module(last, made)


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace one parameter or buffer by a tensor, on whatever device it was."""
    prefix, _, last = name.rpartition(".")
    owner = module.get_submodule(prefix)
    if last in dict(owner.named_buffers(recurse=False)):
        owner.register_buffer(last, tensor)
        return
    setattr(owner, last, nn.Parameter(tensor, requires_grad=False))


@contextmanager
def _room_for(name: str, device: torch.device | str) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise BackendError(
            f"the model does not fit on {device}",
            got=f"no room for '{name}'",
            fix="see moshi-pipe plan; use a smaller dtype, fewer slots or another device",
        ) from error
