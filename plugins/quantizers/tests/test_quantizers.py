"""Forms of torchao and bitsandbytes on a small random model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import moshi_pipe_quantizers
import pytest
import torch
from support.formats import BASE, LMS, open_lm_at, write_lm

from moshi_pipe.errors import BackendError
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.protocols import Controls, SpeechLM
from moshi_pipe.nn.convert import convert
from moshi_pipe.plugins import Plugins, load_plugins

if TYPE_CHECKING:
    from pathlib import Path

HERE = {"torchao-int8": 0.05, "torchao-int8-weights": 0.02, "bnb-int8": 0.05, "bnb-nf4": 0.3}
"""Forms that run on a CPU, and bounds for the error of logits."""

PACKAGES = {"torchao": "torchao", "bnb": "bitsandbytes"}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins([("quantizers", moshi_pipe_quantizers)], installed=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_lm(folder, LMS["packable"])
    return folder


def need(quant: str) -> None:
    pytest.importorskip(PACKAGES[quant.partition("-")[0]])


def opened(plugins: Plugins, folder: Path, quant: str, **options: Any) -> SpeechLM:
    given = {"device": "cpu", "dtype": "float32", **options}
    checkpoint = open_lm_at(folder)
    return plugins.open_lm(checkpoint, BackendOptions(quant=quant, **given), lambda d, t: None)


def logits_of(lm: SpeechLM, num_slots: int = 1) -> torch.Tensor:
    """Of given columns, the same in every slot, over more than three contexts."""
    state, valid_B = lm.new_state(num_slots), torch.ones(num_slots, dtype=torch.bool)
    zeros, counts = torch.zeros(num_slots), torch.zeros(num_slots, dtype=torch.int64)
    controls = Controls(zeros, zeros, counts, counts)
    columns = torch.randint(0, 32, (3 * BASE["context"] + 2, 1, 9), generator=torch.Generator())
    device = lm.caps.device
    steps = [
        lm.step(column.repeat(num_slots, 1).to(device), valid_B.to(device), controls, state)
        for column in columns
    ]
    return torch.stack([step.extra["text_logits_BV"].clone() for step in steps])


def error_of(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.dist(got, wanted) / torch.linalg.vector_norm(wanted))


@pytest.mark.parametrize("quant", HERE)
def test_logits_stay_within_the_bound(plugins: Plugins, folder: Path, quant: str) -> None:
    need(quant)

    lm = opened(plugins, folder, quant)

    error = error_of(logits_of(lm), logits_of(opened(plugins, folder, "none")))
    assert 0 < error < HERE[quant]
    assert lm.caps.quant is not None
    assert lm.caps.quant.startswith(f"{quant}: ")


@pytest.mark.parametrize("quant", ["torchao-int8", "bnb-int8"])
def test_integer_sums_do_not_depend_on_the_company(
    plugins: Plugins, folder: Path, quant: str
) -> None:
    need(quant)
    logits = logits_of(opened(plugins, folder, quant), num_slots=4)

    assert torch.equal(logits[:, 0], logits[:, 3])


def test_the_int8_rows_of_a_file_are_taken_as_they_are(
    plugins: Plugins, folder: Path, tmp_path: Path
) -> None:
    need("bnb-int8")
    convert(open_lm_at(folder), tmp_path, to="torch-q8")

    adopted = logits_of(opened(plugins, tmp_path, "bnb-int8"))

    assert error_of(adopted, logits_of(opened(plugins, tmp_path, "none"))) < 0.05


@pytest.mark.parametrize(
    ("quant", "said"),
    [
        ("torchao-int3", "there is no quant 'torchao-int3'"),
        ("bnb-int4", "there is no quant 'bnb-int4'"),
        ("torchao-fp8", "needs CUDA"),
        ("torchao-int4", "needs CUDA"),
    ],
)
def test_what_is_not_there_is_said(plugins: Plugins, folder: Path, quant: str, said: str) -> None:
    with pytest.raises(BackendError, match=said):
        opened(plugins, folder, quant)


@pytest.mark.parametrize("quant", ["torchao-int8", "bnb-nf4"])
def test_a_missing_package_is_named(
    plugins: Plugins, folder: Path, quant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = PACKAGES[quant.partition("-")[0]]
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(BackendError, match=package) as caught:
        opened(plugins, folder, quant)

    assert "pip install" in str(caught.value)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("quant", ["torchao-fp8", "torchao-int4", "torchao-int8", "bnb-nf4"])
def test_on_a_gpu(plugins: Plugins, folder: Path, quant: str) -> None:
    need(quant)
    options = {"device": "cuda", "dtype": "bfloat16"}

    lm = opened(plugins, folder, quant, **options)

    plain = logits_of(opened(plugins, folder, "none", **options))
    assert error_of(logits_of(lm).float(), plain.float()) < 0.3
