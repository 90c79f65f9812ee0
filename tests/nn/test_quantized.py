from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moshi_pipe.errors import ConfigError
from moshi_pipe.nn.quantized import (
    Int4Linear,
    Int8Linear,
    Product,
    QuantizedLinear,
    choose_product,
    quantize_int4,
    quantize_int8,
    relative_error,
)
from moshi_pipe.nn.weight_quantizer import WeightQuantizer

ON_A_CPU = {
    bits: [name for name, product in cls.products.items() if not product.by_name]
    for bits, cls in ((8, Int8Linear), (4, Int4Linear))
}
PRODUCTS = [(bits, name) for bits, names in ON_A_CPU.items() for name in names]


def weight(dim_out: int = 64, dim_in: int = 96, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim_out, dim_in, generator=generator) * 0.05


def layer_of(bits: int, weight_OD: Tensor, bias_O: Tensor | None = None) -> QuantizedLinear:
    if bits == 8:
        return Int8Linear(*quantize_int8(weight_OD), bias_O)
    return Int4Linear(*quantize_int4(weight_OD, 32), bias_O)


def test_int8_rounds_each_row_to_its_own_255_levels() -> None:
    weight_OD = torch.tensor([[1.0, -0.5, 0.004], [0.0, 0.0, 0.0], [-254.0, 127.0, 2.0]])

    codes_OD, absmax_O = quantize_int8(weight_OD)

    assert codes_OD.tolist() == [[127, -64, 1], [0, 0, 0], [-127, 64, 1]]
    assert absmax_O.tolist() == [1.0, 0.0, 254.0]


def test_int4_gives_each_group_its_own_16_levels() -> None:
    weight_OD = torch.cat([torch.arange(16) - 8.0, torch.full((16,), 3.0)])[None]

    layer = Int4Linear(*quantize_int4(weight_OD, 16))

    torch.testing.assert_close(layer.widened(), weight_OD, rtol=0, atol=0)
    assert len(set(layer.codes()[0, :16].tolist())) == 16
    assert layer.num_bytes == 16 + 2 * 4


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.01), (4, 0.1)])
def test_the_error_of_a_layer_is_that_of_its_widened_weights(bits: int, limit: float) -> None:
    weight_OD = weight(3000, 1024)
    layer = layer_of(bits, weight_OD)

    error = relative_error(weight_OD, layer)

    off = (layer.widened() - weight_OD).double().norm() / weight_OD.double().norm()
    assert error == pytest.approx(float(off), rel=1e-4)
    assert 0 < error < limit


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_of_a_gpu_is_named_and_then_refused_on_a_cpu(bits: int) -> None:
    layer = layer_of(bits, weight())
    assert choose_product(layer, "auto", exact=False) in ON_A_CPU[bits]
    with pytest.raises(ConfigError, match="'triton' does not run on this machine"):
        choose_product(layer, "triton", exact=False)


@pytest.mark.parametrize(("bits", "product"), PRODUCTS)
def test_every_product_agrees_with_the_widened_weights(bits: int, product: str) -> None:
    layer = layer_of(bits, weight(), torch.arange(64.0))
    wide_OD = layer.widened()
    x = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(1))

    layer.use(product)
    y = layer(x)

    wanted = x @ wide_OD.t() + torch.arange(64.0)
    assert y.shape == (2, 3, 64)
    assert float((y - wanted).norm() / (x @ wide_OD.t()).norm()) < 0.03
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("product", ["rows", "widen"])
@pytest.mark.parametrize("num_rows", [4, 8, 16])
def test_a_row_does_not_depend_on_the_rows_beside_it(product: str, num_rows: int) -> None:
    layer = layer_of(8, weight(512, 256))
    layer.use(product)
    x_MD = torch.randn(num_rows, 256, generator=torch.Generator().manual_seed(2))
    others_MD = x_MD.clone()
    others_MD[1:] *= 100

    assert torch.equal(layer(x_MD)[0], layer(others_MD)[0])


