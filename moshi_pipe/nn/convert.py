"""Write a checkpoint in another released format, a few rows at a time.

What the new format stores as the old one does is copied or repacked without loss; the rest goes
through float32. Each file appears under its name when it is complete, ``config.json`` last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from moshi_pipe.errors import CheckpointError, ConfigError, OutputError, closest
from moshi_pipe.models.checkpoint import CONFIG_NAME, Checkpoint, ModelConfig
from moshi_pipe.models.formats.contents import AFFINE, INT8_ROWS, PLAIN, Q8_0, Stored
from moshi_pipe.models.formats.target import FILE_NAMES, FilePlan, Target, plan_file
from moshi_pipe.models.spec import MOSHI_7B_CONFIG
from moshi_pipe.nn.load import open_lm_weights, open_lora
from moshi_pipe.nn.packing import (
    Packed,
    join_blocks,
    pack_codes,
    quantize_affine,
    quantize_blocks,
    quantize_rows,
)
from moshi_pipe.nn.weight_reader import TORCH_DTYPES, WeightReader
from moshi_pipe.units import format_bytes

if TYPE_CHECKING:
    from io import FileIO

    from torch import Tensor

Progress = Callable[[int, int], None]
"""Called with bytes written so far and bytes in all."""

COPIED: Final = "as they were"
REPACKED: Final = "repacked, same numbers"
RETYPED: Final = "of another type, same numbers"
ROUNDED: Final = "rounded"
DEQUANTIZED: Final = "dequantized"
QUANTIZED: Final = "quantized"
AGAIN: Final = "quantized again"
LOSSLESS: Final = (COPIED, REPACKED, RETYPED)
"""What may happen to a tensor without a change of its numbers."""

DTYPES: Final[Mapping[str, str | None]] = {
    "auto": None,
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
}
"""Types of numbers that are not quantized, by the name that users give."""

_COPY_BYTES: Final = 1 << 22
_LORA_KEYS: Final = ("lora", "lora_rank", "lora_scaling", "lora_name")


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written.

    Attributes:
        folder: Absolute path; give it as ``model.path=``.
        files: Bytes by file name.
        source: Format of the weights that were read.
        to: Format of the weights that were written.
        actions: Number of tensors by what happened to them.
        merged: Whether LoRA weights were added.
    """

    folder: Path
    files: Mapping[str, int]
    source: str
    to: str
    actions: Mapping[str, int]
    merged: bool

    @property
    def lossless(self) -> bool:
        """Whether every number is what it was."""
        return not self.merged and set(self.actions) <= set(LOSSLESS)


