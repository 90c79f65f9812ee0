"""A step never leaves its device: what a CUDA graph may hold, checked without a GPU.

Tensors that pretend to be on CUDA carry shapes alone; asking one for a number is an error, and
every operation that touches memory of the host is caught.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moshi_pipe.engine.delay_line import DelayLine
from moshi_pipe.models.presets import find_preset, lm_config, mimi_config
from moshi_pipe.models.protocols import Controls
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TINY = find_preset("tiny")
CUDA = torch.device("cuda")
NUM_SLOTS = 4


class HostAccess(TorchDispatchMode):
    """Collects operations on tensors of the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, torch.Tensor)]
        if any(t.device.type == "cpu" for t in tensors):
            self.found.append(str(func))
        return made


@pytest.fixture
def pretend_cuda() -> Iterator[None]:
    with FakeTensorMode():
        yield


def make_lm(kind: str = "moshi", numerics: str = "fast", **options: Any) -> Moshi:
    other = ("model_type", "lm_gen_config", "stt_config")
    config = {k: v for k, v in lm_config(TINY, kind).items() if k not in other}
    with CUDA, default_dtype(torch.bfloat16):
        return Moshi(LMSpec.from_config(config), numerics=numerics, **options)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_controls(lm: Moshi, *, guided: bool = False) -> Controls:
    ones = torch.ones(NUM_SLOTS, device=CUDA)
    counts = torch.ones(NUM_SLOTS, dtype=torch.int64, device=CUDA)
    noise = torch.ones(NUM_SLOTS, 1 + lm.spec.num_generated, 20, device=CUDA)
    return Controls(
        ones,
        ones,
        counts,
        counts,
        noise_BKR=noise,
        guidance_B=ones if guided else None,
        forced_text_B=counts,
        repetition_penalty_B=ones,
    )


@pytest.mark.parametrize(
    ("kind", "options", "guided"),
    [
        ("moshi", {}, False),
        ("moshi", {"numerics": "reference"}, False),
        ("moshi", {"kv_dtype": torch.int8}, False),
        ("hibiki", {}, True),
        ("stt", {}, False),
    ],
)
def test_a_language_model_step_stays_on_its_device(
    pretend_cuda: None, kind: str, options: dict[str, Any], guided: bool
) -> None:
    lm = make_lm(kind, **options)
    line = DelayLine(lm.spec, CUDA)
    state, delays = lm.new_state(NUM_SLOTS, 2 if guided else 1), line.new_state(NUM_SLOTS)
    controls = make_controls(lm, guided=guided)
    user_BK = torch.zeros(NUM_SLOTS, lm.spec.num_user, dtype=torch.int64, device=CUDA)
    valid_B = torch.ones(NUM_SLOTS, dtype=torch.bool, device=CUDA)
    with HostAccess() as access:
        column_BS = line.push_user(user_BK, valid_B, delays)
        step = lm.step(column_BS, valid_B, controls, state)
        line.push_generated(step.text_B, step.codes_BK, valid_B, delays)
    assert access.found == []


def test_a_codec_step_stays_on_its_device(pretend_cuda: None) -> None:
    config = mimi_config(TINY)
    assert config is not None
    with CUDA:
        codec = Mimi(MimiSpec.from_config(config))
    codec.prepare()
    encoder, decoder = codec.new_encoder_state(NUM_SLOTS), codec.new_decoder_state(NUM_SLOTS)
    pcm_BCN = torch.zeros(NUM_SLOTS, 1, codec.spec.frame_size, device=CUDA)
    valid_B = torch.ones(NUM_SLOTS, dtype=torch.bool, device=CUDA)
    with HostAccess() as access:
        codes_BK = codec.encode(pcm_BCN, valid_B, encoder)
        codec.decode(codes_BK, valid_B, decoder)
    assert access.found == []


def test_access_of_the_host_is_seen(pretend_cuda: None) -> None:
    with HostAccess() as access:
        torch.tensor([1, 2], device=CUDA)
    assert access.found
    with pytest.raises(Exception, match=r"_local_scalar_dense|data-dependent"):
        bool(torch.ones(2, device=CUDA).all())
