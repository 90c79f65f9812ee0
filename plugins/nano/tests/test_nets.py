"""What is trained is what runs: the nets here against the core's streaming modules."""

from __future__ import annotations

import pytest
import torch
from moshi_pipe_nano.evaluate import answer
from moshi_pipe_nano.lm_net import LMNet, columns, targets
from moshi_pipe_nano.options import CodecOptions, LMOptions
from moshi_pipe_nano.shapes import lm_spec

from moshi_pipe.models.protocols import Controls
from moshi_pipe.nn.moshi import Moshi

_FRAMES = 9


@pytest.fixture
def net() -> LMNet:
    lm = LMOptions(dim=32, num_heads=2, num_layers=2, context=6, depth_dim=16, depth_heads=2)
    codec = CodecOptions(num_codebooks=3, cardinality=20)
    return LMNet(lm_spec(lm, codec), seed=1).requires_grad_(False)


def test_training_sees_the_logits_that_the_core_computes_step_by_step(net: LMNet) -> None:
    core = Moshi(net.spec)
    core.load_state_dict(dict(net.weights))
    state = core.new_state(1)
    core.reset(state, [0])
    user = torch.randint(20, (1, 3, _FRAMES), generator=torch.Generator().manual_seed(0))
    text, own = answer(net, user)
    ids = columns(net.spec, text, own, user)
    hidden = net.temporal(ids)
    greedy = Controls(*[torch.zeros(1)] * 2, *[torch.zeros(1, dtype=torch.int64)] * 2)
    for t in range(_FRAMES):
        step = core.step(ids[..., t], torch.ones(1, dtype=torch.bool), greedy, state)
        logits = step.extra["text_logits_BV"][0]
        torch.testing.assert_close(logits, net.text_logits(hidden)[0, t])
        if t > 0:
            assert step.codes_BK[0].tolist() == targets(net.spec, own)[0, t].tolist()


def test_columns_are_what_the_delay_line_gives_when_the_first_frame_is_stepped_twice(
    net: LMNet,
) -> None:
    from moshi_pipe.engine.delay_line import DelayLine

    line = DelayLine(net.spec, torch.device("cpu"))
    state = line.new_state(1)
    draw = torch.Generator().manual_seed(0)
    user = torch.randint(20, (1, 3, _FRAMES), generator=draw)
    own = torch.randint(20, (1, 3, _FRAMES), generator=draw)
    text = torch.randint(100, (1, _FRAMES), generator=draw)
    wanted, said = columns(net.spec, text, own, user), targets(net.spec, own)
    valid = torch.ones(1, dtype=torch.bool)
    for t in range(_FRAMES):
        column = line.push_user(user[..., max(t - 1, 0)], valid, state)
        assert column[0].tolist() == wanted[0, :, t].tolist()
        line.push_generated(text[:, t], said[:, t], valid, state)


def test_hidden_codes_change_nothing_but_their_own_embedding(net: LMNet) -> None:
    ids = columns(
        net.spec,
        torch.full((1, 4), 3),
        torch.zeros(1, 3, 4, dtype=torch.int64),
        torch.full((1, 3, 4), -1),
    )
    assert torch.isfinite(net.temporal(ids)).all()
