"""Linear layers in the form that suits their shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from moshi_pipe.nn import linear
from moshi_pipe.nn.linear import project


@pytest.mark.parametrize("maker", ["AuthenticAMD", "GenuineIntel", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 8, 16, 33, 64, 65])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)], ids=["wider", "narrower"])
def test_every_form_is_the_same_product(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    num_rows: int,
    dtype: torch.dtype,
    maker: str,
) -> None:
    monkeypatch.setattr(linear, "_MAKER", maker)
    generator = torch.Generator().manual_seed(0)
    dim_out, dim_in = shape
    weight_OD = torch.randn(shape, generator=generator).to(dtype)
    bias_O = torch.randn(dim_out, generator=generator).to(dtype)
    x = torch.randn(num_rows, 1, dim_in, generator=generator).to(dtype)

    y = project(x, weight_OD, bias_O)

    assert y.shape == (num_rows, 1, dim_out)
    assert y.is_contiguous()
    assert y.dtype == dtype
    exact = F.linear(x.double(), weight_OD.double(), bias_O.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance * 8)


def test_weights_of_a_class_of_their_own_are_applied_by_f_linear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(torch.Tensor):
        """Knows one operation, as quantized weights do."""

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is not F.linear:
                return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
            x, weight, *_ = args
            return F.linear(x, weight.as_subclass(torch.Tensor)) + 1

    monkeypatch.setattr(linear, "_MAKER", "GenuineIntel")
    layer = torch.nn.Linear(8, 4, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    wanted = F.linear(x, layer.weight) + 1
    own = torch.nn.Parameter(layer.weight.data.as_subclass(Own), requires_grad=False)
    layer.weight = own

    assert torch.equal(linear.apply_fast(x, layer).as_subclass(torch.Tensor), wanted)
