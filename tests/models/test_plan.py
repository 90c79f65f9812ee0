"""Memory is predicted from the config alone."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from moshi_pipe.errors import ConfigError
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models import plan
from moshi_pipe.models.checkpoint import LM, ModelOptions, open_checkpoint
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.plan import Plan, free_cpu_bytes, free_gpu_bytes, plan_model
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from pathlib import Path

MOSHIKO = ModelOptions(name="moshiko", repo="kyutai/moshiko-pytorch-bf16")


def on_gpu(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    monkeypatch.setattr(plan, "free_gpu_bytes", lambda: [free_bytes])


def rows(made: Plan, part: str) -> dict[str, int]:
    return {row.what: row.num_bytes for row in made.rows if row.part == part}


def test_the_7b_takes_its_weights_and_its_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, 80_000_000_000)

    made = plan_model(MOSHIKO)

    lm = rows(made, "lm")
    assert sum(b for what, b in lm.items() if what.startswith("weights")) == 2 * 7_687_729_152
    assert lm["kv cache, 3000 frames"] == 2 * 32 * 3000 * 4096 * 2
    assert rows(made, "mimi")["weights"] == 4 * 96_151_393
    assert (made.device, made.dtype) == ("cuda:0", "bfloat16")
    assert made.fits
    assert made.num_parameters == 7_687_729_152 + 96_151_393


def test_slots_and_context_scale_the_ring_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, 80_000_000_000)
    one = plan_model(MOSHIKO)

    many = plan_model(MOSHIKO, slots=8, context=375)

    ring = rows(many, "lm")["kv cache, 375 frames"]
    assert ring == rows(one, "lm")["kv cache, 3000 frames"]
    weights = "weights, temporal"
    assert rows(many, "lm")[weights] == rows(one, "lm")[weights]


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_the_ring_takes_what_the_plan_says(tmp_path: Path, kv_dtype: str) -> None:
    make_checkpoint(tmp_path, preset="tiny", dtype="float32")
    made = plan_model(
        ModelOptions(name="t", path=str(tmp_path)), device="cpu", kv_dtype=kv_dtype, slots=4
    )

    checkpoint = open_checkpoint(ModelOptions(name="t", path=str(tmp_path)), parts=[LM])
    options = BackendOptions(device="cpu", kv_dtype=kv_dtype)
    state = load_plugins().open_lm(checkpoint, options, lambda done, total: None).new_state(4)

    planned = sum(b for what, b in rows(made, "lm").items() if what.startswith("kv cache"))
    tensors = [
        getattr(ring, field.name)
        for stack in (state.temporal, state.depth)
        for ring in stack.rings
        for field in fields(ring)
    ]
    assert planned == sum(tensor.nbytes for tensor in tensors if tensor is not None)


def test_guidance_takes_two_rows_per_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, 80_000_000_000)
    options = ModelOptions(name="h", repo="kyutai/hibiki-2b-pytorch-bf16")

    one, two = plan_model(options), plan_model(options, rows_per_slot=2)

    what = "kv cache, 1500 frames"
    assert rows(two, "lm")[what] == 2 * rows(one, "lm")[what]


@pytest.mark.parametrize(
    ("free", "slots", "advice"),
    [
        (40_000_000_000, 64, r"try engine\.slots=\d+"),
        (17_500_000_000, 1, r"try a context of \d+ frames instead of 3000"),
        (8_000_000_000, 1, "try another device or a smaller model"),
    ],
    ids=["slots", "context", "device"],
)
def test_what_does_not_fit_says_what_to_change(
    monkeypatch: pytest.MonkeyPatch, free: int, slots: int, advice: str
) -> None:
    on_gpu(monkeypatch, free)

    made = plan_model(MOSHIKO, slots=slots)

    assert made.fits is False
    assert made.verdict.startswith("does not fit: needs ")
    assert re.search(advice, made.verdict)


def test_the_number_of_slots_that_is_advised_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu(monkeypatch, 40_000_000_000)
    most = plan_model(MOSHIKO, slots=64).max_slots

    assert most is not None
    assert plan_model(MOSHIKO, slots=most).fits
    assert not plan_model(MOSHIKO, slots=most + 1).fits


def test_without_a_gpu_the_plan_is_for_the_cpu_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "free_gpu_bytes", list)

    made = plan_model(ModelOptions())

    assert (made.device, made.dtype) == ("cpu", "float32")
    assert made.warnings == ("this model's weights are random",)


def test_a_gpu_that_is_not_there_has_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "free_gpu_bytes", list)

    made = plan_model(MOSHIKO, device="cuda:3")

    assert made.fits is None
    assert "the free memory of cuda:3 is not known" in made.verdict


def test_a_codec_alone_needs_no_language_model() -> None:
    made = plan_model(ModelOptions(), device="cpu", parts=("mimi",))

    assert {row.part for row in made.rows} == {"mimi", "runtime"}
    assert made.context is None


@pytest.mark.parametrize(
    "options", [{"dtype": "bf16"}, {"kv_dtype": "int3"}, {"device": "tpu"}, {"slots": 0}]
)
def test_wrong_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        plan_model(ModelOptions(), **{"device": "cpu", **options})


def test_free_memory_comes_from_the_kernel_and_the_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   50 kB\n")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81000\necho 40\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert free_cpu_bytes(meminfo) == 51_200
    assert free_cpu_bytes(tmp_path / "none") is None
    assert free_gpu_bytes() == [81_000 * 2**20, 40 * 2**20]
    assert free_gpu_bytes("no-such-tool") == []


def test_planning_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\n"
        "from moshi_pipe.models.plan import plan_model, ModelOptions\n"
        "plan_model(ModelOptions(), device='cpu')\n"
        "print([m for m in ('torch', 'numpy', 'huggingface_hub') if m in sys.modules])"
    )

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "[]"
