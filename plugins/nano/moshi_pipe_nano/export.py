"""The trained model as a checkpoint in the released layout.

Codebooks are written with a usage of 1, which makes their sums the entries themselves, so that
half precision holds them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from moshi_pipe.models.layout import (
    Layout,
    TensorSpec,
    data_order,
    header_bytes,
    lm_layout,
    mimi_layout,
)
from moshi_pipe_nano.codec_train import CHECKPOINT
from moshi_pipe_nano.lm_train import AVERAGE
from moshi_pipe_nano.run import load
from moshi_pipe_nano.shapes import TEXT_CARDINALITY, lm_config, lm_spec, mimi_config, mimi_spec
from moshi_pipe_nano.tokenizer import write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from moshi_pipe_nano.options import Options

FOLDER: Final = "released"
_LM_NAME: Final = "model.safetensors"
_MIMI_NAME: Final = "mimi.safetensors"
_MIMI_CONFIG_NAME: Final = "mimi_config.json"
_TOKENIZER_NAME: Final = "tokenizer.model"
_LM_DTYPE: Final = ("BF16", torch.bfloat16)
_MIMI_DTYPE: Final = ("F16", torch.float16)
_USAGE: Final = "cluster_usage"
_SUM: Final = "embedding_sum"


def export(options: Options) -> None:
    """Write ``released/`` in the folder: what ``model=local model.path=...`` loads.

    Raises:
        FileNotFoundError: Codec or language model were not trained yet.
    """
    folder = Path(options.out)
    codec, average = load(folder / CHECKPOINT), load(folder / AVERAGE)
    if codec is None or average is None:
        raise FileNotFoundError(f"{folder}: run stage=codec and stage=lm first")
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    mimi = mimi_layout(mimi_spec(options.codec))
    weights = _entries(_dotted(codec["net"]))
    _write(place / _MIMI_NAME, mimi, weights, *_MIMI_DTYPE)
    lm = lm_layout(lm_spec(options.lm, options.codec))
    _write(place / _LM_NAME, lm, _dotted(average["net"]), *_LM_DTYPE)
    write_tokenizer(place / _TOKENIZER_NAME, TEXT_CARDINALITY)
    _write_json(place / _MIMI_CONFIG_NAME, mimi_config(options.codec))
    config = {
        "model_id": {"sig": "nano", "epoch": int(average["step"])},
        "moshi_name": _LM_NAME,
        "mimi_name": _MIMI_NAME,
        "tokenizer_name": _TOKENIZER_NAME,
        "mimi_config_name": _MIMI_CONFIG_NAME,
        "model_type": "moshi",
        "lm_gen_config": {"temp": 0, "temp_text": 0},
        **lm_config(options.lm, options.codec),
    }
    _write_json(place / "config.json", config)


def _dotted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("/", "."): value.float() for key, value in state.items()}


def _entries(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same codec with every codebook's usage 1."""
    for name in [n for n in weights if n.endswith(_USAGE)]:
        table = name.removesuffix(_USAGE) + _SUM
        weights[table] = weights[table] / weights[name].clamp(min=1e-5)[:, None]
        weights[name] = torch.ones_like(weights[name])
    return weights


def _write(
    path: Path,
    layout: Layout,
    weights: Mapping[str, Tensor],
    dtype_name: str,
    dtype: torch.dtype,
) -> None:
    """Write tensors under their released names, fused ones stacked."""
    specs = {
        name: TensorSpec(spec.shape, dtype_name) for name, spec in layout.file_tensors().items()
    }
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(header_bytes(specs))
        for name in data_order(specs):
            pieces = [weights[piece] for piece in layout.fused.get(name, (name,))]
            tensor = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            whole = tensor.reshape(specs[name].shape).to(dtype).contiguous()
            file.write(whole.view(torch.uint8).numpy().tobytes())
    part.replace(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
