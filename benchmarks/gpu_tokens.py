"""What the forms of a language model change.

Logits against ours in the reference's numerics, and greedy tokens against the reference package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from gpu_models import Reference, our_lm

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.models.protocols import Controls

if TYPE_CHECKING:
    from bench_gpu import Bench
    from torch import Tensor

    from moshi_pipe.nn.moshi import Moshi


def greedy_controls(device: torch.device) -> Controls:
    """Of one slot."""
    zeros = torch.zeros(1, device=device)
    counts = torch.zeros(1, dtype=torch.int64, device=device)
    return Controls(zeros, zeros, counts, counts)


def user_codes(step: int, lm: Moshi) -> Tensor:
    """What the user said, int64 ``[1, K]``."""
    spec = lm.spec
    return (
        torch.arange(spec.num_user, device=lm.device)[None] * 37 + step * 101
    ) % spec.cardinality


def greedy_tokens(lm: Moshi, num_steps: int) -> list[list[int]]:
    """Text and codes of our model between its delay lines."""
    line = DelayLine(lm.spec, lm.device)
    state, delays = lm.new_state(1), line.new_state(1)
    controls = greedy_controls(lm.device)
    valid_B = torch.ones(1, dtype=torch.bool, device=lm.device)
    rows = []
    for step in range(num_steps):
        column_BS = line.push_user(user_codes(step, lm), valid_B, delays)
        made = lm.step(column_BS, valid_B, controls, state)
        text_B, codes_BK = line.push_generated(made.text_B, made.codes_BK, valid_B, delays)
        rows.append([*text_B.tolist(), *codes_BK[0].tolist()])
    return rows


def text_logits(lm: Moshi, num_steps: int) -> Tensor:
    """Of given columns, ``[steps, V]``: nothing that a model says comes back to it."""
    state = lm.new_state(1)
    controls = greedy_controls(lm.device)
    valid_B = torch.ones(1, dtype=torch.bool, device=lm.device)
    streams = torch.arange(1 + lm.spec.num_codebooks, device=lm.device)[None]
    rows = []
    for step in range(num_steps):
        column_BS = (streams * 37 + step * 101) % lm.spec.cardinality
        made = lm.step(column_BS, valid_B, controls, state)
        rows.append(made.extra["text_logits_BV"][0].clone())
    return torch.stack(rows)


def logit_error(bench: Bench, lm: Moshi) -> float:
    """Norm of the difference over the norm, against unquantized weights in reference numerics."""
    wanted = text_logits(our_lm(bench.rig, numerics="reference"), bench.steps)
    return round(float(torch.dist(text_logits(lm, bench.steps), wanted) / wanted.norm()), 5)


def agreement(bench: Bench) -> None:
    """How far greedy tokens agree with the reference package's, step by step."""
    rig = bench.rig
    reference = Reference(rig, 1, greedy=True)
    ours = {n: our_lm(rig, numerics=n) for n in ("reference", "fast")}
    wanted = [reference.step(user_codes(step, ours["fast"])) for step in range(bench.steps)]
    shown: dict[str, Any] = {"steps": bench.steps}
    for name, lm in ours.items():
        got = greedy_tokens(lm, bench.steps)
        pairs = list(zip(got, wanted, strict=True))
        same = [one == other for one, other in pairs]
        tokens = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True))
        shown[name] = {
            "equal_steps_before_the_first_difference": [*same, False].index(False),
            "equal_tokens": round(tokens / (bench.steps * len(wanted[0])), 4),
            "logit_error": logit_error(bench, lm),
        }
    bench.tell("greedy tokens against moshi", shown)
