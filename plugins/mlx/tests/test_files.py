"""PyTorch and MLX files: names, types, packing told from shapes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("mlx.core", reason="MLX cannot be imported", exc_type=ImportError)

import mlx.core as mx
import torch
from mlx_models import (
    BASE_LM,
    LMS,
    open_mlx,
    open_torch,
    random_tensors,
    write_lm,
)
from moshi_pipe_mlx import opening
from moshi_pipe_mlx.lm import Moshi
from moshi_pipe_mlx.matrix import Dense, Packed, Packing
from moshi_pipe_mlx.names import mlx_names
from moshi_pipe_mlx.writing import save
from safetensors.torch import load_file, save_file

from moshi_pipe.errors import CheckpointError
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.formats.contents import FORMATS
from moshi_pipe.models.formats.target import FILE_NAMES
from moshi_pipe.models.layout import lm_tensors
from moshi_pipe.models.presets import PRESETS, lm_config
from moshi_pipe.models.protocols import Controls
from moshi_pipe.models.random_weights import Fill
from moshi_pipe.models.spec import LMSpec
from moshi_pipe.nn.convert import convert

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from moshi_pipe.models.checkpoint import Checkpoint

LOGITS = "text_logits_BV"


def logits_of(model: Any, num_steps: int = 20, least: int = -1) -> torch.Tensor:
    """Teacher-forced text logits and greedy codes, as one tensor."""
    zeros, counts = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    greedy = Controls(zeros, zeros, counts, counts)
    columns = torch.randint(least, 32, (num_steps, 2, 9), generator=torch.Generator())
    state, valid_B = model.new_state(2), torch.ones(2, dtype=torch.bool)
    rows = []
    for column_BS in columns:
        step = model.step(column_BS, valid_B, greedy, state)
        rows.append(torch.cat([step.extra[LOGITS], step.codes_BK.float()], dim=1))
    return torch.stack(rows)


def with_file(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    return replace(checkpoint, lm_weights=path)


@pytest.mark.parametrize("name", ["packed", "shared sets, low rank", "stt", "conditioned"])
@pytest.mark.parametrize("to", FORMATS)
def test_every_released_format_is_read_as_torch_reads_it(
    to: str, name: str, lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = lm_checkpoint(name)
    convert(checkpoint, tmp_path, to=to)
    there = with_file(checkpoint, tmp_path / FILE_NAMES[to])

    ours, theirs = logits_of(open_mlx(there)), logits_of(open_torch(there))

    assert (ours - theirs).abs().max() < 1e-3


def test_gguf_stays_quantized(lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    checkpoint = lm_checkpoint("packed")
    convert(checkpoint, tmp_path, to="gguf")
    there = with_file(checkpoint, tmp_path / "model.q8.gguf")

    model = open_mlx(there)

    matrix = model.weights.matrix("text_linear.weight")
    assert isinstance(matrix, Packed)
    assert matrix.packing == Packing(8, 32)
    assert model.caps.dtype == "int8"
    with pytest.raises(CheckpointError, match="cannot be loaded with quant=int4"):
        open_mlx(there, quant="int4")


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_loads_to_the_same_numbers(
    quant: str, dtype: str, lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = lm_checkpoint("packed")
    model = open_mlx(checkpoint, quant=quant, dtype=dtype)
    path = tmp_path / "a file whose name says nothing.safetensors"

    save(model, path)

    again = open_mlx(with_file(checkpoint, path), dtype=dtype)
    assert torch.equal(logits_of(again, 6), logits_of(model, 6))
    assert again.caps.dtype == (dtype if quant == "none" else quant)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("name", ["moshi", "shared sets, low rank", "stt", "conditioned"])
def test_an_mlx_file_holds_what_the_pytorch_file_holds(
    name: str, lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = lm_checkpoint(name)
    path = tmp_path / "model.safetensors"
    model = open_mlx(checkpoint)

    save(model, path)

    assert checkpoint.config.lm is not None
    names = {n for copies in mlx_names(checkpoint.config.lm).values() for n in copies}
    assert set(mx.load(str(path))) == names
    again = open_mlx(with_file(checkpoint, path))
    for part, matrix in model.weights.matrices.items():
        assert mx.array_equal(again.weights.matrices[part].arrays[0], matrix.arrays[0]), part
    for part, vector in model.weights.vectors.items():
        assert mx.array_equal(again.weights.vectors[part], vector), part


def test_names_are_those_of_the_released_files() -> None:
    names = mlx_names(LMSpec.from_config(LMS["shared sets, low rank"]))

    assert names["emb.3.weight"] == ("audio_embs.3.weight",)
    assert names["out_norm.alpha"] == ("out_norm.weight",)
    attention = "transformer.layers.0.self_attn"
    assert names[f"{attention}.in_projs.0.weight"] == (f"{attention}.in_proj.weight",)
    assert names["depformer_emb.1.low_rank.weight"] == ("depformer.slices.2.emb.low_rank.weight",)
    shared = tuple(f"depformer.slices.{k}.linear_in.weight" for k in (2, 3))
    assert names["depformer_in.2.weight"] == shared
    assert names["linears.3.weight"] == ("depformer.slices.3.linear_out.weight",)
    assert len(names["depformer.layers.1.norm2.alpha"]) == 4


def test_the_7b_model_has_the_tensors_of_the_released_bfloat16_file() -> None:
    """Counted by the rules of the reference's converter: names that are not shared sets."""
    spec = LMSpec.from_config(_model_keys(lm_config(PRESETS["7b"], "moshi")))

    names = mlx_names(spec)

    # 32 layers of 6, 16 audio tables, text table and head, norm; 8 slices of 6 layers of 6 and 3
    assert sum(map(len, names.values())) == 32 * 6 + 16 + 3 + 8 * (6 * 6 + 3)


