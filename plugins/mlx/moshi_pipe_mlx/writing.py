"""Writing an opened language model as an MLX file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import mlx.core as mx

from moshi_pipe.errors import OutputError
from moshi_pipe_mlx.names import file_shape, mlx_names
from moshi_pipe_mlx.place import DTYPES

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe_mlx.lm import Moshi


def save(model: Moshi, path: Path, *, dtype: str | None = None) -> None:
    """Write the weights of an opened model under the names of MLX files.

    Quantized tensors are written as they are: loading the file gives the same numbers. The file
    appears under its name when it is complete.

    Args:
        model: Opened.
        path: The file, ``*.safetensors``.
        dtype: Of tensors that are not quantized, ``bfloat16`` in the released files; None writes
            the type that they have in memory.

    Raises:
        CheckpointError: The format has no place for one of the model's tensors.
        OutputError: The file cannot be written.
    """
    weights = model.weights
    target = None if dtype is None else DTYPES[dtype]
    arrays: dict[str, mx.array] = {}
    partial = path.with_name(f"{path.stem}.part.safetensors")
    with model.place.enter():
        for name, copies in mlx_names(model.lm).items():
            if name in weights.matrices:
                stored = weights.matrix(name).stored(target)
            else:
                vector = weights.vector(name)
                vector = vector.reshape(file_shape(vector.shape, name))
                suffix = name.rpartition(".")[2].replace("alpha", "weight")
                stored = {suffix: vector if target is None else vector.astype(target)}
            for copy in copies:
                stem = copy.rpartition(".")[0]
                arrays.update({f"{stem}.{suffix}": array for suffix, array in stored.items()})
        try:
            mx.save_safetensors(str(partial), arrays, metadata={"format": "mlx"})
            os.replace(partial, path)
        except (RuntimeError, OSError) as error:
            raise OutputError(f"cannot write {path}", got=str(error).splitlines()[0]) from error
        finally:
            partial.unlink(missing_ok=True)
