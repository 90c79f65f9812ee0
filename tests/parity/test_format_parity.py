"""Files that the peers' own tools wrote are read, and they read ours.

``gguf`` is llama.cpp's package; ``mlx`` and ``moshi_mlx`` are the tools that made the released MLX
files. Each part is skipped where its package is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.formats import LMS, MLX, open_lm_at, write_lm
from support.peer_files import mlx_model, write_gguf, write_mlx

from moshi_pipe.models.formats.names import CANDLE, slice_names
from moshi_pipe.models.layout import lm_layout
from moshi_pipe.models.spec import LMSpec
from moshi_pipe.models.weight_check import match_weights
from moshi_pipe.nn.convert import convert
from moshi_pipe.nn.load import read_lm
from moshi_pipe.nn.packing import (
    Packed,
    join_blocks,
    pack_codes,
    quantize_affine,
    quantize_blocks,
    quantize_rows,
    unpack_codes,
)

if TYPE_CHECKING:
    from pathlib import Path


def numbers(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    checkpoint = open_lm_at(folder, **options)
    checkpoint.check()
    return dict(read_lm(checkpoint, torch.float32))


@pytest.fixture
def weight() -> torch.Tensor:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[3, :64] = 0
    weight[4], weight[5] = weight[4].abs(), -weight[5].abs()
    return weight


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 32), (2, 32), (3, 64), (5, 32), (6, 128)])
def test_affine_is_mlxs_to_the_bit(weight: torch.Tensor, bits: int, group: int) -> None:
    mx = pytest.importorskip("mlx.core")
    theirs = mx.quantize(mx.array(weight.numpy()).astype(mx.bfloat16), group_size=group, bits=bits)
    words, scales, biases = (
        np.array(a.astype(mx.float32)) if i else np.array(a) for i, a in enumerate(theirs)
    )

    ours = quantize_affine(weight, bits, group)

    assert np.array_equal(pack_codes(ours.codes, bits).numpy().view(np.uint32), words)
    assert np.array_equal(ours.scales.float().numpy(), scales)
    assert np.array_equal(ours.biases.float().numpy(), biases)  # type: ignore[union-attr]
    wide = [a.astype(mx.float32) if i else a for i, a in enumerate(theirs)]
    expected = np.array(mx.dequantize(*wide, group_size=group, bits=bits))
    codes = unpack_codes(torch.from_numpy(words.view(np.int32)), bits)
    packed = Packed(codes, ours.scales, ours.biases, bits, group)
    assert np.array_equal(packed.numbers().numpy(), expected)


def test_blocks_are_ggmls_to_the_bit(weight: torch.Tensor) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0

    packed = quantize_blocks(weight)

    theirs = gguf.quants.quantize(weight.numpy(), kind)
    assert np.array_equal(join_blocks(packed.codes, packed.scales).numpy(), theirs)
    assert np.array_equal(packed.numbers().numpy(), gguf.quants.dequantize(theirs, kind))


def test_rows_are_bitsandbytes(weight: torch.Tensor) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")

    codes, absmax_O = quantize_rows(weight)

    theirs, scale, _ = functional.int8_vectorwise_quant(weight.half())
    assert torch.equal(absmax_O, scale.float())
    different = codes != theirs
    assert different.float().mean() < 0.01
    assert (codes.short() - theirs.short()).abs().max() <= 1


@pytest.mark.parametrize("name", LMS)
def test_a_file_of_the_gguf_package_is_read(tmp_path: Path, name: str) -> None:
    pytest.importorskip("gguf")
    write_lm(tmp_path, LMS[name])
    before = numbers(tmp_path)
    write_gguf(tmp_path / "x.gguf", LMS[name], before)

    after = numbers(tmp_path, lm_file=str(tmp_path / "x.gguf"))

    for tensor, source in before.items():
        packs = source.ndim == 2 and source.shape[1] % 32 == 0
        wanted = quantize_blocks(source).numbers() if packs else source
        wanted = source.half().float() if "norm1" in tensor else wanted
        assert torch.equal(after[tensor], wanted), tensor


@pytest.mark.parametrize("name", ["moshi", "shared sets, low rank", "conditions"])
def test_the_gguf_package_reads_ours(tmp_path: Path, name: str) -> None:
    gguf = pytest.importorskip("gguf")
    write_lm(tmp_path / "a", LMS[name])
    convert(open_lm_at(tmp_path / "a"), tmp_path / "b", to="gguf")

    reader = gguf.GGUFReader(str(tmp_path / "b" / "model.q8.gguf"))

    after = numbers(tmp_path / "b")
    found = {tensor.name: tensor for tensor in reader.tensors}
    names = slice_names(LMSpec.from_config(LMS[name]), CANDLE)
    assert set(found) == {copy for copies in names.values() for copy in copies}
    for tensor, copies in names.items():
        theirs = found[copies[-1]]
        array = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        assert np.array_equal(array.reshape(after[tensor].shape), after[tensor].numpy()), tensor


@pytest.mark.parametrize(("bits", "group"), [(0, 0), (8, 64), (4, 32)])
@pytest.mark.parametrize("schedule", [None, [0, 1, 2, 2]], ids=["own sets", "shared sets"])
def test_a_file_that_moshi_mlx_wrote_is_read(
    tmp_path: Path, bits: int, group: int, schedule: list[int] | None
) -> None:
    need_moshi_mlx()
    config = mlx_config(schedule)
    write_lm(tmp_path, config)
    path = tmp_path / "theirs.safetensors"
    write_mlx(path, config, tmp_path / "model.safetensors", bits, group)
    before = numbers(tmp_path)

    after = numbers(tmp_path, lm_file=str(path))

    contents = match_weights(path, lm_layout(LMSpec.from_config(config)))
    assert contents.format == (f"mlx-q{bits}" if bits else "mlx")
    for name, tensor in before.items():
        packs = bool(bits) and tensor.ndim == 2
        wanted = quantize_affine(tensor, bits, group).numbers() if packs else tensor
        assert torch.equal(after[name], wanted), name


@pytest.mark.parametrize(
    ("to", "bits", "group"), [("mlx", 0, 0), ("mlx-q8", 8, 64), ("mlx-q4", 4, 32)]
)
def test_moshi_mlx_reads_ours(tmp_path: Path, to: str, bits: int, group: int) -> None:
    need_moshi_mlx()
    config = mlx_config([0, 1, 2, 2])
    write_lm(tmp_path / "a", config)
    made = convert(open_lm_at(tmp_path / "a"), tmp_path / "b", to=to)
    model, parsed = mlx_model(config)
    mx, nn = pytest.importorskip("mlx.core"), pytest.importorskip("mlx.nn")
    tree_flatten = pytest.importorskip("mlx.utils").tree_flatten
    model.set_dtype(mx.bfloat16)
    if bits:
        nn.quantize(model, bits=bits, group_size=group)
    path = next(tmp_path / "b" / name for name in made.files if name != "config.json")
    model.load_weights(str(path), strict=True)

    stored = load_file(path) if not bits else None
    flat = dict(tree_flatten(model.parameters()))
    theirs, _ = mlx_model(config)
    theirs.load_pytorch_weights(str(tmp_path / "a" / "model.safetensors"), parsed, strict=True)
    if bits:
        nn.quantize(theirs, bits=bits, group_size=group)
    for name, array in tree_flatten(theirs.parameters()):
        assert bool(mx.array_equal(flat[name], array)), name
    assert stored is None or set(stored) == set(flat)


def need_moshi_mlx() -> None:
    pytest.importorskip("mlx.core")
    pytest.importorskip("moshi_mlx.models.lm")


def mlx_config(schedule: list[int] | None) -> dict[str, Any]:
    more = {} if schedule is None else {"depformer_weights_per_step_schedule": schedule}
    return MLX | more
