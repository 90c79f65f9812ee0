"""A whole language model with quantized linear layers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moshi_pipe.errors import BackendError
from moshi_pipe.hooks import BackendOptions, hookimpl
from moshi_pipe.models.checkpoint import LM, Checkpoint, ModelOptions, open_checkpoint
from moshi_pipe.models.layout import is_linear
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.protocols import Controls
from moshi_pipe.nn.convert import convert
from moshi_pipe.nn.load import load_lm
from moshi_pipe.nn.moshi import Moshi
from moshi_pipe.nn.quantized import Int8Linear, QuantizedLinear
from moshi_pipe.nn.weight_quantizer import WeightQuantizer
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path, preset="tiny", dtype="float32")
    return path


def opened(folder: Path, quantizer: WeightQuantizer | None = None, **options: Any) -> Moshi:
    checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])
    assert checkpoint.config.lm is not None
    with torch.device("meta"):
        model = Moshi(checkpoint.config.lm, **options)
    load_lm(checkpoint, model, quantizer=quantizer)
    return model


def quantizer_of(name: str, product: str = "auto", *, exact: bool = False) -> WeightQuantizer:
    return WeightQuantizer(name, group_size=32, product=product, exact=exact, device="cpu")


def logits_of(model: Moshi, num_slots: int = 1) -> Tensor:
    """Text logits under the same inputs for everyone, ``[steps, B, V]``."""
    spec = model.spec
    state = model.new_state(num_slots)
    zeros, counts = torch.zeros(num_slots), torch.zeros(num_slots, dtype=torch.int64)
    controls = Controls(zeros, zeros, counts, counts)
    valid_B = torch.ones(num_slots, dtype=torch.bool)
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(STEPS):
        codes_K = torch.randint(spec.cardinality, (spec.num_codebooks,), generator=generator)
        text = torch.randint(spec.text_cardinality, (1,), generator=generator)
        column_BS = torch.cat([text, codes_K]).expand(num_slots, -1)
        step = model.step(column_BS, valid_B, controls, state)
        rows.append(step.extra["text_logits_BV"].clone())
    return torch.stack(rows)


def error_of(logits: Tensor, wanted: Tensor) -> float:
    return float((logits - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("name", "product", "limit"),
    [
        ("int8", "rows", 0.03),
        ("int8", "widen", 0.015),
        ("int4", "int4pack", 0.25),
        ("int4", "widen", 0.25),
    ],
)
def test_logits_stay_within_the_bound_of_the_form(
    folder: Path, name: str, product: str, limit: float
) -> None:
    wanted = logits_of(opened(folder))

    error = error_of(logits_of(opened(folder, quantizer_of(name, product))), wanted)

    assert 0 < error < limit


def test_the_layers_of_both_transformers_and_the_heads_are_quantized(folder: Path) -> None:
    quantizer = quantizer_of("int8")
    plain, model = opened(folder), opened(folder, quantizer)

    names = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert names == {name for name, _ in plain.named_parameters() if is_linear(name)}
    assert {layer.name for layer in quantizer.layers} == names
    tables = [name for name, _ in model.named_parameters() if "emb" in name]
    assert tables == [name for name, _ in plain.named_parameters() if "emb" in name]


@pytest.mark.parametrize("num_slots", [4, 8])
def test_a_slot_of_an_int8_model_is_the_same_alone_and_in_a_batch(
    folder: Path, num_slots: int
) -> None:
    model = opened(folder, quantizer_of("int8", "rows"), numerics="fast")

    batched = logits_of(model, num_slots)

    assert all(torch.equal(batched[:, b], batched[:, 0]) for b in range(num_slots))


def test_a_saved_int8_model_loads_without_being_rounded_again(folder: Path, tmp_path: Path) -> None:
    quantizer = quantizer_of("int8", "rows")
    model = opened(folder, quantizer)
    write_released_int8(folder, model, tmp_path)

    again = quantizer_of("int8", "rows")
    loaded = opened(tmp_path, again)

    assert torch.equal(logits_of(loaded), logits_of(model))
    assert all(layer.error is None for layer in again.layers)


def test_an_int8_file_may_be_widened_or_become_int4(folder: Path, tmp_path: Path) -> None:
    model = opened(folder, quantizer_of("int8", "widen"))
    write_released_int8(folder, model, tmp_path)
    wanted = logits_of(model)

    assert error_of(logits_of(opened(tmp_path)), wanted) < 1e-4
    int4 = opened(tmp_path, quantizer_of("int4"))
    assert error_of(logits_of(int4), wanted) < 0.25


def test_an_mlx_file_keeps_its_codes(folder: Path, tmp_path: Path) -> None:
    convert(open_checkpoint(ModelOptions(path=str(folder))), tmp_path, to="mlx-q4")
    wanted = logits_of(opened(tmp_path))
    quantizer = quantizer_of("int4", "widen")

    kept = logits_of(opened(tmp_path, quantizer))

    assert error_of(kept, wanted) < 1e-5
    assert any(layer.error is None and layer.num_bits == 4 for layer in quantizer.layers)


def test_what_is_quantized_at_load_is_what_a_converted_file_holds(
    folder: Path, tmp_path: Path
) -> None:
    convert(open_checkpoint(ModelOptions(path=str(folder))), tmp_path, to="torch-q8")

    converted = opened(tmp_path, quantizer_of("int8", "rows"))

    assert torch.equal(
        logits_of(converted), logits_of(opened(folder, quantizer_of("int8", "rows")))
    )


def write_released_int8(folder: Path, model: Moshi, out: Path) -> None:
    """Write a model as the int8 checkpoints are: codes, and row maxima under ``_scb``."""
    config = json.loads((folder / "config.json").read_text())
    config["quantize"] = True
    (out / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, out / config["moshi_name"])
    for name in (config["mimi_name"], config["tokenizer_name"]):
        (out / name).write_bytes((folder / name).read_bytes())
    assert load_file(out / config["moshi_name"])["text_linear.weight"].dtype == torch.int8


class Halver:
    """A quantizer of somebody else: it keeps half of each weight's precision."""

    summary = "halved"

    @hookimpl
    def open_quantizer(self, options: BackendOptions, device: str) -> Halver | None:
        return self if options.quant == "half" else None

    def linear(self, name: str, weight_OD: Tensor, bias_O: Tensor | None) -> nn.Module:
        layer = torch.nn.Linear(weight_OD.shape[1], weight_OD.shape[0], bias=bias_O is not None)
        layer.weight = torch.nn.Parameter(weight_OD.half().float(), requires_grad=False)
        return layer

    def adopt_int8(self, *given: Any) -> None:
        return None

    def adopt_affine(self, *given: Any, bits: int) -> None:
        return None


