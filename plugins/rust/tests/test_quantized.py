"""8-bit weights: from a GGUF file that another tool wrote, and made at load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import pytest
import torch
from rust_gguf import write_gguf
from rust_models import Runner, candle_names, released_tensors, rust_lm, tokens, torch_lm, write_lm
from support.golden import BASE_LM, DELAYED_LM

from moshi_pipe.models.layout import lm_layout

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.nn.moshi import Moshi

CONTEXT = BASE_LM["context"]


def dequantized(model: Moshi, folder: Path, names: str) -> tuple[Path, Path]:
    """A GGUF file and the safetensors of the values in it."""
    from safetensors.torch import save_file

    tensors = released_tensors(model, lm_layout(model.spec))
    if names == "candle":
        tensors = candle_names(tensors, model.spec)
    held = write_gguf(folder / "model.q8.gguf", tensors)
    save_file(held, folder / "values.safetensors")
    return folder / "model.q8.gguf", folder / "values.safetensors"


@pytest.mark.parametrize("names", ["candle", "released"])
@pytest.mark.parametrize("config", [BASE_LM, DELAYED_LM], ids=["base", "delayed"])
def test_a_gguf_file_gives_what_its_values_give(
    tmp_path: Path, config: dict[str, Any], names: str
) -> None:
    reference = torch_lm(config)
    quantized, values = dequantized(reference, tmp_path, names)
    plain, blocks = rust_lm(values, reference.spec), rust_lm(quantized, reference.spec)
    theirs, ours = Runner(plain, 2, 0.8), Runner(blocks, 2, 0.8)

    for _ in range(4 * CONTEXT):
        wanted, got = theirs.step(), ours.step()
        # The same values, but products round their inputs to 16 bits.
        torch.testing.assert_close(
            got.extra["text_logits_BV"], wanted.extra["text_logits_BV"], atol=3e-4, rtol=0
        )
        assert [tokens(got, slot) for slot in (0, 1)] == [tokens(wanted, slot) for slot in (0, 1)]
    assert blocks.caps.dtype == "int8"


def test_candles_own_products_stay_near_the_values(tmp_path: Path) -> None:
    """Other devices multiply as candle does, with activations in 8 bits too."""
    reference = torch_lm(BASE_LM)
    quantized, values = dequantized(reference, tmp_path, "candle")
    plain = Runner(rust_lm(values, reference.spec), 1)
    wanted = plain.step().extra["text_logits_BV"]
    got = Runner(rust_lm(quantized, reference.spec, portable=True), 1).step()

    error = (got.extra["text_logits_BV"] - wanted).norm() / wanted.norm()

    assert 1e-5 < error < 0.03


def test_quantizing_at_load_is_quantizing_the_file(tmp_path: Path) -> None:
    """Linear weights only: tables stay as the file has them."""
    from safetensors.torch import save_file

    reference = torch_lm(BASE_LM)
    path = write_lm(tmp_path, reference)
    tensors = released_tensors(reference, lm_layout(reference.spec))
    quantized = write_gguf(tmp_path / "model.q8.gguf", tensors)
    tables = {name for name in tensors if "emb" in name}
    save_file(quantized | {name: tensors[name] for name in tables}, tmp_path / "mixed.safetensors")
    mixed = Runner(rust_lm(tmp_path / "mixed.safetensors", reference.spec), 1)
    ours = Runner(rust_lm(path, reference.spec, quantize=True), 1)

    for _ in range(3 * CONTEXT):
        wanted, got = mixed.step(), ours.step()
        torch.testing.assert_close(
            got.extra["text_logits_BV"], wanted.extra["text_logits_BV"], atol=3e-4, rtol=0
        )
        assert tokens(got, 0) == tokens(wanted, 0)


def test_blocks_take_17_bytes_for_16_numbers(tmp_path: Path) -> None:
    """A float16 scale per 32 bytes; rows that are no whole blocks stay float32."""
    reference = torch_lm(BASE_LM)
    tensors = released_tensors(reference, lm_layout(reference.spec))
    sizes = [(t.numel(), t.shape[1]) for t in tensors.values() if t.ndim == 2]
    quantized, _ = dequantized(reference, tmp_path, "candle")

    blocks = rust_lm(quantized, reference.spec)

    assert blocks.num_bytes == sum(n * 17 // 16 if width % 32 == 0 else 4 * n for n, width in sizes)


def test_other_quantizations_of_a_file_run_too(tmp_path: Path) -> None:
    """Q4_0 is not a release, but the file says what it holds."""
    reference = torch_lm(BASE_LM)
    tensors = candle_names(released_tensors(reference, lm_layout(reference.spec)), reference.spec)
    path = tmp_path / "model.q4.gguf"
    held = write_gguf(path, tensors, gguf.GGMLQuantizationType.Q4_0)
    from safetensors.torch import save_file

    save_file(held, tmp_path / "values.safetensors")
    wanted = Runner(rust_lm(tmp_path / "values.safetensors", reference.spec), 1).step()
    got = Runner(rust_lm(path, reference.spec), 1).step()

    wanted_BV = wanted.extra["text_logits_BV"]
    error = (got.extra["text_logits_BV"] - wanted_BV).norm() / wanted_BV.norm()

    assert error < 0.03
