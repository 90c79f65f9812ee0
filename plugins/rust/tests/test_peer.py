"""Our language model against the ``moshi`` crate's own, on the files that both read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from moshi_pipe_rust.native import load_native
from rust_gguf import write_gguf
from rust_models import Runner, candle_names, released_tensors, rust_lm, tokens, torch_lm
from safetensors.torch import save_file
from support.golden import BASE_LM, DELAYED_LM

from moshi_pipe.models.layout import lm_layout

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.models.spec import LMSpec, TransformerSpec

if not hasattr(load_native(), "peer_greedy"):
    pytest.skip(
        'asks MATURIN_PEP517_ARGS="--features peer" when it is built', allow_module_level=True
    )

CONTEXT = BASE_LM["context"]


def crate_stack(spec: TransformerSpec, context: int, position: str) -> dict[str, Any]:
    return {
        "d_model": spec.dim,
        "num_heads": spec.num_heads,
        "num_layers": spec.num_layers,
        "causal": True,
        "norm_first": True,
        "bias_ff": False,
        "bias_attn": False,
        "layer_scale": None,
        "positional_embedding": position,
        "use_conv_block": False,
        "cross_attention": None,
        "conv_kernel_size": 3,
        "use_conv_bias": True,
        "gating": "silu",
        "norm": "RmsNorm",
        "context": context,
        "max_period": int(spec.max_period),
        "max_seq_len": 4096,
        "kv_repeat": 1,
        "dim_feedforward": spec.feedforward[0],
        "conv_layout": False,
    }


def crate_config(spec: LMSpec) -> str:
    depth, context = spec.depth, spec.temporal.context
    assert depth is not None
    assert context is not None
    return json.dumps(
        {
            "transformer": crate_stack(spec.temporal, context, "Rope"),
            "depformer": {
                "transformer": crate_stack(depth, spec.num_generated, "None"),
                "num_slices": spec.num_generated,
                "low_rank_embeddings": spec.low_rank,
            },
            "text_in_vocab_size": spec.text_cardinality + 1,
            "text_out_vocab_size": spec.text_head_size,
            "audio_vocab_size": spec.cardinality + 1,
            "audio_codebooks": spec.num_codebooks,
            "conditioners": None,
            "extra_heads": None,
        }
    )


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
@pytest.mark.parametrize("config", [BASE_LM, DELAYED_LM], ids=["base", "delayed"])
def test_greedy_tokens_equal_the_crates(tmp_path: Path, config: dict[str, Any], form: str) -> None:
    reference = torch_lm(config)
    spec = reference.spec
    tensors = candle_names(released_tensors(reference, lm_layout(spec)), spec)
    path = tmp_path / f"model.{form}"
    # The crate wants every linear layer in blocks; a row of 88 is none, so as float32 in both.
    if form == "gguf":
        write_gguf(path, tensors)
    else:
        save_file(tensors, path)
    ours = Runner(rust_lm(path, spec, portable=form == "gguf"), 1)
    columns, found = [], []
    for _ in range(4 * CONTEXT):
        column_BS = ours.line.push_user(ours.user_codes(), torch.tensor([True]), ours.delays)
        columns.append(column_BS[0].tolist())
        step = ours.model.step(column_BS, torch.tensor([True]), ours.controls(), ours.state)
        ours.line.push_generated(step.text_B, step.codes_BK, torch.tensor([True]), ours.delays)
        ours.ages[0] += 1
        found.append(tokens(step, 0))

    theirs = load_native().peer_greedy(str(path), crate_config(spec), columns)

    assert found == [[text, *codes] for text, codes in theirs]