@given(num_rows=st.integers(1, 17), seed=st.integers(0, 99))
def test_the_integer_product_is_the_same_alone_and_in_any_batch(num_rows: int, seed: int) -> None:
    layer = layer_of(8, weight(48, 64, seed))
    layer.use("rows")
    x_MD = torch.randn(num_rows, 64, generator=torch.Generator().manual_seed(seed))

    alone_MO = torch.cat([layer(x_MD[m : m + 1]) for m in range(num_rows)])

    assert torch.equal(layer(x_MD), alone_MO)


def test_what_is_not_finite_stays_in_its_row() -> None:
    layer = layer_of(8, weight())
    layer.use("rows")
    x_MD = torch.randn(4, 96)
    clean_MO = layer(x_MD)
    x_MD[2, 5] = float("nan")

    y_MO = layer(x_MD)

    assert torch.equal(y_MO[[0, 1, 3]], clean_MO[[0, 1, 3]])
    assert y_MO[2].isnan().all()


@pytest.mark.parametrize("product", ON_A_CPU[8])
def test_an_int8_layer_is_saved_as_plain_tensors_however_it_multiplies(product: str) -> None:
    codes_OD, absmax_O = quantize_int8(weight())
    layer = Int8Linear(codes_OD.clone(), absmax_O)
    layer.use(product)

    state = layer.state_dict()

    assert torch.equal(state["weight"], codes_OD)
    assert torch.equal(state["weight_scb"], absmax_O)


def test_a_packed_layer_holds_its_weights_once() -> None:
    layer = layer_of(8, weight())
    layer.use("rows")

    assert layer.weight.numel() == 0


def test_a_measurement_keeps_products_that_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Product(lambda x_MD, layer: x_MD[:, :1].expand(-1, layer.dim_out), tolerance=0.03)
    broken = Product(_raise, tolerance=0.03)
    right = Int8Linear.products["widen"]
    monkeypatch.setattr(Int8Linear, "products", {"wrong": wrong, "broken": broken, "right": right})
    layer = Int8Linear(*quantize_int8(weight()))

    assert choose_product(layer, "auto", exact=False) == "right"
    with pytest.raises(ConfigError, match="does not run on this machine"):
        choose_product(layer, "broken", exact=False)


def _raise(x_MD: Tensor, layer: nn.Module) -> Tensor:
    raise RuntimeError("not on this machine")


def test_the_references_numerics_round_weights_alone() -> None:
    assert choose_product(layer_of(8, weight()), "auto", exact=True) == "widen"
    assert choose_product(layer_of(4, weight()), "auto", exact=True) == "widen"


def test_an_unknown_product_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="widen"):
        choose_product(layer_of(8, weight()), "wide", exact=False)


def test_rows_that_groups_do_not_fill_become_int8() -> None:
    quantizer = WeightQuantizer("int4", group_size=64, product="auto", exact=False, device="cpu")

    wide = quantizer.linear("text_linear.weight", weight(64, 96), None)
    narrow = quantizer.linear("linears.0.weight", weight(64, 128), None)

    assert isinstance(wide, Int8Linear)
    assert isinstance(narrow, Int4Linear)
    assert "1 of 2 layers int8" in quantizer.summary


def test_an_odd_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="quant_group must be an even number"):
        WeightQuantizer("int4", group_size=33, product="auto", exact=False, device="cpu")


def test_the_summary_says_sizes_errors_and_products() -> None:
    quantizer = WeightQuantizer("int8", group_size=32, product="widen", exact=False, device="cpu")

    quantizer.linear("a.weight", weight(64, 96), None)

    assert quantizer.summary.startswith(
        "int8: 6.4 kB instead of 24.58 kB, largest error of a layer"
    )
    assert quantizer.summary.endswith("multiplied by widen")
