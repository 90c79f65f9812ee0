"""Weights go from the file into a module on the meta device, split, cast and checked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moshi_pipe.errors import CheckpointError
from moshi_pipe.models.checkpoint import Checkpoint, ModelOptions, open_checkpoint
from moshi_pipe.models.layout import Layout, TensorSpec, lm_layout, mimi_layout
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.nn.load import load_into, load_lm, load_mimi

if TYPE_CHECKING:
    from pathlib import Path

IN_PROJ = "depformer.layers.1.self_attn.in_proj_weight"


@pytest.fixture(scope="module")
def hibiki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny translation model in float32: it has conditions, delays and a depth transformer."""
    folder = tmp_path_factory.mktemp("hibiki")
    make_checkpoint(folder, preset="tiny", kind="hibiki", dtype="float32")
    return folder


@pytest.fixture
def folder(hibiki: Path, tmp_path: Path) -> Path:
    return shutil.copytree(hibiki, tmp_path / "model")


def opened(folder: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(ModelOptions(name="t", path=str(folder), **options))


def empty(layout: Layout) -> nn.Module:
    """A module tree on the meta device with exactly the layout's names."""
    root = nn.Module()
    for name, spec in layout.tensors.items():
        if name.endswith("_scb"):
            continue
        owner = root
        *path, last = name.split(".")
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        tensor = torch.empty(spec.shape, device="meta")
        if "_codebook" in name:
            owner.register_buffer(last, tensor)
        else:
            owner.register_parameter(last, nn.Parameter(tensor))
    return root


def lm_module(checkpoint: Checkpoint) -> nn.Module:
    assert checkpoint.config.lm is not None
    return empty(lm_layout(checkpoint.config.lm))


def mimi_module(checkpoint: Checkpoint) -> nn.Module:
    assert checkpoint.mimi is not None
    return empty(mimi_layout(checkpoint.mimi))


def loaded_lm(
    checkpoint: Checkpoint, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    module = lm_module(checkpoint)
    load_lm(checkpoint, module, "cpu", dtype)
    return module.state_dict()


def change(path: Path, **changes: torch.Tensor) -> None:
    tensors = load_file(path)
    tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    save_file(tensors, path)


def test_a_codec_is_loaded_as_it_lies_in_the_file(folder: Path) -> None:
    checkpoint = opened(folder)
    module = mimi_module(checkpoint)

    load_mimi(checkpoint, module)

    stored = load_file(folder / "mimi.safetensors")
    state = module.state_dict()
    name = "quantizer.rvq_rest.vq.layers.6._codebook.embedding_sum"
    assert torch.equal(state[name], stored[name])
    fused = "encoder_transformer.transformer.layers.0.self_attn.in_proj_weight"
    split = "encoder_transformer.transformer.layers.0.self_attn.in_projs.0.weight"
    assert torch.equal(state[split], stored[fused])
    assert not any(tensor.is_meta for tensor in state.values())


def test_rows_of_a_fused_tensor_become_the_weight_sets(folder: Path) -> None:
    state = loaded_lm(opened(folder))

    rows = load_file(folder / "model.safetensors")[IN_PROJ].chunk(8)
    for i, part in enumerate(rows):
        assert torch.equal(state[f"depformer.layers.1.self_attn.in_projs.{i}.weight"], part)


def test_split_names_load_the_same(folder: Path) -> None:
    before = loaded_lm(opened(folder))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for i, rows in enumerate(tensors.pop(IN_PROJ).chunk(8)):
        tensors[f"depformer.layers.1.self_attn.in_projs.{i}.weight"] = rows.clone()
    save_file(tensors, path)

    after = loaded_lm(opened(folder))

    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_everything_is_cast_except_conditions(folder: Path, dtype: torch.dtype) -> None:
    state = loaded_lm(opened(folder), dtype)

    condition = "condition_provider.conditioners.description."
    for name, tensor in state.items():
        assert tensor.dtype == (torch.float32 if name.startswith(condition) else dtype)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(state["emb.3.weight"], stored["emb.3.weight"].to(dtype))


def test_hibiki_reads_an_early_end_of_stream_as_padding(folder: Path) -> None:
    state = loaded_lm(opened(folder))

    stored = load_file(folder / "model.safetensors")["text_emb.weight"]
    assert torch.equal(state["text_emb.weight"][2], stored[3])
    assert torch.equal(state["text_emb.weight"][4], stored[4])


def test_parameters_need_no_gradient(folder: Path) -> None:
    checkpoint = opened(folder)
    module = lm_module(checkpoint)

    load_lm(checkpoint, module)

    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(folder: Path, value: float) -> None:
    table = load_file(folder / "model.safetensors")["linears.3.weight"]
    table[5, 6] = value
    change(folder / "model.safetensors", linears__3__weight=table)

    with pytest.raises(CheckpointError, match=r"'linears\.3\.weight' ranges from"):
        loaded_lm(opened(folder))

    assert loaded_lm(opened(folder, check_finite=False))


def test_a_wrong_shape_is_found_before_anything_is_loaded(folder: Path) -> None:
    change(folder / "model.safetensors", out_norm__alpha=torch.ones(3))
    checkpoint = opened(folder)
    module = lm_module(checkpoint)

    with pytest.raises(CheckpointError, match=r"out_norm\.alpha: F32 \[3\]"):
        load_lm(checkpoint, module)

    assert all(parameter.is_meta for parameter in module.parameters())


def test_a_module_of_another_model_is_refused(folder: Path) -> None:
    checkpoint = opened(folder)
    module = lm_module(checkpoint)
    module.register_parameter("more", nn.Parameter(torch.empty(1, device="meta")))

    with pytest.raises(CheckpointError, match="module and config do not agree"):
        load_lm(checkpoint, module)


def with_lora(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "lora.safetensors")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"lora": True, "lora_rank": 4, "lora_scaling": 0.5, "lora_name": "lora.safetensors"}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_is_added_in_the_models_type(folder: Path, dtype: torch.dtype) -> None:
    before = loaded_lm(opened(folder), dtype)
    down, up = torch.randn(8 * 4, 64), torch.randn(8 * 192, 4)
    head_down, head_up = torch.randn(4, 128), torch.randn(512, 4)
    stem = IN_PROJ.removesuffix("_weight")
    with_lora(
        folder,
        {
            f"{stem}.lora_A.weight": down,
            f"{stem}.lora_B.weight": up,
            "text_linear.lora_A.weight": head_down,
            "text_linear.lora_B.weight": head_up,
        },
    )

    after = loaded_lm(opened(folder), dtype)

    name = "depformer.layers.1.self_attn.in_projs.5.weight"
    update = up.chunk(8)[5].to(dtype) @ down.chunk(8)[5].to(dtype)
    assert torch.equal(after[name], before[name] + 0.5 * update)
    head = before["text_linear.weight"] + 0.5 * (head_up.to(dtype) @ head_down.to(dtype))
    assert torch.equal(after["text_linear.weight"], head)
    assert torch.equal(after["emb.0.weight"], before["emb.0.weight"])


@pytest.mark.parametrize(
    "names",
    [["nothing.lora_A.weight"], ["emb.0.lora_A.weight"], ["text_linear.lora_A.weight"]],
    ids=["unknown", "not linear", "half"],
)
def test_a_lora_file_of_another_model_is_refused(folder: Path, names: list[str]) -> None:
    with_lora(folder, {name: torch.zeros(4, 128) for name in names})

    with pytest.raises(CheckpointError, match="does not fit the model"):
        loaded_lm(opened(folder))


def test_int8_weights_become_the_models_type(tmp_path: Path) -> None:
    layout = Layout(
        {
            "a.in_projs.0.weight": TensorSpec((3, 4), "I8"),
            "a.in_projs.1.weight": TensorSpec((3, 4), "I8"),
            "a.in_projs.0.weight_scb": TensorSpec((3,), "F32"),
            "a.in_projs.1.weight_scb": TensorSpec((3,), "F32"),
        },
        {
            "a.in_proj_weight": ("a.in_projs.0.weight", "a.in_projs.1.weight"),
            "a.in_proj_weight_scb": ("a.in_projs.0.weight_scb", "a.in_projs.1.weight_scb"),
        },
    )
    whole = torch.randn(6, 4)
    scale = whole.abs().amax(1)
    stored = torch.round(127 * whole / scale[:, None]).to(torch.int8)
    path = tmp_path / "q8.safetensors"
    save_file({"a.in_proj_weight": stored, "a.in_proj_weight_scb": scale}, path)
    module = empty(layout)

    load_into(module, path, layout, dtype=torch.float32)

    back = torch.cat([module.get_parameter(f"a.in_projs.{i}.weight") for i in range(2)])
    assert (back - whole).abs().max() <= scale.max() / 127
    assert back.dtype == torch.float32


def test_progress_reaches_the_whole(folder: Path) -> None:
    checkpoint = opened(folder)
    module = mimi_module(checkpoint)
    calls: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        calls.append((done, total))

    load_mimi(checkpoint, module, progress=note)

    assert calls[-1][0] == calls[-1][1]


MEMORY = """
import sys, threading, time, torch
from pathlib import Path
from torch import nn
from moshi_pipe.models.layout import Layout, TensorSpec, header_bytes
from moshi_pipe.nn.load import load_into

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
names = [f"w{i}" for i in range(8)]
layout = Layout({n: TensorSpec((4096, 2048), "BF16") for n in names})  # 16.8 MB each
with path.open("wb") as file:
    file.write(header_bytes(layout.tensors))
    for _ in names:
        file.write(bytes(2 * 4096 * 2048))
module = nn.Module()
for n in names:
    module.register_parameter(n, nn.Parameter(torch.empty(4096, 2048, device="meta")))
torch.zeros(10).to(torch.bfloat16)
torch.aminmax(torch.zeros(10, dtype=torch.bfloat16))
before, peak = anonymous(), [0]
load_into(module, path, layout, dtype=dtype,
          progress=lambda done, total: peak.__setitem__(0, max(peak[0], anonymous())))
print((max(peak[0], anonymous()) - before) / 1e6)
"""


@pytest.mark.heavy
@pytest.mark.parametrize(("dtype", "size_mb"), [("bfloat16", 134.2), ("float32", 268.4)])
def test_loading_holds_no_second_copy(tmp_path: Path, dtype: str, size_mb: float) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "w.safetensors"), dtype],
        capture_output=True,
        text=True,
        check=True,
    )

    # One tensor of scratch is 17 MB in the file's type.
    assert float(answer.stdout) < size_mb + 25
