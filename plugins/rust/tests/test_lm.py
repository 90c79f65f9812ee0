"""The language model in Rust does what it does on PyTorch."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from moshi_pipe_rust.native import load_native
from rust_models import Runner, candle_names, rust_lm, tokens, torch_lm, write_lm
from support.golden import BASE_LM, CONDITIONED_LM, DELAYED_LM, STT_LM

from moshi_pipe.errors import BackendError, ConfigError
from moshi_pipe.models.protocols import SpeechLM

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe_rust.lm import RustLM

CONTEXT = BASE_LM["context"]
FORMS = {"own": {}, "portable": {"portable": True}}
GROUPED = BASE_LM | {"kv_repeat": 2, "depformer_kv_repeat": 1}


@pytest.fixture(scope="module")
def rust(tmp_path_factory: pytest.TempPathFactory) -> RustLM:
    model = torch_lm(BASE_LM)
    return rust_lm(write_lm(tmp_path_factory.mktemp("lm"), model), model.spec)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    "config", [BASE_LM, DELAYED_LM, STT_LM, GROUPED], ids=["base", "delayed", "stt", "grouped"]
)
def test_tokens_equal_torch_for_many_contexts(
    tmp_path: Path, config: dict[str, object], temperature: float, form: str
) -> None:
    reference = torch_lm(config)
    model = rust_lm(write_lm(tmp_path, reference), reference.spec, **FORMS[form])
    theirs, ours = (Runner(lm, 2, temperature) for lm in (reference, model))

    for _ in range(5 * CONTEXT):
        wanted, got = theirs.step(), ours.step()
        torch.testing.assert_close(
            got.extra["text_logits_BV"], wanted.extra["text_logits_BV"], atol=1e-4, rtol=0
        )
        assert [tokens(got, slot) for slot in (0, 1)] == [tokens(wanted, slot) for slot in (0, 1)]
        for head, theirs_head in zip(
            got.extra.get("extra_heads", []), wanted.extra.get("extra_heads", []), strict=True
        ):
            torch.testing.assert_close(head, theirs_head, atol=1e-5, rtol=0)
        assert got.finite_B.all()


def test_noise_makes_the_sampled_run_differ_from_the_greedy_one(rust: RustLM) -> None:
    greedy, sampled = Runner(rust, 1), Runner(rust, 1, 0.8)

    runs = [[tokens(runner.step(), 0) for _ in range(10)] for runner in (greedy, sampled)]

    assert runs[0] != runs[1]


def test_muted_streams_are_zero(rust: RustLM) -> None:
    reference = torch_lm(BASE_LM)
    column_BS = torch.full((1, reference.spec.num_streams), -1)
    column_BS[0, 2] = 5
    results = []
    for model in (reference, rust):
        runner = Runner(model, 1)
        step = model.step(column_BS, torch.tensor([True]), runner.controls(), runner.state)
        results.append(step.extra["text_logits_BV"].clone())

    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)


def test_forced_text_and_the_repetition_penalty_are_followed(rust: RustLM) -> None:
    reference = torch_lm(BASE_LM)
    forced = {"forced_text_B": torch.tensor([9])}
    penalty = {"repetition_penalty_B": torch.tensor([1.7])}
    for settings in (forced, penalty):
        theirs, ours = (Runner(lm, 1, 0.8, settings=settings) for lm in (reference, rust))
        for _ in range(2 * CONTEXT):
            assert tokens(ours.step(), 0) == tokens(theirs.step(), 0)


@pytest.mark.parametrize("form", FORMS)
def test_guidance_and_conditions_equal_torch(tmp_path: Path, form: str) -> None:
    reference = torch_lm(CONDITIONED_LM)
    model = rust_lm(write_lm(tmp_path, reference), reference.spec, **FORMS[form])
    settings = {"guidance_B": torch.tensor([1.0, 3.0])}
    conditions = {"description": "very_good", "description!": "very_bad"}
    theirs, ours = (Runner(lm, 2, 0.8, (), 2, settings) for lm in (reference, model))
    for runner in (theirs, ours):
        runner.reset([0, 1], conditions)

    for _ in range(2 * CONTEXT):
        wanted, got = theirs.step(), ours.step()
        torch.testing.assert_close(
            got.extra["text_logits_BV"], wanted.extra["text_logits_BV"], atol=1e-4, rtol=0
        )
        assert [tokens(got, slot) for slot in (0, 1)] == [tokens(wanted, slot) for slot in (0, 1)]

    with pytest.raises(ConfigError, match="no such value"):
        ours.reset([0], {"description": "superb"})
    with pytest.raises(ConfigError, match="needs a value"):
        ours.reset([0])


def test_conditions_are_refused_by_a_model_without_them(rust: RustLM) -> None:
    with pytest.raises(ConfigError, match="takes no conditions"):
        rust.reset(rust.new_state(1), [0], {"description": "good"})


def test_slots_are_bit_equal_to_solo_runs_in_any_company(rust: RustLM) -> None:
    together = Runner(rust, 5, 0.8)
    schedule = [[(t + slot) % (slot + 2) > 0 for slot in range(5)] for t in range(6 * CONTEXT)]
    alone = [Runner(rust, 1, 0.8, [seed]) for seed in range(5)]

    for valid in schedule:
        step = together.step(valid)
        for slot in [slot for slot in range(5) if valid[slot]]:
            solo = alone[slot].step()
            assert tokens(step, slot) == tokens(solo, 0)
            assert torch.equal(step.extra["text_logits_BV"][slot], solo.extra["text_logits_BV"][0])


def test_a_reset_slot_starts_anew_and_the_others_do_not_notice(rust: RustLM) -> None:
    undisturbed, disturbed, fresh = Runner(rust, 2, 0.8), Runner(rust, 2, 0.8), Runner(rust, 2, 0.8)
    for _ in range(2 * CONTEXT):
        undisturbed.step()
        disturbed.step()
    disturbed.reset([1])

    for _ in range(2 * CONTEXT):
        step, anew = disturbed.step(), fresh.step()
        assert tokens(step, 1) == tokens(anew, 1)
        assert tokens(step, 0) == tokens(undisturbed.step(), 0)


def test_a_step_without_valid_slots_changes_nothing(rust: RustLM) -> None:
    idle, steady = Runner(rust, 2), Runner(rust, 2)

    for _ in range(2 * CONTEXT):
        column_BS = torch.zeros(2, rust.spec.num_streams, dtype=torch.int64)
        nobody_B = torch.zeros(2, dtype=torch.bool)
        rust.step(column_BS, nobody_B, idle.controls(), idle.state)
        assert tokens(idle.step(), 1) == tokens(steady.step(), 1)


def test_the_names_of_candle_and_of_memory_load_alike(rust: RustLM, tmp_path: Path) -> None:
    reference = torch_lm(DELAYED_LM)
    released = rust_lm(write_lm(tmp_path, reference), reference.spec)
    folder = tmp_path / "candle"
    folder.mkdir()
    path = write_lm(folder, reference, lambda t: candle_names(t, reference.spec))
    split = tmp_path / "split"
    split.mkdir()
    in_memory = write_lm(split, reference, lambda _: dict(reference.named_parameters()))
    runners = [
        Runner(released, 1),
        *(Runner(rust_lm(p, reference.spec), 1) for p in (path, in_memory)),
    ]

    for _ in range(2 * CONTEXT):
        one, two, three = (tokens(runner.step(), 0) for runner in runners)
        assert one == two == three


def test_hibiki_reads_the_end_as_padding(tmp_path: Path) -> None:
    reference = torch_lm(BASE_LM)
    path = write_lm(tmp_path, reference)
    column_BS = torch.zeros(1, reference.spec.num_streams, dtype=torch.int64)
    results = []
    for text, end_as_padding in ((2, True), (3, True), (2, False)):
        model = rust_lm(path, reference.spec, end_as_padding=end_as_padding)
        column_BS[0, 0] = text
        runner = Runner(model, 1)
        step = model.step(column_BS, torch.tensor([True]), runner.controls(), runner.state)
        results.append(step.extra["text_logits_BV"])

    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_sampling_settings_of_other_slots_are_refused() -> None:
    native = load_native()
    logits_BV = np.zeros((3, 8), np.float32)
    noise_BR = np.ones((2, 4), np.float32)
    for settings in (([0.0] * 2, [0] * 3, None), ([0.0] * 3, [0] * 3, noise_BR)):
        with pytest.raises(native.NativeError, match="3 rows of logits"):
            native.Lm.sample(logits_BV, [True] * 3, *settings)


def test_bfloat16_weights_are_exact_where_the_file_has_them(tmp_path: Path) -> None:
    reference = torch_lm(BASE_LM)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(parameter.bfloat16().float())
    path = write_lm(tmp_path, reference, lambda t: {k: v.bfloat16() for k, v in t.items()})
    model = rust_lm(path, reference.spec, dtype="bfloat16")
    narrow = rust_lm(path, reference.spec, dtype="bfloat16", kv_dtype="bfloat16")
    wide = rust_lm(path, reference.spec, dtype="float32")
    theirs, ours, rounded, as_float32 = (Runner(lm, 1) for lm in (reference, model, narrow, wide))

    for _ in range(3 * CONTEXT):
        wanted, got = theirs.step(), ours.step()
        assert tokens(got, 0) == tokens(wanted, 0)
        logits_BV = as_float32.step().extra["text_logits_BV"]
        assert torch.equal(got.extra["text_logits_BV"], logits_BV)
        torch.testing.assert_close(
            got.extra["text_logits_BV"], wanted.extra["text_logits_BV"], atol=1e-4, rtol=0
        )
    # Keys and values are rounded to 8 bits of mantissa: 2 ** -9 of a number.
    first = rounded.step().extra["text_logits_BV"]
    wanted_first = Runner(reference, 1).step().extra["text_logits_BV"]
    torch.testing.assert_close(first, wanted_first, atol=0.02, rtol=0)
    # The same numbers in float32 would take twice the memory and say no more.
    as_saved = rust_lm(write_lm(tmp_path, reference), reference.spec)
    assert 2 * narrow.num_bytes == 2 * wide.num_bytes == as_saved.num_bytes
    assert (narrow.caps.quant, as_saved.caps.quant) == (None, None)
    assert wide.caps.quant == "weights stay bfloat16, as in the file"


def test_non_finite_logits_are_reported_per_slot(tmp_path: Path) -> None:
    reference = torch_lm(BASE_LM)
    with torch.no_grad():
        reference.emb[0].weight[7] = float("inf")
    path = write_lm(tmp_path, reference)
    with pytest.raises(BackendError, match="not finite"):
        rust_lm(path, reference.spec)
    model = rust_lm(path, reference.spec, check_finite=False)
    column_BS = torch.zeros(2, reference.spec.num_streams, dtype=torch.int64)
    column_BS[1, 1] = 7
    runner = Runner(model, 2)

    step = model.step(column_BS, torch.tensor([True, True]), runner.controls(), runner.state)

    assert step.finite_B.tolist() == [True, False]


def test_failures_are_one_line(rust: RustLM, tmp_path: Path) -> None:
    column_BS = torch.full((1, rust.spec.num_streams), 10_000)
    runner = Runner(rust, 1)
    with pytest.raises(BackendError, match="id 10000 is beyond a table") as caught:
        rust.step(column_BS, torch.tensor([True]), runner.controls(), runner.state)
    assert caught.value.got is not None
    assert "\n" not in caught.value.got

    (tmp_path / "model.safetensors").write_bytes(b"\x10" + b"\0" * 30)
    with pytest.raises(BackendError, match="cannot load the language model"):
        rust_lm(tmp_path / "model.safetensors", rust.spec)


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    reference = torch_lm(BASE_LM)
    path = write_lm(tmp_path, reference, lambda t: t | {"emb.1.weight": torch.zeros(3, 64)})
    with pytest.raises(BackendError, match=r"'emb.1.weight' is \[3, 64\]"):
        rust_lm(path, reference.spec)

    path = write_lm(tmp_path, reference, lambda t: {k: t[k] for k in t if "linears.1" not in k})
    with pytest.raises(BackendError, match=r"no tensor 'linears\.1\.weight'"):
        rust_lm(path, reference.spec)


def test_the_interpreter_is_free_during_a_step(rust: RustLM) -> None:
    """With threads that never give way by themselves, a step must let another one in."""
    state, column = rust.new_state(1), np.zeros((1, rust.spec.num_streams), dtype=np.int64)
    stop, done, most = threading.Event(), [0], 5000

    def work() -> None:
        while done[0] < most and not stop.is_set():
            rust._handle.temporal(column, [True], None, state.handle)
            done[0] += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        stop.set()
        thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert done[0] < most


def test_it_is_a_speech_lm(rust: RustLM) -> None:
    assert isinstance(rust, SpeechLM)
    assert rust.caps.backend == "rust"
