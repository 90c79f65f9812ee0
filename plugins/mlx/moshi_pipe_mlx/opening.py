"""Opening the models of a checkpoint on MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshi_pipe.errors import BackendError, CheckpointError
from moshi_pipe.nn.backend import with_context
from moshi_pipe_mlx.codec import Mimi
from moshi_pipe_mlx.lm import Moshi
from moshi_pipe_mlx.place import choose_place
from moshi_pipe_mlx.reading import read_lm, read_mimi

if TYPE_CHECKING:
    from moshi_pipe.hooks import BackendOptions, Progress
    from moshi_pipe.models.checkpoint import Checkpoint


def open_codec(
    checkpoint: Checkpoint, options: BackendOptions, progress: Progress | None = None
) -> Mimi:
    """Build the codec of a checkpoint and load its weights, in float32.

    Raises:
        BackendError: The device is not there.
        CheckpointError: The weights do not fit the config, or are damaged.
    """
    if checkpoint.mimi is None or checkpoint.mimi_weights is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its codec")
    place = choose_place(options)
    tensors = read_mimi(
        checkpoint.mimi_weights,
        checkpoint.mimi,
        place,
        check_finite=checkpoint.check_finite,
        progress=progress,
    )
    return Mimi(checkpoint.mimi, tensors, place)


def open_lm(
    checkpoint: Checkpoint, options: BackendOptions, progress: Progress | None = None
) -> Moshi:
    """Build the language model of a checkpoint and load its weights.

    Raises:
        BackendError: The device is not there, or the options ask for what this backend lacks.
        CheckpointError: The weights do not fit the config, or are damaged.
        ConfigError: The context is not usable.
    """
    if checkpoint.config.lm is None or checkpoint.lm_weights is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its language model")
    if options.numerics != "fast":
        raise BackendError(
            f"backend mlx has no numerics={options.numerics}",
            got="it follows the reference to rounding, not operation by operation",
            fix="set numerics=fast, or backend=torch",
        )
    if checkpoint.lora is not None:
        raise BackendError(
            "backend mlx does not add LoRA weights",
            got=str(checkpoint.lora),
            fix="set backend=torch, or merge them into the model's weights",
        )
    spec = with_context(checkpoint.config.lm, options.context)
    place = choose_place(options)
    weights, packing = read_lm(
        checkpoint.lm_weights,
        spec,
        place,
        quant=options.quant,
        check_finite=checkpoint.check_finite,
        hibiki=checkpoint.config.model_type == "hibiki",
        progress=progress,
    )
    return Moshi(spec, weights, place, packing)