def open_with(folder: Path, quant: str) -> Any:
    checkpoint: Checkpoint = open_checkpoint(ModelOptions(path=str(folder)), parts=[LM])
    plugins = load_plugins([("halver", Halver())], installed=False)
    return plugins.open_lm(checkpoint, BackendOptions(device="cpu", quant=quant), lambda d, t: None)


def test_a_plugins_quantizer_is_chosen_by_name(folder: Path) -> None:
    lm = open_with(folder, "half")

    assert lm.caps.quant == "halved"
    assert error_of(logits_of(lm), logits_of(opened(folder))) < 0.01


def test_the_packages_own_is_chosen_and_says_what_it_did(folder: Path) -> None:
    lm = open_with(folder, "int8")

    assert isinstance(lm.text_linear, Int8Linear)
    assert lm.caps.quant.startswith("int8: ")


def test_an_unknown_form_names_the_closest(folder: Path) -> None:
    with pytest.raises(BackendError, match="no plugin quantizes to 'int88'") as caught:
        open_with(folder, "int88")
    assert "int8" in str(caught.value.wanted)


MEMORY = """
import sys, torch
from pathlib import Path
from moshi_pipe.models.layout import Layout, TensorSpec, header_bytes
from moshi_pipe.nn.load import load_into
from moshi_pipe.nn.weight_quantizer import WeightQuantizer

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

path, name = Path(sys.argv[1]), sys.argv[2]
shape, names = (2048, 2048), [f"l{i}.weight" for i in range(64)]
layout = Layout({n: TensorSpec(shape, "BF16") for n in names})  # 8.4 MB each
with path.open("wb") as file:
    file.write(header_bytes(layout.tensors))
    for _ in names:
        piece = torch.randn(512, 2048).bfloat16().view(torch.int16).numpy().tobytes()
        for _ in range(4):
            file.write(piece)
with torch.device("meta"):
    module = torch.nn.ModuleDict({n[:-7]: torch.nn.Linear(2048, 2048, bias=False) for n in names})
quantizer = WeightQuantizer(name, group_size=32, product="auto", exact=False, device="cpu")
quantizer.linear("warm", torch.randn(64, 64), None)  # kernels and their libraries
before, peak = anonymous(), [0]
load_into(module, path, layout, quantizer=quantizer,
          progress=lambda done, total: peak.__setitem__(0, max(peak[0], anonymous())))
stored = sum(layer.num_bytes for layer in quantizer.layers[1:])
print(max(peak[0], anonymous()) - before, stored)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_the_full_model_is_never_in_memory(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "w.safetensors"), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    grown, stored = map(int, done.stdout.split())
    assert grown < 1.15 * stored
