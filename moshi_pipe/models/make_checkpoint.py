"""Make a complete checkpoint of random weights in the released layout.

It is what tests, benchmarks and people without a network use: config, language model, codec and
tokenizer, written tensor by tensor, so that 15 GB take as little memory as 7 MB.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moshi_pipe.errors import CheckpointError, ConfigError, OutputError, closest
from moshi_pipe.models.checkpoint import (
    CONFIG_NAME,
    LM_NAME,
    RANDOM_SIGNATURE,
    ModelConfig,
)
from moshi_pipe.models.layout import (
    TensorSpec,
    data_order,
    header_bytes,
    lm_tensors,
    mimi_tensors,
    predicted_file_size,
)
from moshi_pipe.models.presets import Preset, find_preset, lm_config, mimi_config
from moshi_pipe.models.random_weights import Fill, draw, lm_fill, mimi_fill
from moshi_pipe.models.spec import MimiSpec
from moshi_pipe.models.tokenizer import train_tiny_tokenizer
from moshi_pipe.units import format_bytes

Progress = Callable[[int, int], None]
"""Called with bytes written so far and bytes in all."""

_DTYPES: Final[Mapping[str, str]] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_MIMI_NAME: Final = "mimi.safetensors"
_MIMI_CONFIG_NAME: Final = "mimi_config.json"
_TOKENIZER_NAME: Final = "tokenizer.model"


@dataclass(frozen=True, slots=True)
class MadeCheckpoint:
    """What was written.

    Attributes:
        folder: Absolute path; give it as ``model.path=``.
        files: Bytes by file name.
    """

    folder: Path
    files: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


def make_checkpoint(
    folder: str | Path,
    *,
    preset: str | Preset = "tiny",
    kind: str = "moshi",
    seed: int = 0,
    dtype: str = "bfloat16",
    progress: Progress | None = None,
) -> MadeCheckpoint:
    """Write a complete random-weight checkpoint in the released layout.

    The same arguments give the same bytes. Each file appears under its name only when it is
    complete; ``config.json`` comes last. A random checkpoint in the folder is replaced, another
    model is not.

    Args:
        folder: Where; made if it is not there.
        preset: Size: a name of :data:`moshi_pipe.models.presets.PRESETS`, or a shape of your own.
        kind: ``moshi``, ``hibiki`` or ``stt``.
        seed: Of the weights, 0 or more.
        dtype: Of the language model: ``float32``, ``bfloat16`` or ``float16``. The codec is always
            float32.
        progress: Called after every few MB.

    Raises:
        ConfigError: An unknown preset, kind or dtype.
        OutputError: The folder holds a model that is not random, it cannot be written, or the disk
            has no room.
    """
    shape = preset if isinstance(preset, Preset) else find_preset(preset)
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'", wanted=closest(dtype, _DTYPES))
    if seed < 0:
        raise ConfigError("the seed of a checkpoint cannot be negative", got=str(seed))
    codec_config = mimi_config(shape)
    config = _config_json(lm_config(shape, kind), codec_config, shape.name, kind, seed)
    lm = ModelConfig.from_json(config).lm
    if lm is None:
        raise RuntimeError(f"preset {shape.name} describes no language model")
    codec = MimiSpec() if codec_config is None else MimiSpec.from_config(codec_config)
    lm_file = _File(LM_NAME, lm_tensors(lm, _DTYPES[dtype]), lambda n, s: lm_fill(n, s, lm))
    codec_file = _File(_MIMI_NAME, mimi_tensors(codec), lambda n, s: mimi_fill(n, s, codec))
    place = Path(folder).expanduser().absolute()
    _refuse_other_model(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        _check_room(place, lm_file.size + codec_file.size)
        counter = _Counter(lm_file.size + codec_file.size, progress)
        train_tiny_tokenizer(place / _TOKENIZER_NAME, lm.text_cardinality)
        for file in (codec_file, lm_file):
            file.write(place, seed, counter)
        if codec_config is not None:
            _write_json(place / _MIMI_CONFIG_NAME, codec_config)
        _write_json(place / CONFIG_NAME, config)
    except OSError as error:
        raise OutputError(
            f"cannot write the checkpoint in {place}",
            got=error.strerror or str(error),
            fix="check permissions and free space, or choose another folder",
        ) from error
    names = [LM_NAME, _MIMI_NAME, _TOKENIZER_NAME, CONFIG_NAME]
    names += [_MIMI_CONFIG_NAME] if codec_config is not None else []
    return MadeCheckpoint(place, {name: (place / name).stat().st_size for name in names})


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


@dataclass(frozen=True, slots=True)
class _File:
    """A weight file to write.

    Attributes:
        name: In the folder.
        tensors: What it holds, by released name.
        fill: How each tensor is drawn.
    """

    name: str
    tensors: Mapping[str, TensorSpec]
    fill: Callable[[str, tuple[int, ...]], Fill]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return predicted_file_size(self.tensors)

    def write(self, folder: Path, seed: int, counter: _Counter) -> None:
        """Write the file under a partial name, then give it its own."""
        partial = folder / f"{self.name}.part"
        try:
            with partial.open("wb") as file:
                header = header_bytes(self.tensors)
                file.write(header)
                counter.add(len(header))
                for name in data_order(self.tensors):
                    spec = self.tensors[name]
                    for piece in draw(name, spec, self.fill(name, spec.shape), seed):
                        file.write(piece.data)
                        counter.add(piece.nbytes)
            os.replace(partial, folder / self.name)
        finally:
            partial.unlink(missing_ok=True)


def _config_json(
    model: dict[str, Any], codec: dict[str, Any] | None, preset: str, kind: str, seed: int
) -> dict[str, Any]:
    """``config.json``: file names and origin, then the model's keys."""
    names: dict[str, Any] = {
        "moshi_name": LM_NAME,
        "mimi_name": _MIMI_NAME,
        "tokenizer_name": _TOKENIZER_NAME,
    }
    if codec is not None:
        names["mimi_config_name"] = _MIMI_CONFIG_NAME
    origin = {"sig": RANDOM_SIGNATURE, "epoch": 0, "size": preset, "kind": kind, "seed": seed}
    return {"model_id": origin, **names, **model}


def _refuse_other_model(folder: Path) -> None:
    """Keep weights that cannot be made again."""
    config, weights = folder / CONFIG_NAME, folder / LM_NAME
    if config.is_file():
        try:
            if ModelConfig.from_json(json.loads(config.read_bytes())).is_random:
                return
        except (ValueError, AttributeError, CheckpointError):
            pass  # not of this program: not to be lost either
    elif not weights.is_file():
        return
    raise OutputError(
        f"{folder} holds another model, which random weights would replace",
        got=config.name if config.is_file() else weights.name,
        fix="name another folder, or remove the files",
    )


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OutputError(
            f"the checkpoint does not fit in {folder}",
            got=f"{format_bytes(free)} free",
            wanted=format_bytes(num_bytes),
            fix="choose a smaller size or another folder",
        )


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
