"""The reference package loads what make-checkpoint writes, and finds the same weights in it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from moshi.models import loaders
from support.reference_server import reference_config

from moshi_pipe.models.checkpoint import ModelConfig, ModelOptions, open_checkpoint
from moshi_pipe.models.layout import lm_layout, mimi_layout
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.released import RELEASED_CONFIGS
from moshi_pipe.models.spec import MimiSpec
from moshi_pipe.nn.load import load_lm, load_mimi
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name")
NOT_LM = (*FILES, "model_type", "model_id", "lm_gen_config", "stt_config", "dep_q_used")


def reference_info(folder: Path) -> Any:
    """The reference's view of a folder: it wants file:// names."""
    path = reference_config(folder)
    return loaders.CheckpointInfo.from_hf_repo("no/where", config_path=path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["moshi", "hibiki", "stt"])
def test_the_reference_loads_a_made_checkpoint_to_the_same_weights(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    make_checkpoint(tmp_path, preset="tiny", kind=kind, dtype="float32")
    info = reference_info(tmp_path)
    checkpoint = open_checkpoint(ModelOptions(name="t", path=str(tmp_path)))

    assert checkpoint.config.lm is not None
    assert checkpoint.mimi is not None
    theirs_lm, theirs_mimi = info.get_moshi(dtype=dtype), info.get_mimi()
    with torch.device("meta"):
        ours_lm, ours_mimi = Moshi(checkpoint.config.lm), Mimi(checkpoint.mimi)
    load_lm(checkpoint, ours_lm, "cpu", dtype)
    load_mimi(checkpoint, ours_mimi)

    for ours, theirs in ((ours_lm, theirs_lm), (ours_mimi, theirs_mimi)):
        state = ours.state_dict()
        expected = theirs.state_dict()
        assert set(state) == set(expected)
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        assert all(state[name].dtype == expected[name].dtype for name in expected)
    assert theirs_mimi.num_codebooks == checkpoint.mimi.num_active


@pytest.mark.parametrize("repo", sorted(RELEASED_CONFIGS))
def test_every_released_shape_is_the_references(repo: str) -> None:
    config = {k: v for k, v in RELEASED_CONFIGS[repo].items() if k not in NOT_LM}
    config = json.loads(json.dumps(config))
    spec = ModelConfig.from_json(RELEASED_CONFIGS[repo]).lm
    assert spec is not None
    theirs = loaders.get_moshi_lm(None, lm_kwargs=config, device="meta", dtype=torch.bfloat16)

    ours = lm_layout(spec.as_stored()).tensors
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: entry.shape for name, entry in ours.items()} == expected


def test_the_released_codecs_shape_is_the_references() -> None:
    theirs = loaders.get_mimi(None, device="meta")

    ours = mimi_layout(MimiSpec()).tensors
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: entry.shape for name, entry in ours.items()} == expected