def convert(
    checkpoint: Checkpoint,
    folder: str | Path,
    *,
    to: str,
    dtype: str = "auto",
    group: int | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write a checkpoint with all its files in another format; LoRA is merged into the weights.

    Args:
        checkpoint: Opened with its language model; its codec and tokenizer are copied.
        folder: Where; made if it is not there. What the same conversion wrote before is replaced.
        to: One of :data:`moshi_pipe.models.formats.contents.FORMATS`.
        dtype: Of numbers that are not quantized: ``float32``, ``bfloat16``, ``float16``, or
            ``auto``, which keeps those of weights that are not quantized and takes bfloat16 else.
        group: Of ``mlx-q8`` and ``mlx-q4``; None takes that of the released files.
        progress: Called after every few MB.

    Raises:
        ConfigError: An unknown format, dtype or group, or the source's own folder.
        CheckpointError: The source is damaged, or the format has no place for it.
        OutputError: The folder holds another model or cannot be written, or the disk has no room.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'", wanted=closest(dtype, DTYPES))
    lm = checkpoint.config.lm
    place = Path(folder).expanduser().absolute()
    _refuse_own_folder(checkpoint, place)
    with open_lm_weights(checkpoint) as reader:
        if lm is None:
            raise CheckpointError(f"{checkpoint.where} holds no language model")
        contents = reader.contents
        plan = plan_file(lm, contents, to, dtype=DTYPES[dtype], group=group)
        others = _other_files(checkpoint)
        total = plan.num_bytes + sum(path.stat().st_size for path in others.values())
        counter = _Counter(total, progress)
        config = _config_text(checkpoint, FILE_NAMES[to], to)
        with _writing(place):
            place.mkdir(parents=True, exist_ok=True)
            _refuse_other_model(place, FILE_NAMES[to], config)
            _check_room(place, total)
            for name, path in others.items():
                _copy(path, place / name, counter)
            lm_name = FILE_NAMES[to]
            actions = _write_lm(checkpoint, reader, plan, place / lm_name, counter)
            _write_config(place, config)
    names = [*others, FILE_NAMES[to], CONFIG_NAME]
    return Converted(
        place,
        {name: (place / name).stat().st_size for name in names},
        contents.format,
        to,
        actions,
        checkpoint.lora is not None,
    )


class _Counter:
    """Bytes written so far, over all files."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress

    def add(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _write_lm(
    checkpoint: Checkpoint, reader: WeightReader, plan: FilePlan, path: Path, counter: _Counter
) -> dict[str, int]:
    lora = open_lora(checkpoint)
    actions: Counter[str] = Counter()
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb", buffering=0) as file:
            file.truncate(plan.num_bytes)
            _write_at(file, 0, torch.frombuffer(bytearray(plan.header), dtype=torch.uint8))
            counter.add(len(plan.header))
            writer = _Writer(file, plan, counter)
            for name in reader.names():
                reader.refuse_different_copies(name)
                merged = None
                if lora is not None and name in lora.pairs:
                    merged = lora.add_to(reader.read_stored(name).clone(), name)
                actions[writer.write(name, reader, merged)] += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return dict(actions)


class _Writer:
    """Writes tensors to their places in a new file."""

    def __init__(self, file: FileIO, plan: FilePlan, counter: _Counter) -> None:
        self._file = file
        self._plan = plan
        self._counter = counter

    def write(self, name: str, reader: WeightReader, merged: Tensor | None) -> str:
        """Write one tensor, all copies of it.

        Args:
            name: In memory.
            reader: Gives its rows.
            merged: The whole tensor where it is not the file's any more, with LoRA.

        Returns:
            What happened to its numbers.
        """
        target, stored = self._plan.targets[name], reader.stored(name)
        kept = _keeps(stored, target) and merged is None
        exact = True
        for first, last in reader.chunks(name):
            if kept:
                self._put(target, reader.bytes_of(name, first, last), first)
                continue
            if merged is None and stored.encoding == Q8_0 and _takes_blocks(target):
                arrays = _packed_arrays(reader.packed_rows(name, first, last).affine())
                exact &= bool(torch.isfinite(arrays[2]).all())
                self._put(target, arrays, first)
                continue
            rows = reader.rows(name, first, last) if merged is None else merged[first:last]
            arrays = encode(rows, target)
            if target.encoding == PLAIN:
                exact &= torch.equal(arrays[0].to(rows.dtype), rows)
            self._put(target, arrays, first)
        return _action(stored, target, kept=kept, exact=exact)

    def _put(self, target: Target, arrays: list[Tensor], first: int) -> None:
        """Write rows of each array, to every copy of the tensor."""
        for place in target.places:
            for array, rows in zip(place, arrays, strict=True):
                spec = self._plan.arrays[array]
                count = spec.shape[0] if spec.shape else 1
                row_bytes = spec.num_bytes // count if count else 0
                start = self._plan.starts[array] + (target.first_row + first) * row_bytes
                octets = rows.contiguous().view(-1).view(torch.uint8)
                _write_at(self._file, start, octets)
                self._counter.add(octets.numel())


def encode(rows: Tensor, target: Target) -> list[Tensor]:
    """Turn numbers into the arrays of their new form.

    Args:
        rows: Some rows of a tensor, float.
        target: How they are to be stored.
    """
    if target.encoding == PLAIN:
        return [rows.to(TORCH_DTYPES[target.dtypes[0]])]
    if target.encoding == INT8_ROWS:
        return list(quantize_rows(rows))
    if target.encoding == Q8_0:
        packed = quantize_blocks(rows)
        return [join_blocks(packed.codes, packed.scales)]
    return _packed_arrays(quantize_affine(rows, target.bits, target.group))


def _packed_arrays(packed: Packed) -> list[Tensor]:
    """Codes, scales and biases as MLX files hold them."""
    if packed.biases is None:
        raise RuntimeError("MLX's form has biases")
    return [pack_codes(packed.codes, packed.bits), packed.scales, packed.biases]


def _keeps(stored: Stored, target: Target) -> bool:
    """Whether a tensor's bytes can stay as they are."""
    same = (stored.encoding, stored.bits) == (target.encoding, target.bits)
    types = tuple(part.spec.dtype for part in stored.parts)
    return same and types == target.dtypes and stored.group == target.group


def _takes_blocks(target: Target) -> bool:
    return target.encoding == AFFINE and (target.bits, target.group) == (8, 32)


def _action(stored: Stored, target: Target, *, kept: bool, exact: bool) -> str:
    """What happened to a tensor's numbers."""
    if kept:
        return COPIED
    if stored.encoding == Q8_0 and _takes_blocks(target):
        return REPACKED if exact else AGAIN
    if target.encoding == PLAIN:
        if stored.encoding != PLAIN:
            return DEQUANTIZED
        return RETYPED if exact else ROUNDED
    return QUANTIZED if stored.encoding == PLAIN else AGAIN


def _config_text(checkpoint: Checkpoint, lm_name: str, to: str) -> str:
    """The source's ``config.json`` with the names of the new files; LoRA is no more."""
    source = checkpoint.config
    raw: dict[str, Any] = {k: v for k, v in source.raw.items() if k not in _LORA_KEYS}
    if not set(raw) - {"model_type"}:
        raw = dict(MOSHI_7B_CONFIG)
    raw.pop("quantize", None)
    raw["dep_q"] = raw.pop("dep_q_used", raw.get("dep_q", 8))  # what is not used is left out
    if to == "torch-q8":
        raw["quantize"] = True
    raw["moshi_name"] = lm_name
    if checkpoint.mimi_weights is not None:
        raw["mimi_name"] = checkpoint.mimi_weights.name
    if checkpoint.tokenizer is not None:
        raw["tokenizer_name"] = checkpoint.tokenizer.name
    if checkpoint.mimi_config is not None:
        raw["mimi_config_name"] = checkpoint.mimi_config.name
    ModelConfig.from_json(raw)  # what is written can be read
    return json.dumps(raw, indent=2) + "\n"


def _write_config(folder: Path, text: str) -> None:
    path = folder / CONFIG_NAME
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _other_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """Files that are copied as they are, by their new names."""
    found = (checkpoint.mimi_weights, checkpoint.tokenizer, checkpoint.mimi_config)
    return {path.name: path for path in found if path is not None}


def _copy(source: Path, target: Path, counter: _Counter) -> None:
    """Copy one file under a partial name, then give it its own."""
    partial = target.with_name(f"{target.name}.part")
    try:
        with source.open("rb") as file, partial.open("wb") as copy:
            while piece := file.read(_COPY_BYTES):
                copy.write(piece)
                counter.add(len(piece))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _write_at(file: FileIO, start: int, octets: Tensor) -> None:
    """Write the bytes of a tensor to a place in a file."""
    if octets.numel() == 0:
        return
    array: Any = octets.numpy()
    rest = memoryview(array)
    file.seek(start)
    while rest:
        rest = rest[file.write(rest) :]


def _refuse_own_folder(checkpoint: Checkpoint, folder: Path) -> None:
    paths = [p for p in (checkpoint.lm_weights, checkpoint.mimi_weights) if p is not None]
    if any(path.absolute().parent.resolve() == folder.resolve() for path in paths):
        raise ConfigError(
            "a checkpoint cannot be converted into its own folder",
            got=str(folder),
            fix="name another folder",
        )


def _refuse_other_model(folder: Path, lm_name: str, text: str) -> None:
    """Keep weights that another conversion, or none, has put there."""
    config = folder / CONFIG_NAME
    if config.is_file():
        if config.read_bytes() == text.encode():
            return
    elif not (folder / lm_name).is_file():
        return
    raise OutputError(
        f"{folder} holds another model, which this one would replace",
        got=config.name if config.is_file() else lm_name,
        fix="name another folder, or remove the files",
    )


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OutputError(
            f"the checkpoint does not fit in {folder}",
            got=f"{format_bytes(free)} free",
            wanted=format_bytes(num_bytes),
            fix="choose another folder, or a smaller format",
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write the checkpoint in {folder}",
            got=error.strerror or str(error),
            fix="check permissions and free space, or choose another folder",
        ) from error
