"""The language model on MLX is the one on torch: tokens, logits, slots, masks, noise, guidance."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("mlx.core", reason="MLX cannot be imported", exc_type=ImportError)

import mlx.core as mx
import numpy as np
import torch
from mlx_models import BASE_LM, CONTEXT, LMS, open_mlx, open_torch, write_lm
from moshi_pipe_mlx.place import to_mx, to_torch
from moshi_pipe_mlx.sampling import sample

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.engine.noise import fill_exponential
from moshi_pipe.errors import BackendError, ConfigError
from moshi_pipe.models.protocols import Controls
from moshi_pipe.nn.sampling import sample as torch_sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from moshi_pipe.models.checkpoint import Checkpoint

NUM_STEPS = 3 * CONTEXT + 6
LOGITS = "text_logits_BV"


class Running:
    """A model that hears its own codes through the framework's delay line."""

    def __init__(self, model: Any, num_slots: int, *, guided: bool = False) -> None:
        self.model = model
        self.line = DelayLine(model.spec, torch.device("cpu"))
        self.delays = self.line.new_state(num_slots)
        self.state = model.new_state(num_slots, 2 if guided else 1)

    def step(self, user_BK: torch.Tensor, valid_B: torch.Tensor, controls: Controls) -> Any:
        column_BS = self.line.push_user(user_BK, valid_B, self.delays)
        step = self.model.step(column_BS, valid_B, controls, self.state)
        self.line.push_generated(step.text_B, step.codes_BK, valid_B, self.delays)
        return step

    def reset(self, slots: list[int], conditions: dict[str, str] | None = None) -> None:
        self.model.reset(self.state, slots, conditions)
        if slots:
            self.line.reset(self.delays, slots)


def greedy(num_slots: int) -> Controls:
    zeros, counts = torch.zeros(num_slots), torch.zeros(num_slots, dtype=torch.int64)
    return Controls(zeros, zeros, counts, counts)


def everyone(num_slots: int) -> torch.Tensor:
    return torch.ones(num_slots, dtype=torch.bool)


