"""On a GPU: the numbers of a CPU, graphs that survive sessions, and a host that waits once.

Needs torch, NumPy and pytest alone:

    python -m pytest tests/gpu --confcutdir=tests/gpu -m gpu
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from support.ticks import FRAME, NUM_SLOTS, Dialogue, come_and_go, make_models, sampled

from moshi_pipe.models.protocols import Controls
from moshi_pipe.nn.weight_quantizer import WeightQuantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moshi_pipe.nn.mimi import Mimi
    from moshi_pipe.nn.moshi import Moshi

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = "cuda:0"
LOGITS_OFF = 1e-3  # float32 on both, other kernels
AUDIO_OFF = 1e-3


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """TensorFloat-32 would round what a CPU does not."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.cuda.set_sync_debug_mode("default")


def greedy_logits(lm: Moshi) -> torch.Tensor:
    """Text logits of given tokens, two slots of which one pauses, ``[steps, V]``."""
    state = lm.new_state(2)
    zeros = torch.zeros(2, device=lm.device)
    counts = torch.zeros(2, dtype=torch.int64, device=lm.device)
    controls = Controls(zeros, zeros, counts, counts)
    rows = []
    for step in range(12):  # the ring holds 8
        column = [[(7 * step + 3 * k + slot) % 31 for k in range(9)] for slot in range(2)]
        valid_B = torch.tensor([True, step % 3 > 0], device=lm.device)
        made = lm.step(torch.tensor(column, device=lm.device), valid_B, controls, state)
        rows.append(made.extra["text_logits_BV"][0].float().cpu())
    return torch.stack(rows)


def decoded(codec: Mimi) -> torch.Tensor:
    """Sound of given codes, ``[frames, N]``."""
    state = codec.new_decoder_state(1)
    valid_B = torch.ones(1, dtype=torch.bool, device=codec.device)
    frames = []
    for step in range(8):
        codes_BK = torch.tensor([[(5 * step + 3 * k) % 24 for k in range(4)]], device=codec.device)
        frames.append(codec.decode(codes_BK, valid_B, state)[0, 0].cpu())
    return torch.stack(frames)


@pytest.mark.parametrize("numerics", ["fast", "reference"])
def test_logits_are_those_of_a_cpu(numerics: str) -> None:
    _, here = make_models(numerics=numerics)
    _, there = make_models(CUDA, numerics=numerics)
    assert torch.dist(greedy_logits(there), greedy_logits(here)) < LOGITS_OFF


def test_int8_keys_and_values_are_those_of_a_cpu() -> None:
    _, here = make_models(kv_dtype=torch.int8)
    _, there = make_models(CUDA, kv_dtype=torch.int8)
    wanted = greedy_logits(here)
    assert torch.dist(greedy_logits(there), wanted) < 0.02 * wanted.norm()


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
def test_kernels_of_our_own_do_what_torch_does(kv_dtype: torch.dtype | None) -> None:
    pytest.importorskip("triton")
    _, lm = make_models(CUDA, kv_dtype=kv_dtype)
    wanted = greedy_logits(lm)
    lm.use_kernels()
    assert torch.dist(greedy_logits(lm), wanted) < LOGITS_OFF


@pytest.mark.parametrize("int8", [False, True])
def test_attention_over_a_long_ring_is_torchs(int8: bool) -> None:
    """The released model's shape: slots of every fill, in pieces of the ring."""
    pytest.importorskip("triton")
    from moshi_pipe.nn.attention import KVRing, attend, plan_positions, rotate
    from moshi_pipe.nn.triton_kernels import attend as own_attend

    position_B = torch.tensor([0, 511, 512, 2999, 3000, 7001], device=CUDA)
    dtype = torch.int8 if int8 else torch.bfloat16
    shape = (len(position_B), 32, 3000, 128)
    rings = [KVRing.zeros(shape, dtype, torch.device(CUDA)) for _ in range(2)]
    torch.manual_seed(0)
    for tensors in zip(*(ring._tensors() for ring in rings), strict=True):
        one, other = tensors
        one.copy_(torch.rand(one.shape, device=CUDA) * (120 if one.dtype == torch.int8 else 1))
        other.copy_(one)
    projected = torch.randn(len(position_B), 1, 96 * 128, device=CUDA, dtype=torch.bfloat16)
    positions = plan_positions(
        position_B, 1, capacity=3000, context=3000, head_dim=128, max_period=1e4, prefix=False
    )
    heads = projected.view(len(position_B), 1, -1, 128).transpose(1, 2)
    q, k, v = heads.split([32, 32, 32], dim=1)
    q, k = (rotate(x, positions, interleaved=True) for x in (q, k))
    wanted = attend(q, k, v, rings[0], positions).float()
    got = own_attend(
        projected,
        rings[1],
        position_B,
        num_heads=32,
        positional_embedding="rope",
        max_period=1e4,
        context=3000,
    ).float()
    assert torch.dist(got, wanted) < 0.02 * wanted.norm()
    for one, other in zip(*(ring._tensors() for ring in rings), strict=True):
        assert (one.float() - other.float()).abs().max() <= (1 if int8 else 0.05)


