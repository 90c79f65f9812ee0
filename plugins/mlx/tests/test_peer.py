"""Files of moshi_mlx load and give its logits, and it loads ours; where the peer is right.

The peer sees one position more than the context, so its context is set one lower; and a muted
stream (-1) has a row in its quantized tables, so none is muted here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("mlx.core", reason="MLX cannot be imported", exc_type=ImportError)
pytest.importorskip("moshi_mlx.models.lm", reason="the peer moshi_mlx is not installed")

import mlx.core as mx
import torch
from mlx.nn.layers.quantized import quantize as nn_quantize
from mlx_models import CONTEXT, PACKED_LM, open_mlx, write_lm
from moshi_mlx.models.lm import Lm, LmConfig
from moshi_pipe_mlx.writing import save

from moshi_pipe.models.protocols import Controls

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.models.checkpoint import Checkpoint

SHARED = {
    "depformer_weights_per_step_schedule": [0, 1, 2, 2],
    "delays": [0, 0, 2, 2, 2, 0, 2, 2, 2],
}
QUANTS = {"int8": (8, 64), "int4": (4, 32)}
COLUMNS = torch.randint(
    0, 32, (3 * CONTEXT + 4, 9), generator=torch.Generator().manual_seed(0)
).tolist()


@pytest.fixture(scope="module", params=[{}, SHARED], ids=["a set per step", "shared sets"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Checkpoint:
    return write_lm(tmp_path_factory.mktemp("peer"), PACKED_LM | request.param)


def new_peer(checkpoint: Checkpoint) -> Any:
    config = LmConfig.from_config_dict(dict(checkpoint.config.raw))
    config.transformer.context = CONTEXT - 1
    return Lm(config)


def load_pytorch(checkpoint: Checkpoint) -> Any:
    peer = new_peer(checkpoint)
    peer.load_pytorch_weights(str(checkpoint.lm_weights), peer.cfg, strict=True)
    return peer


def run_peer(peer: Any) -> list[tuple[list[torch.Tensor], list[int]]]:
    """Logits and greedy tokens of every step, in float32."""
    peer.set_dtype(mx.float32)
    steps = []
    for cache in peer.transformer_cache:
        cache.reset()
    for column in COLUMNS:
        logits: list[torch.Tensor] = []

        def choose(values: mx.array, heard: list[torch.Tensor] = logits) -> tuple[mx.array, None]:
            heard.append(torch.tensor(values.reshape(-1).tolist()))
            return mx.argmax(values, axis=-1).astype(mx.int32), None

        text, audio, _ = peer._sample(
            mx.array([[column[0]]]), [mx.array([[code]]) for code in column[1:]], choose, choose
        )
        steps.append((logits, [*text.reshape(-1).tolist(), *audio.reshape(-1).tolist()]))
    return steps


def assert_equal_to_peer(checkpoint: Checkpoint, path: Path | None, peer: Any) -> None:
    model = open_mlx(checkpoint if path is None else replace(checkpoint, lm_weights=path))
    state = model.new_state(1)
    zeros, counts = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    for column, (logits, tokens) in zip(COLUMNS, run_peer(peer), strict=True):
        step = model.step(
            torch.tensor([column]),
            torch.tensor([True]),
            Controls(zeros, zeros, counts, counts),
            state,
        )
        torch.testing.assert_close(step.extra["text_logits_BV"][0], logits[0], rtol=0, atol=1e-4)
        assert [*step.text_B.tolist(), *step.codes_BK[0].tolist()] == tokens


def test_logits_and_tokens_of_a_pytorch_file_equal_the_peers(checkpoint: Checkpoint) -> None:
    assert_equal_to_peer(checkpoint, None, load_pytorch(checkpoint))


def test_a_bfloat16_file_of_the_peer_gives_its_logits(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    peer, path = load_pytorch(checkpoint), tmp_path / "model.safetensors"
    peer.set_dtype(mx.bfloat16)
    peer.save_weights(str(path))

    assert_equal_to_peer(checkpoint, path, peer)


@pytest.mark.parametrize("quant", QUANTS)
def test_a_quantized_file_of_the_peer_gives_its_logits(
    quant: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = quantized_by_peer(checkpoint, quant, tmp_path)
    peer = new_peer(checkpoint)
    quantize(peer, quant)
    peer.load_weights(str(path), strict=True)

    assert open_mlx(replace(checkpoint, lm_weights=path)).caps.dtype == quant
    assert_equal_to_peer(checkpoint, path, peer)


@pytest.mark.parametrize("quant", QUANTS)
def test_what_we_quantize_is_the_peers_file_bit_for_bit(
    quant: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    theirs: Any = mx.load(str(quantized_by_peer(checkpoint, quant, tmp_path)))
    path = tmp_path / "ours.safetensors"

    save(open_mlx(checkpoint, quant=quant), path, dtype="bfloat16")

    ours: Any = mx.load(str(path))
    assert set(ours) == set(theirs)
    different = [name for name in ours if not _same(ours[name], theirs[name])]
    assert different == []


@pytest.mark.parametrize("quant", ["none", *QUANTS])
def test_the_peer_loads_what_we_save(quant: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(open_mlx(checkpoint, quant=quant), path)
    peer = new_peer(checkpoint)
    if quant != "none":
        quantize(peer, quant)

    peer.load_weights(str(path), strict=True)

    assert_equal_to_peer(checkpoint, path, peer)


def quantized_by_peer(checkpoint: Checkpoint, quant: str, folder: Path) -> Path:
    """A released file is made like this, by moshi_mlx and nn.quantize."""
    peer, path = load_pytorch(checkpoint), folder / "theirs.safetensors"
    peer.set_dtype(mx.bfloat16)
    quantize(peer, quant)
    peer.save_weights(str(path))
    return path


def quantize(peer: Any, quant: str) -> None:
    bits, group_size = QUANTS[quant]
    nn_quantize(peer, bits=bits, group_size=group_size)


def _same(left: mx.array, right: mx.array) -> bool:
    return left.dtype == right.dtype and bool(mx.array_equal(left, right))