def assert_same(steps: list[Any], valid_B: torch.Tensor) -> None:
    mine, theirs = steps
    assert torch.equal(mine.text_B[valid_B], theirs.text_B[valid_B])
    assert torch.equal(mine.codes_BK[valid_B], theirs.codes_BK[valid_B])
    assert mine.finite_B[valid_B].all()
    difference = mine.extra[LOGITS][valid_B] - theirs.extra[LOGITS][valid_B]
    assert difference.abs().max().item() < 1e-4
    for left, right in zip(
        mine.extra.get("extra_heads", []), theirs.extra.get("extra_heads", []), strict=True
    ):
        torch.testing.assert_close(left[valid_B], right[valid_B], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_slots", [1, 4])
@pytest.mark.parametrize("name", LMS)
def test_greedy_tokens_equal_torch_past_three_contexts(
    name: str, num_slots: int, lm_checkpoint: Callable[[str], Checkpoint]
) -> None:
    checkpoint = lm_checkpoint(name)
    mine, theirs = (Running(o(checkpoint), num_slots) for o in (open_mlx, open_torch))
    generator = torch.Generator().manual_seed(3)
    valid_B = everyone(num_slots)

    for _ in range(NUM_STEPS):
        user_BK = torch.randint(0, 32, (num_slots, mine.model.spec.num_user), generator=generator)
        steps = [running.step(user_BK, valid_B, greedy(num_slots)) for running in (mine, theirs)]
        assert_same(steps, valid_B)


def test_idle_and_reset_slots_leave_the_others_alone(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    num_slots = 4
    checkpoint = lm_checkpoint("moshi")
    mine, theirs = (Running(o(checkpoint), num_slots) for o in (open_mlx, open_torch))
    generator = torch.Generator().manual_seed(5)
    tokens = set()

    for _ in range(5 * CONTEXT):
        valid_B = torch.rand(num_slots, generator=generator) < 0.7
        resets = (torch.rand(num_slots, generator=generator) < 0.06).nonzero().flatten().tolist()
        user_BK = torch.randint(0, 32, (num_slots, 4), generator=generator)
        for running in (mine, theirs):
            running.reset(resets)
        if not valid_B.any():
            continue
        steps = [running.step(user_BK, valid_B, greedy(num_slots)) for running in (mine, theirs)]
        assert_same(steps, valid_B)
        tokens |= set(steps[0].text_B.tolist())

    assert len(tokens) > 5


def test_fewer_rows_than_slots_advance_the_first_ones(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    model = open_mlx(lm_checkpoint("moshi"))
    wide, narrow = model.new_state(4), model.new_state(2)
    columns = torch.randint(0, 32, (3, 4, 9), generator=torch.Generator().manual_seed(0))

    for column_BS in columns:
        first = model.step(column_BS[:2], everyone(2), greedy(4), wide)
        alone = model.step(column_BS[:2], everyone(2), greedy(2), narrow)

    assert torch.equal(first.extra[LOGITS], alone.extra[LOGITS])
    assert wide.temporal.position_R.tolist() == [3, 3, 0, 0]


def test_sampled_tokens_equal_torch_with_the_same_noise(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    num_slots = 4
    checkpoint = lm_checkpoint("moshi")
    mine, theirs = (Running(o(checkpoint), num_slots) for o in (open_mlx, open_torch))
    noise = np.ones((num_slots, 5, 32), dtype=np.float32)
    controls = Controls(
        torch.tensor([0.8, 0.0, 1.2, 0.9]),
        torch.tensor([0.7, 0.9, 0.0, 1.0]),
        torch.tensor([10, 0, 32, 1]),
        torch.tensor([0, 12, 5, 25]),
        torch.from_numpy(noise),
        repetition_penalty_B=torch.tensor([1.0, 1.3, 1.0, 2.0]),
    )
    generator = torch.Generator().manual_seed(3)

    for t in range(NUM_STEPS):
        user_BK = torch.randint(0, 32, (num_slots, 4), generator=generator)
        for slot in range(num_slots):
            fill_exponential(noise[slot], seed=slot, step=t)
        for running in (mine, theirs):
            running.reset([t % 4] if t % 5 == 4 else [])  # forgets what the penalty looks at
        steps = [r.step(user_BK, everyone(num_slots), controls) for r in (mine, theirs)]
        assert_same(steps, everyone(num_slots))


@pytest.mark.parametrize("size", [40, 2000])
def test_the_race_is_that_of_the_framework(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, size, generator=generator)
    noise = np.empty((64, 30), dtype=np.float32)
    fill_exponential(noise, seed=1, step=0)
    temperature = torch.rand(64, generator=generator).where(torch.arange(64) % 5 > 0, 0.0)
    top_k = torch.randint(0, 30, (64,), generator=generator)

    mine = sample(*map(to_mx, (logits, temperature, top_k, torch.from_numpy(noise))))

    theirs = torch_sample(logits, temperature, top_k, torch.from_numpy(noise))
    assert to_torch(mine).tolist() == theirs.tolist()


@pytest.mark.parametrize("unwanted", ["very_bad", None])
def test_guidance_and_conditions_equal_torch(
    unwanted: str | None, lm_checkpoint: Callable[[str], Checkpoint]
) -> None:
    checkpoint = lm_checkpoint("conditioned")
    mine, theirs = (Running(o(checkpoint), 2, guided=True) for o in (open_mlx, open_torch))
    given = {"description": "very_good"} | ({"description!": unwanted} if unwanted else {})
    controls = greedy(2)
    controls.guidance_B = torch.tensor([3.0, 1.0])
    for running in (mine, theirs):
        running.reset([0, 1], given)
    generator = torch.Generator().manual_seed(3)

    for _ in range(NUM_STEPS):
        user_BK = torch.randint(0, 32, (2, 4), generator=generator)
        steps = [running.step(user_BK, everyone(2), controls) for running in (mine, theirs)]
        assert_same(steps, everyone(2))


def test_wrong_conditions_are_refused(lm_checkpoint: Callable[[str], Checkpoint]) -> None:
    model = open_mlx(lm_checkpoint("conditioned"))
    state = model.new_state(1)

    with pytest.raises(ConfigError, match=r"set conditions\.description=VALUE"):
        model.reset(state, [0])
    with pytest.raises(ConfigError, match="did you mean 'very_good'"):
        model.reset(state, [0], {"description": "verygood"})
    plain = open_mlx(lm_checkpoint("moshi"))
    with pytest.raises(ConfigError, match="takes no conditions"):
        plain.reset(plain.new_state(1), [0], {"description": "good"})


def test_forced_text_reaches_the_codes(lm_checkpoint: Callable[[str], Checkpoint]) -> None:
    checkpoint = lm_checkpoint("moshi")
    models: list[Any] = [open_mlx(checkpoint), open_torch(checkpoint)]
    controls = greedy(3)
    controls.forced_text_B = torch.tensor([7, -2, -1])
    column_BS = torch.full((3, 9), 5)

    steps = [m.step(column_BS, everyone(3), controls, m.new_state(3)) for m in models]

    assert_same(steps, everyone(3))
    assert steps[0].text_B.tolist() == [7, steps[1].text_B[1].item(), -1]


def test_a_muted_stream_adds_exactly_nothing(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    """Also where the table is quantized, which upstream forgets."""
    for quant in ("none", "int8", "int4"):
        model = open_mlx(lm_checkpoint("packed"), quant=quant)
        table = model._emb[0]
        ids = mx.array([0, 5])

        muted = table(ids, mx.array([True, False]))

        assert float(mx.abs(muted[0]).max()) == 0.0
        assert mx.array_equal(muted[1], table(ids, None)[1])
        assert float(mx.abs(table(ids, None)[0]).max()) > 0.0


def test_ids_beyond_the_table_are_refused(lm_checkpoint: Callable[[str], Checkpoint]) -> None:
    model = open_mlx(lm_checkpoint("moshi"))
    column_BS = torch.full((2, 9), 5)
    column_BS[1, 3] = 33

    with pytest.raises(ValueError, match="stream 3 of slot 1 holds id 33; the largest is 32"):
        model.step(column_BS, everyone(2), greedy(2), model.new_state(2))

    idle = torch.tensor([True, False])  # what an idle slot holds may be anything
    model.step(column_BS, idle, greedy(2), model.new_state(2))


def test_a_row_that_is_not_finite_is_named_and_harms_no_other(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    model = open_mlx(lm_checkpoint("moshi"))
    clean, poisoned = model.new_state(4), model.new_state(4)
    column_BS = torch.full((4, 9), 5)
    for state in (clean, poisoned):
        model.step(column_BS, everyone(4), greedy(4), state)
    poisoned.temporal.rings[0].values_RHLE[2] = float("nan")

    good = model.step(column_BS, everyone(4), greedy(4), clean)
    bad = model.step(column_BS, everyone(4), greedy(4), poisoned)

    assert bad.finite_B.tolist() == [True, True, False, True]
    others = [0, 1, 3]
    assert torch.equal(bad.extra[LOGITS][others], good.extra[LOGITS][others])
    model.reset(poisoned, [2])
    assert model.step(column_BS, everyone(4), greedy(4), poisoned).finite_B.all()


def test_hibiki_reads_an_early_end_of_stream_as_padding(tmp_path: Path) -> None:
    checkpoint = write_lm(tmp_path, BASE_LM, model_type="hibiki")
    models: list[Any] = [open_mlx(checkpoint), open_torch(checkpoint)]
    column_BS = torch.full((1, 9), 5)
    column_BS[0, 0] = 2

    steps = [m.step(column_BS, everyone(1), greedy(1), m.new_state(1)) for m in models]

    assert_same(steps, everyone(1))


def test_a_context_of_the_options_is_the_window(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    checkpoint = lm_checkpoint("moshi")
    mine, theirs = (Running(o(checkpoint, context=3), 1) for o in (open_mlx, open_torch))

    for t in range(12):
        user_BK = torch.full((1, 4), t)
        steps = [running.step(user_BK, everyone(1), greedy(1)) for running in (mine, theirs)]
        assert_same(steps, everyone(1))

    assert mine.state.temporal.rings[0].keys_RHLE.shape[2] == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_stay_near_float32(
    dtype: str, lm_checkpoint: Callable[[str], Checkpoint]
) -> None:
    checkpoint = lm_checkpoint("moshi")
    exact, narrow = open_mlx(checkpoint), open_mlx(checkpoint, dtype=dtype)
    states = [model.new_state(1) for model in (exact, narrow)]
    error = spread = 0.0

    for column in torch.randint(0, 32, (2 * CONTEXT, 1, 9), generator=torch.Generator()):
        logits = [
            model.step(column, everyone(1), greedy(1), state).extra[LOGITS]
            for model, state in zip((exact, narrow), states, strict=True)
        ]
        error = max(error, (logits[0] - logits[1]).abs().max().item())
        spread = max(spread, logits[0].std().item())

    assert narrow.caps.dtype == dtype
    assert 0 < error < (0.1 if dtype == "bfloat16" else 0.02) * spread


def test_keys_and_values_may_have_a_type_of_their_own(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    model = open_mlx(lm_checkpoint("moshi"), kv_dtype="bfloat16")
    state = model.new_state(1)

    step = model.step(torch.full((1, 9), 5), everyone(1), greedy(1), state)

    assert state.temporal.rings[0].keys_RHLE.dtype == mx.bfloat16
    assert step.finite_B.all()


def test_another_thread_may_step_what_one_opened(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    """One at a time: nothing that crosses a call is left for another thread to evaluate."""
    checkpoint = lm_checkpoint("moshi")
    model = open_mlx(checkpoint)
    state = model.new_state(1)
    column_BS = torch.full((1, 9), 5)
    first = model.step(column_BS, everyone(1), greedy(1), state)
    model.reset(state, [0])
    found: list[Any] = []

    def work() -> None:
        found.append(model.step(column_BS, everyone(1), greedy(1), state))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert torch.equal(found[0].extra[LOGITS], first.extra[LOGITS])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_gets_an_error_instead_of_a_hang(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    folder = lm_checkpoint("moshi").where
    program = f"""
import os, sys
from moshi_pipe.errors import BackendError
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.models.checkpoint import ModelOptions, open_checkpoint
from moshi_pipe_mlx import plugin
checkpoint = open_checkpoint(ModelOptions(path={folder!r}), parts=["lm"])
options = BackendOptions(backend="mlx", device="cpu")
model = plugin.open_lm(checkpoint, options, lambda done, total: None)
child = os.fork()
if child == 0:
    try:
        model.new_state(1)
    except BackendError as error:
        os._exit(0 if "'spawn'" in str(error) else 3)
    os._exit(4)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"numerics": "reference"}, BackendError, "no numerics=reference"),
        ({"quant": "int3"}, BackendError, "no quantization 'int3'"),
        ({"device": "cuda"}, ConfigError, "no device 'cuda'"),
        ({"dtype": "float8"}, ConfigError, "no dtype 'float8'"),
        ({"context": 0}, ConfigError, "at least one frame"),
    ],
    ids=str,
)
def test_options_it_lacks_are_refused(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    with pytest.raises(error, match=message):
        open_mlx(lm_checkpoint("moshi"), **options)


def test_lora_weights_are_refused_not_left_out(
    lm_checkpoint: Callable[[str], Checkpoint],
) -> None:
    checkpoint = lm_checkpoint("moshi")

    with pytest.raises(BackendError, match=r"does not add LoRA weights(.|\n)*backend=torch"):
        open_mlx(replace(checkpoint, lora=checkpoint.lm_weights))