def test_sound_is_that_of_a_cpu() -> None:
    (here, _), (there, _) = make_models(), make_models(CUDA)
    assert torch.dist(decoded(there), decoded(here)) < AUDIO_OFF


@pytest.mark.parametrize("kernels", [False, True])
def test_a_replayed_tick_is_a_called_one_and_sessions_need_no_new_graph(kernels: bool) -> None:
    models = make_models(CUDA)
    if kernels:
        pytest.importorskip("triton")
        for model in models:
            model.use_kernels()
    called, replayed = Dialogue(*models), Dialogue(*models, graphs=True)
    called.open()
    replayed.open()
    num_graphs = replayed.num_graphs
    wanted, got = come_and_go(called), come_and_go(replayed)
    assert num_graphs == replayed.num_graphs == 9
    assert called.num_graphs == 0
    assert got.text == wanted.text
    assert got.codes == wanted.codes
    assert wanted.audio.keys() == got.audio.keys()
    for name, frames in wanted.audio.items():
        np.testing.assert_array_equal(got.audio[name], frames)


@pytest.mark.parametrize("graphs", [False, True])
def test_the_host_waits_for_results_alone(graphs: bool) -> None:
    dialogue = Dialogue(*make_models(CUDA), graphs=graphs)
    dialogue.open()
    for slot in range(3):
        dialogue.nodes.join(slot, sampled(slot, first_frame="reset"))
    pcm = np.full((NUM_SLOTS, FRAME), 0.1, dtype=np.float32)
    dialogue.tick(4, [2], pcm)
    torch.cuda.set_sync_debug_mode("error")  # of first frames too, which the encoder forgets
    for _ in range(5):
        outputs = dialogue.tick(4, [0, 1], pcm)
    torch.cuda.set_sync_debug_mode("default")
    assert outputs["audio"][1].any()


@pytest.mark.parametrize("graphs", [False, True])
def test_company_changes_nothing_in_a_batch_of_one_size(graphs: bool) -> None:
    dialogue = Dialogue(*make_models(CUDA), graphs=graphs)
    dialogue.open()
    random = np.random.default_rng(1)
    pcm = random.uniform(-0.5, 0.5, (12, NUM_SLOTS, FRAME)).astype(np.float32)

    def run(company: list[int]) -> list[int]:
        for slot in [0, *company]:
            dialogue.nodes.join(slot, sampled(slot, first_frame="none"))
        said = []
        for frame in pcm:
            rows, valid = dialogue.tick(4, [0, *company], frame)["text"]
            said += [int(rows[0])] if valid[0] else []
        return said

    alone = run([])
    assert alone
    assert run([1, 2, 3]) == alone


@pytest.mark.parametrize("product", ["auto", "triton"])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantized_layers_multiply(quant: str, product: str) -> None:
    if product == "triton":
        pytest.importorskip("triton")
    quantizer = WeightQuantizer(quant, group_size=32, product=product, exact=False, device=CUDA)
    generator = torch.Generator().manual_seed(0)
    weight_OD = torch.randn(256, 128, generator=generator)
    layer = quantizer.linear("layer.weight", weight_OD, None)
    for rows in (1, 5, 64):
        x_MD = torch.randn(rows, 128, generator=generator)
        wanted = x_MD @ weight_OD.t()
        for dtype in (torch.float32, torch.bfloat16):
            got = layer(x_MD.to(CUDA, dtype))
            assert got.dtype == dtype
            assert torch.dist(got.float().cpu(), wanted) < 0.12 * wanted.norm()


def test_results_come_while_the_device_goes_on() -> None:
    from moshi_pipe.nn.transfer import HostCopy, to_device

    array = np.arange(6, dtype=np.float32)
    there = to_device(array, torch.device(CUDA))
    array[:] = -1
    copy = HostCopy(there)
    there.zero_()
    assert copy.numpy().tolist() == [0, 1, 2, 3, 4, 5]
