"""Choosing device, type and stored form, and opening models."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, CheckpointError, closest
from moshi_pipe.nn.backend import with_context
from moshi_pipe.nn.load import open_lm_weights, open_lora
from moshi_pipe_rust.codec import RustCodec
from moshi_pipe_rust.fallback import RustymimiCodec
from moshi_pipe_rust.given import GivenTensors
from moshi_pipe_rust.lm import RustLM
from moshi_pipe_rust.native import load_native

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from moshi_pipe.hooks import BackendOptions, Progress
    from moshi_pipe.models.checkpoint import Checkpoint
    from moshi_pipe.models.spec import LMSpec

QUANTIZATIONS: Final = ("none", "int8")
DTYPES: Final = ("float32", "bfloat16", "float16")
PLAIN_FORMATS: Final = ("torch", "candle")
READ_FORMATS: Final = (*PLAIN_FORMATS, "gguf")
"""Read by candle; the others, and what LoRA is added to, come tensor by tensor as float32."""


def open_codec(checkpoint: Checkpoint, progress: Progress) -> RustCodec | RustymimiCodec:
    """Open a codec; on rustymimi where the extension is not built.

    Raises:
        BackendError: Neither is there, or the weights cannot be used.
        CheckpointError: The checkpoint was opened without its codec.
    """
    if checkpoint.mimi is None or checkpoint.mimi_weights is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its codec")
    size = checkpoint.mimi_weights.stat().st_size
    codec: RustCodec | RustymimiCodec
    try:
        native = load_native()
    except BackendError as error:
        codec = RustymimiCodec.open(checkpoint.mimi, checkpoint.mimi_weights, error)
    else:
        path, check_finite = checkpoint.mimi_weights, checkpoint.check_finite
        codec = RustCodec.open(native, checkpoint.mimi, path, check_finite=check_finite)
    progress(size, size)
    return codec


def open_lm(checkpoint: Checkpoint, options: BackendOptions, progress: Progress) -> RustLM:
    """Open a language model.

    Raises:
        BackendError: The extension is not built, or the model, its file or the device are not for
            it.
        CheckpointError: The checkpoint was opened without its language model.
    """
    spec, path = checkpoint.config.lm, checkpoint.lm_weights
    if spec is None or path is None:
        raise CheckpointError(f"{checkpoint.where} was opened without its language model")
    native = load_native()
    _refuse_unsupported(spec)
    _check_quant(options.quant)
    device = choose_device(options.device, native)
    dtype, kv_dtype = _choose_dtypes(options, device)
    size = path.stat().st_size
    with _source(checkpoint, path, options.quant) as source:
        lm = RustLM.open(
            native,
            with_context(spec, options.context),
            source,
            device=device,
            dtype=dtype,
            kv_dtype=kv_dtype,
            quantize=options.quant == "int8",
            end_as_padding=checkpoint.config.model_type == "hibiki",
            check_finite=checkpoint.check_finite,
        )
    progress(size, size)
    return lm


def choose_device(name: str, native: Any) -> str:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``metal`` or ``mps`` into candle's name.

    ``auto`` takes what the extension was built for beyond the CPU.

    Raises:
        BackendError: The extension was not built for it.
    """
    built: list[str] = native.build_info()[0]
    if name == "auto":
        return built[-1]
    wanted = name.replace("mps", "metal")
    kind = wanted.partition(":")[0]
    if kind not in built:
        raise BackendError(
            f"backend rust has no device '{name}' here",
            got=f"an extension built for {', '.join(built)}",
            wanted=closest(kind, ("auto", "cpu", "cuda", "metal")),
            fix=f"set device=cpu, or build it: MATURIN_PEP517_ARGS='--features {kind}' "
            "pip install ./plugins/rust"
            if kind in ("cuda", "metal")
            else "set device=cpu",
        )
    return wanted


@contextmanager
def _source(checkpoint: Checkpoint, path: Path, quant: str) -> Iterator[Path | GivenTensors]:
    """The file, where candle's reader can take it as it is; else its numbers, tensor by tensor."""
    with open_lm_weights(checkpoint) as reader:
        kept = READ_FORMATS if quant == "int8" else PLAIN_FORMATS
        if checkpoint.lora is None and reader.contents.format in kept and _is_named(path):
            yield path
        else:
            yield GivenTensors(reader, open_lora(checkpoint))


def _is_named(path: Path) -> bool:
    """Whether the file's name says what it is, which is how the extension knows."""
    return path.suffix in (".gguf", ".safetensors")


def _check_quant(quant: str) -> None:
    if quant not in QUANTIZATIONS:
        raise BackendError(
            f"backend rust has no quantization '{quant}'",
            wanted=closest(quant, QUANTIZATIONS),
            fix="set quant=int8: 8-bit blocks of 32, GGML's Q8_0",
        )


def _choose_dtypes(options: BackendOptions, device: str) -> tuple[str, str]:
    """Types of weights, and of keys and values."""
    on_cpu = device == "cpu"
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    kv_dtype = options.kv_dtype or dtype
    for key, value in (("dtype", dtype), ("kv_dtype", kv_dtype)):
        if value not in DTYPES or (on_cpu and value == "float16"):
            raise BackendError(
                f"backend rust does not run {key}={value} on {device}",
                wanted="float32 or bfloat16" if on_cpu else closest(value, DTYPES),
                fix=f"set {key}=bfloat16",
            )
    return dtype, kv_dtype


def _refuse_unsupported(spec: LMSpec) -> None:
    """Refuse forms that no released model of ours has.

    Raises:
        BackendError: Names all of them.
    """
    stacks = [("temporal", spec.temporal)]
    if spec.depth is not None:
        stacks.append(("depth", spec.depth))
    found = []
    for name, stack in stacks:
        if not stack.norm.startswith("rms_norm"):
            found.append(f"norm={stack.norm} ({name})")
        if stack.gating != "silu":
            found.append(f"gating={stack.gating} ({name})")
        if stack.layer_scale is not None:
            found.append(f"layer_scale ({name})")
    if spec.temporal.positional_embedding != "rope":
        found.append(f"positional_embedding={spec.temporal.positional_embedding}")
    if spec.temporal.context is None:
        found.append("no context")
    asked = {
        "norm_emb": spec.norm_embeddings,
        "bias_proj": spec.bias_heads,
        "depformer_norm": spec.depth_norm is not None,
        "dep_q_used (more depth weights than are used)": bool(spec.num_stored),
    }
    found += [name for name, present in asked.items() if present]
    if found:
        raise BackendError(
            "backend rust does not run this form of the model",
            got=", ".join(found),
            fix="set backend=torch",
        )