def _model_keys(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if not k.endswith(("_name", "_type", "_config"))}


@pytest.mark.parametrize(("quant", "bound"), [("int8", 0.03), ("int4", 0.45)])
def test_quantized_logits_stay_near_torch(
    quant: str, bound: float, lm_checkpoint: Callable[[str], Checkpoint]
) -> None:
    checkpoint = lm_checkpoint("packed")
    model, exact = open_mlx(checkpoint, quant=quant), open_torch(checkpoint)
    mine, theirs = (logits_of(m, 3 * 8 + 4)[..., :48] for m in (model, exact))

    error = (mine - theirs).norm() / theirs.norm()

    assert 0 < error.item() < bound
    share = model.weights.num_bytes / sum(p.nbytes for p in exact.parameters())
    # Scales and biases are float32 here: 64 bits per group more.
    assert share == pytest.approx({"int8": 9 / 32, "int4": 6 / 32}[quant], rel=0.01)


@pytest.mark.parametrize(
    ("packing", "bound"), [(Packing(8, 64), 0.01), (Packing(4, 32), 0.12)], ids=str
)
def test_the_error_of_a_packed_matrix_is_bounded(packing: Packing, bound: float) -> None:
    mx.random.seed(0)
    weight, x = mx.random.normal((96, 256)), mx.random.normal((5, 256))
    packed = Packed.quantize(weight, packing, mx.float32)
    exact = Dense(weight)

    rows = mx.linalg.norm(packed.rows(mx.arange(96)) - weight) / mx.linalg.norm(weight)
    product = mx.linalg.norm(packed.project(x) - exact.project(x))
    product = product / mx.linalg.norm(exact.project(x))

    assert 0 < float(rows) < bound
    assert 0 < float(product) < bound


