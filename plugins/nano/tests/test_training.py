"""What training rests on: gradients, the optimizer, the start of the embeddings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from moshi_pipe_nano import sums, words
from moshi_pipe_nano.lm_net import LMNet
from moshi_pipe_nano.lm_start import start_from_codec
from moshi_pipe_nano.lm_train import Lesson, LMTraining
from moshi_pipe_nano.mimi_net import MimiNet
from moshi_pipe_nano.muon import Muon, orthogonal
from moshi_pipe_nano.options import CodecOptions, LMOptions, Options
from moshi_pipe_nano.run import halved, load, save
from moshi_pipe_nano.shapes import lm_spec, mimi_spec

_CODEC = CodecOptions(
    num_filters=4, dimension=32, num_layers=1, quantizer_dim=8, num_codebooks=3, cardinality=20
)
_LM = LMOptions(
    dim=32, num_heads=2, num_layers=2, context=6, depth_dim=16, depth_heads=2, depth_layers=1,
    depth_feedforward=24, own_noise=0.0, user_noise=0.0, hidden_share=0.0,
)  # fmt: skip


@pytest.fixture
def options(tmp_path: Path) -> Options:
    codec = MimiNet(mimi_spec(_CODEC), seed=3)
    save(tmp_path / "codec.pt", {"net": codec.state_dict()})
    return Options(stage="lm", out=str(tmp_path), device="cpu", threads=1, codec=_CODEC, lm=_LM)


def lesson() -> Lesson:
    draw = torch.Generator().manual_seed(5)

    def ids(*shape: int, high: int = 20) -> torch.Tensor:
        return torch.randint(high, shape, generator=draw)

    speaking = torch.rand((2, 12), generator=draw) < 0.5
    return Lesson(
        ids(2, 3, 12), ids(2, 3, 12), ids(2, 12, high=60), ids(2, 12, high=60), speaking,
        torch.ones(2, dtype=torch.bool), ids(2, 3, 12),
    )  # fmt: skip


def test_gradients_are_the_slopes_of_the_loss(options: Options) -> None:
    training, given = LMTraining(options), lesson()
    training.net.double()
    training.net.place(torch.device("cpu"))
    training.heads.double()

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return training.total(training.losses(given))

    training.net.zero_grad()
    loss().backward()
    for name in ("transformer/layers/0/self_attn/in_projs/0/weight", "emb/1/weight",
                 "depformer_in/1/weight", "text_linear/weight"):  # fmt: skip
        weight = dict(training.net.named_parameters())[name]
        assert weight.grad is not None
        along = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double()
        step, found = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(along, alpha=sign * step)
                found.append(float(loss().detach()))
                weight.sub_(along, alpha=sign * step)
        slope = (found[0] - found[1]) / (2 * step)
        assert slope == pytest.approx(float((weight.grad * along).sum()), rel=1e-4, abs=1e-7)


def test_updates_learn_and_are_the_same_again(options: Options) -> None:
    def run() -> tuple[list[float], torch.Tensor]:
        training, found = LMTraining(options), []
        for step in range(12):
            torch.manual_seed(step)
            total = training.total(training.losses(lesson()))
            training.update(total, 5e-3)
            found.append(float(total.detach()))
        return found, training.net.weights["text_linear.weight"].detach().clone()

    (first, weight), (second, again) = run(), run()
    assert first == second
    assert torch.equal(weight, again)
    assert first[-1] < 0.9 * first[0]


def test_a_training_is_carried_on_where_it_was_saved(options: Options) -> None:
    training = LMTraining(options)
    torch.manual_seed(0)
    training.update(training.total(training.losses(lesson())), 1e-3)
    training.save()
    resumed = LMTraining(options)
    assert resumed.step == 1
    for name, value in halved(training.net.state_dict()).items():
        assert torch.equal(resumed.net.state_dict()[name], value.float())
    saved = load(Path(options.out) / "lm-optimizer.pt")
    assert saved is not None
    assert saved["muon"]["state"]


def test_the_shares_of_frames_only_thin_out_what_is_learnt(options: Options) -> None:
    few = dataclasses.replace(options, lm=dataclasses.replace(_LM, spoken_share=0.2))
    training = LMTraining(few)
    found = training.losses(lesson())
    assert torch.isfinite(training.total(found))


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)], ids=str)
def test_the_optimizer_steps_along_an_almost_orthogonal_matrix(shape: tuple[int, int]) -> None:
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(given))
    assert 0.5 < float(values.min()) <= float(values.max()) < 1.3


def test_the_optimizer_comes_near_the_matrix_that_is_wanted() -> None:
    wanted = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = Muon([weight], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (weight - wanted).square().sum().backward()
        optimizer.step()
    assert float((weight.detach() - wanted).abs().max()) < 0.2


def test_codes_that_sound_alike_begin_alike() -> None:
    codec, net = MimiNet(mimi_spec(_CODEC), seed=3), LMNet(lm_spec(_LM, _CODEC), seed=1)
    start_from_codec(net, codec, seed=0)
    latents = codec.code_latents()[0].detach()
    for stream in (0, 3):
        table = net.weights[f"emb.{stream}.weight"].detach()[: len(latents)]
        apart = torch.stack([torch.pdist(table), torch.pdist(latents)])
        assert float(torch.corrcoef(apart)[0, 1]) > 0.7


def test_the_word_after_is_counts_as_a_result() -> None:
    said = [words.token(word) for word in ["one", "plus", "two", "is", "three", "two"]]
    text = torch.tensor([[3, *said[:4], 3, 0, *said[4:]]])
    assert sums.is_result(text).int().tolist() == [[0, 0, 0, 0, 0, 0, 0, 1, 0]]


def test_a_sum_and_its_parts_are_found_where_the_result_is_due() -> None:
    said = [words.token(word) for word in ["two", "three", "plus", "nine", "is", "twelve", "is"]]
    text = torch.tensor([[3, *said[:3], 3, 0, *said[3:6], 3, *said[6:]]])
    found, parts = sums.parts(text)
    assert found.int().tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]]
    assert parts[found].tolist() == [[3, 9, 12]]


def test_the_line_of_numbers_is_asked_only_where_text_is_learnt() -> None:
    said = [words.token(word) for word in ["three", "plus", "nine", "is", "twelve"]]
    text, state = torch.tensor([said, said]), torch.zeros(2, 5, 4)
    head = torch.nn.Linear(4, sum(sums.THRESHOLDS))
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    for trained, wanted in ((True, 0.6931), (False, 0.0)):
        found = sums.loss(head, state, text, torch.tensor([trained, trained]))
        assert found.item() == pytest.approx(wanted, abs=1e-3)