def test_rows_that_no_group_divides_stay_as_they_are(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    """A gated hidden size of 176 is no multiple of 64: upstream fails on the whole model."""
    model = open_mlx(lm_checkpoint("moshi"), quant="int8")

    matrices = model.weights.matrices
    assert isinstance(matrices["transformer.layers.0.gating.linear_in.weight"], Packed)
    assert isinstance(matrices["transformer.layers.0.gating.linear_out.weight"], Dense)
    assert torch.isfinite(logits_of(model, 2)).all()


def test_conditions_are_not_quantized(lm_checkpoint: Callable[[str], Checkpoint]) -> None:
    model = open_mlx(lm_checkpoint("conditioned"), quant="int4", dtype="bfloat16")

    prefix = "condition_provider.conditioners.description"
    for name in ("embed", "output_proj"):
        matrix = model.weights.matrix(f"{prefix}.{name}.weight")
        assert isinstance(matrix, Dense)
        assert matrix.weight.dtype == mx.float32


def test_the_released_int8_pytorch_form_loads(tmp_path: Path) -> None:
    """Rows of int8 with float32 scales named ``..._scb``."""
    config = BASE_LM | {"quantize": True}
    spec = LMSpec.from_config(config)
    shapes = lm_tensors(spec)
    generator = torch.Generator().manual_seed(0)
    tensors = random_tensors(
        {n: s for n, s in lm_tensors(LMSpec.from_config(BASE_LM), "F32").items()},
        _plain_fill,
    )
    for name, shape in shapes.items():
        if shape.dtype == "I8":
            tensors[name] = torch.randint(-127, 128, shape.shape, generator=generator).to(
                torch.int8
            )
            scale = torch.rand(shape.shape[0], generator=generator) * 0.2
            tensors[f"{name}_scb"] = scale
    plain = write_lm(tmp_path, BASE_LM)
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = replace(plain, config=replace(plain.config, lm=spec))

    mine, theirs = (logits_of(o(checkpoint), 6) for o in (open_mlx, open_torch))

    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


def _plain_fill(name: str, shape: tuple[int, ...]) -> Any:
    return Fill(1.0, constant=True) if name.endswith("alpha") else Fill(0.3)


def packed_file(checkpoint: Checkpoint, folder: Path, quant: str = "int4") -> Path:
    path = folder / "packed.safetensors"
    save(open_mlx(checkpoint, quant=quant), path, dtype="bfloat16")
    return path


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (with None) drop tensors of a file; ``__`` stands for a dot."""
    found = load_file(path)
    for name, tensor in tensors.items():
        found.pop(name.replace("__", "."), None)
        if tensor is not None:
            found[name.replace("__", ".")] = tensor
    save_file(found, path)


def test_a_packed_file_of_another_kind_than_asked_for_is_refused(
    lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = lm_checkpoint("packed")
    path = packed_file(checkpoint, tmp_path)

    with pytest.raises(
        CheckpointError, match=r"a file of int4 in groups of 32(.|\n)*quant at none"
    ):
        open_mlx(with_file(checkpoint, path), quant="int8")

    assert open_mlx(with_file(checkpoint, path), quant="int4").caps.dtype == "int4"


def test_a_partly_packed_file_loads(
    lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    """As the reference's speech synthesis quantizes: some layers, in other groups."""
    checkpoint = lm_checkpoint("packed")
    model = open_mlx(checkpoint)
    name = "transformer.layers.1.gating.linear_in.weight"
    dense = model.weights.matrix(name)
    packed = Packed.quantize(dense.stored(None)["weight"], Packing(6, 128), mx.float32)
    model.weights.matrices[name] = packed
    model = Moshi(model.lm, model.weights, model.place)
    path = tmp_path / "model.safetensors"

    save(model, path)

    again = open_mlx(with_file(checkpoint, path))
    found = again.weights.matrix(name)
    assert isinstance(found, Packed)
    assert found.packing == Packing(6, 128)
    assert torch.equal(logits_of(again, 4), logits_of(model, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_norm__weight": None}, r"missing, 1:\n *out_norm\.weight"),
        ({"text_linear__biases": None}, r"missing, 1:\n *text_linear\.biases"),
        ({"text_linear__bias": torch.zeros(48)}, r"unknown, 1:\n *text_linear\.bias"),
        (
            {"text_emb__scales": torch.zeros(49, 7, dtype=torch.bfloat16)},
            r"misshapen, 1:\n *text_emb\.weight: U32 \[49, 32\], BF16 \[49, 7\]",
        ),
        ({"out_norm__weight": torch.zeros(255)}, r"misshapen, 1:\n *out_norm\.weight: F32 \[255\]"),
        ({"out_norm__weight": torch.full((256,), torch.nan)}, r"NaN or infinity in 'out_norm"),
        (
            {"text_emb__scales": torch.full((49, 8), torch.inf, dtype=torch.bfloat16)},
            r"NaN or infinity in 'text_emb",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_does_not_fit_is_refused_with_what_is_wrong(
    changes: dict[str, torch.Tensor | None],
    message: str,
    lm_checkpoint: Callable[[str], Checkpoint],
    tmp_path: Path,
) -> None:
    checkpoint = lm_checkpoint("packed")
    path = packed_file(checkpoint, tmp_path)
    change(path, **changes)

    with pytest.raises(CheckpointError, match=message):
        open_mlx(with_file(checkpoint, path))


def test_the_config_of_another_model_is_refused(
    lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    path = packed_file(lm_checkpoint("packed"), tmp_path)

    with pytest.raises(CheckpointError, match="belongs to this file"):
        open_mlx(with_file(lm_checkpoint("moshi"), path))


def test_copies_of_a_shared_weight_that_differ_are_refused(
    lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = lm_checkpoint("moshi")
    path = tmp_path / "model.safetensors"
    save(open_mlx(checkpoint), path)
    norm = "depformer__slices__2__transformer__layers__0__norm1__weight"
    change(path, **{norm: torch.rand(32)})

    with pytest.raises(CheckpointError, match=r"slices\.2\S* differs from \S*slices\.0"):
        open_mlx(with_file(checkpoint, path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + bytes(60), "a GGUF version that is not read"),
        (b"PK\x03\x04" + bytes(60), "a PyTorch pickle"),
    ],
)
def test_other_formats_are_named(
    content: bytes,
    message: str,
    lm_checkpoint: Callable[[str], Checkpoint],
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=message):
        open_mlx(with_file(lm_checkpoint("moshi"), path))


def test_a_truncated_file_is_refused(
    lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = lm_checkpoint("moshi")
    assert checkpoint.lm_weights is not None
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoint.lm_weights.read_bytes()[:-10])

    with pytest.raises(CheckpointError, match="is truncated"):
        open_mlx(with_file(checkpoint, path))


def test_a_model_that_the_format_cannot_hold_is_not_saved(
    lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    model = open_mlx(lm_checkpoint("every other form"))

    with pytest.raises(CheckpointError, match="no place for norms before the audio heads"):
        save(model, tmp_path / "model.safetensors")

    assert not list(tmp_path.iterdir())


def test_progress_ends_at_the_bytes_of_the_file(
    lm_checkpoint: Callable[[str], Checkpoint], tmp_path: Path
) -> None:
    checkpoint = lm_checkpoint("packed")
    for found in (checkpoint, with_file(checkpoint, packed_file(checkpoint, tmp_path))):
        calls: list[tuple[int, int]] = []
        options = BackendOptions(backend="mlx", device="cpu")

        def tell(done: int, total: int, calls: list[tuple[int, int]] = calls) -> None:
            calls.append((done, total))

        opening.open_lm(found, options, tell)

        assert calls == sorted(calls)
        assert calls[-1][0] == calls[-1][1]
