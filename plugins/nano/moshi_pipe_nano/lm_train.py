"""Training of the language model on codes.

Beside what the model must say, heads that are thrown away afterwards ask the state which words
the user said, and where a sum and its parts lie on the line of numbers. Codes that the model is
given are disturbed now and then, so that it forgives its own slips, and the user's acoustic codes
are sometimes hidden: the words are in the semantic ones. Given the voice of another answer, it
still says what its text says.

Shape letters: B conversation, S stream, K codebook, T frame, M frame of any conversation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe.models.spec import ZERO_CODE
from moshi_pipe_nano import sums, words
from moshi_pipe_nano.codes import CODES, QUESTIONS, load_codes, load_net, load_questions
from moshi_pipe_nano.decoys import decoys
from moshi_pipe_nano.lm_net import LMNet, columns, targets
from moshi_pipe_nano.lm_start import start_from_codec
from moshi_pipe_nano.muon import Muon
from moshi_pipe_nano.run import (
    Alarm,
    Course,
    Journal,
    Means,
    halved,
    load,
    pick_device,
    save,
    set_up_torch,
)
from moshi_pipe_nano.shapes import lm_spec

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from moshi_pipe_nano.codes import Codes, Questions
    from moshi_pipe_nano.options import Options

CHECKPOINT: Final = "lm.pt"
AVERAGE: Final = "lm-average.pt"
OPTIMIZER: Final = "lm-optimizer.pt"
_LOG_EVERY: Final = 50
_VALIDATE_EVERY: Final = 200
_ANSWER_EVERY: Final = 1_000
_KEPT_BACK: Final = 64  # conversations that only measure
_MISLED_WEIGHT: Final = 0.2  # of words that a misleading voice makes hard to time
_SUM_TURNS: Final = 2  # of a conversation that is about sums
_GRADIENT_LIMIT: Final = 1.0
_HEARD_PADDING: Final = 0.1
_ACOUSTIC_WEIGHT: Final = 2.0  # of all acoustic codebooks together, the semantic one's being 1


@dataclass(frozen=True, slots=True)
class Lesson:
    """Conversations on the device, int64 but for the flags; the shapes are those of ``Codes``."""

    own: Tensor
    user: Tensor
    text: Tensor
    heard: Tensor
    speaking: Tensor
    text_trained: Tensor
    decoy: Tensor

    @classmethod
    def of(
        cls, codes: Codes, which: slice, device: torch.device, decoy: npt.NDArray[np.int16]
    ) -> Lesson:
        """Rows of stored codes, kept small: int16 until :meth:`pick`."""
        arrays = (
            codes.own,
            codes.user,
            codes.text,
            codes.heard,
            codes.speaking,
            codes.text_trained,
            decoy,
        )
        return cls(*[torch.from_numpy(array[which]).to(device) for array in arrays])

    def pick(self, rows: Tensor) -> Lesson:
        """Rows as the network takes them."""
        return Lesson(
            self.own[rows].long(),
            self.user[rows].long(),
            self.text[rows].long(),
            self.heard[rows].long(),
            self.speaking[rows],
            self.text_trained[rows],
            self.decoy[rows].long(),
        )

    def __len__(self) -> int:
        return len(self.own)


class LMTraining:
    """The model, its average, the heads that only training has, and the optimizer.

    Args:
        options: Of the whole command.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.lm = options, options.lm
        self.device = pick_device(options.device)
        self.spec = lm_spec(self.lm, options.codec)
        self.net = LMNet(self.spec, options.seed).place(self.device)
        self.average = LMNet(self.spec, options.seed).place(self.device).requires_grad_(False)
        torch.manual_seed(options.seed)
        self.heads = nn.ModuleDict(
            {
                "heard": nn.Linear(self.lm.dim, self.spec.text_cardinality),
                "counted": nn.Linear(self.lm.dim, sum(sums.THRESHOLDS)),
            }
        ).to(self.device)
        matrices, others = self._split()
        self.optimizer = torch.optim.AdamW(
            others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.02, fused=True
        )
        self.muon = Muon(matrices, 0.0) if matrices else None
        self.step = 0
        self.folder = Path(options.out)
        state, average = load(self.folder / CHECKPOINT), load(self.folder / AVERAGE)
        if state is not None and average is not None:
            self.restore(state, average)
        else:
            start_from_codec(self.net, load_net(options), options.seed)
            self.average.load_state_dict(self.net.state_dict())

    def _split(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Matrices of the temporal transformer, which Muon moves, and everything else."""
        by_name = dict(self.net.named_parameters())
        chosen = {
            name
            for name, value in by_name.items()
            if self.lm.muon_rate > 0 and name.startswith("transformer") and value.ndim == 2
        }
        others = [value for name, value in by_name.items() if name not in chosen]
        return [by_name[name] for name in sorted(chosen)], [*others, *self.heads.parameters()]

    def restore(self, state: dict[str, Any], average: dict[str, Any]) -> None:
        """Take up a saved training."""
        self.net.load_state_dict(state["net"])
        if "heads" in state:  # a released checkpoint has none
            self.heads.load_state_dict(state["heads"])
        self.average.load_state_dict(average["net"])
        self.step = state["step"]
        optimizer = load(self.folder / OPTIMIZER)
        if optimizer is not None and optimizer["step"] == self.step:
            self.optimizer.load_state_dict(optimizer["optimizer"])
            if self.muon is not None and optimizer["muon"] is not None:
                self.muon.load_state_dict(optimizer["muon"])

    def save(self) -> None:
        """Write everything that carrying on needs, weights in half precision."""
        state = {
            "net": halved(self.net.state_dict()),
            "heads": halved(self.heads.state_dict()),
            "step": self.step,
        }
        save(self.folder / CHECKPOINT, state)
        save(self.folder / AVERAGE, {"net": halved(self.average.state_dict()), "step": self.step})
        muon = None if self.muon is None else self.muon.state_dict()
        optimizer = {"optimizer": self.optimizer.state_dict(), "muon": muon, "step": self.step}
        save(self.folder / OPTIMIZER, optimizer)

    def losses(self, lesson: Lesson, *, disturbed: bool = True) -> dict[str, Tensor]:
        """Losses of conversations; with disturbed inputs as in training, or as they are."""
        own_BKT, user_BKT = lesson.own, lesson.user
        misled_B = torch.zeros_like(lesson.text_trained)
        if disturbed:
            misled_B = torch.rand(misled_B.shape, device=self.device) < self.lm.decoy_share
            misled_B[len(misled_B) - self.num_sums(len(misled_B)) :] = True
            misled_B &= lesson.text_trained
            own_BKT = torch.where(misled_B[:, None, None], lesson.decoy, own_BKT)
            # From none to twice the share: alone, it hears its own slips and what follows them.
            share_B = 2 * self.lm.own_noise * torch.rand(len(own_BKT), device=self.device)
            own_BKT = self._disturb(own_BKT, share_B[:, None, None])
            user_BKT = self._hide(self._disturb(user_BKT, self.lm.user_noise))
        ids_BST = columns(self.spec, lesson.text, own_BKT, user_BKT)
        state_BTD = self.net.temporal(ids_BST)
        found = self._text_losses(state_BTD, lesson, misled_B)
        spoken_BTK = targets(self.spec, lesson.own)
        spoken_BT = lesson.speaking.clone()
        spoken_BT[:, 1:] |= lesson.speaking[:, :-1]
        share_BT = torch.where(spoken_BT, self.lm.spoken_share, self.lm.silent_share)
        kept_BT = torch.rand(share_BT.shape, device=self.device) < share_BT
        kept_BT &= (spoken_BTK >= 0).all(-1)
        kept_BT[0, -1] = True  # never none at all
        at_M = kept_BT.flatten().nonzero()[:, 0]
        codes_MK = spoken_BTK.flatten(0, 1)[at_M]
        logits_MKV = self.net.depth(
            state_BTD.flatten(0, 1)[at_M], lesson.text.flatten()[at_M], codes_MK
        )
        each_MK = F.cross_entropy(logits_MKV.transpose(1, 2), codes_MK, reduction="none")
        found["semantic"] = each_MK[:, 0].mean()
        found["acoustic"] = each_MK[:, 1:].mean()
        if not disturbed:
            right_MK = logits_MKV.argmax(-1) == codes_MK
            found["semantic_right"] = right_MK[:, 0].float().mean()
            found["acoustic_right"] = right_MK[:, 1:].float().mean()
        return found

    def num_sums(self, batch: int) -> int:
        """Conversations of a batch, the last ones, that are about sums and misled."""
        return round(batch * self.lm.sum_share)

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Weighted sum."""
        return (
            losses["text"]
            + self.lm.heard_weight * losses["heard"]
            + self.lm.counted_weight * losses["counted"]
            + losses["semantic"]
            + _ACOUSTIC_WEIGHT * losses["acoustic"]
        )

    def update(self, loss: Tensor, rate: float) -> Tensor:
        """One step of the optimizers and of the average; returns the norm of the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parameters = [*self.net.parameters(), *self.heads.parameters()]
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, _GRADIENT_LIMIT)
        self.optimizer.step()
        if self.muon is not None:
            for group in self.muon.param_groups:
                group["lr"] = rate * self.lm.muon_rate / self.lm.learning_rate
            self.muon.step()
        self.step += 1
        decay = min(self.lm.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.net.parameters()), 1 - decay
            )
        return norm

    def _text_losses(
        self, state_BTD: Tensor, lesson: Lesson, misled_B: Tensor
    ) -> dict[str, Tensor]:
        logits_BTV = self.net.text_logits(state_BTD)
        each_BT = F.cross_entropy(logits_BTV.transpose(1, 2), lesson.text, reduction="none")
        padding_BT = lesson.text == words.PADDING
        weight_BT = torch.where(padding_BT, self.lm.text_padding_weight, 1.0)
        weight_BT = torch.where(misled_B[:, None], _MISLED_WEIGHT * weight_BT, weight_BT)
        result_B1 = torch.where(misled_B, self.lm.result_weight, self.lm.read_weight)[:, None]
        weight_BT = torch.where(sums.is_result(lesson.text), result_B1, weight_BT)
        weight_BT = weight_BT * lesson.text_trained[:, None]
        found = {"text": (each_BT * weight_BT).sum() / weight_BT.sum().clamp(min=1)}
        asked_B = lesson.text_trained & misled_B
        found["counted"] = sums.loss(self.heads["counted"], state_BTD, lesson.text, asked_B)
        asked_BTV = self.heads["heard"](state_BTD)
        each_BT = F.cross_entropy(asked_BTV.transpose(1, 2), lesson.heard, reduction="none")
        weight_BT = torch.where(lesson.heard == words.PADDING, _HEARD_PADDING, 1.0)
        found["heard"] = (each_BT * weight_BT).sum() / weight_BT.sum()
        result_BT = sums.is_result(lesson.text) & asked_B[:, None]
        known = ((logits_BTV.argmax(-1) == lesson.text) & result_BT).sum()
        found["result_right"] = known / result_BT.sum().clamp(min=1)
        for name, logits, wanted, trained_BT in (
            ("text_right", logits_BTV, lesson.text, lesson.text_trained[:, None]),
            ("heard_right", asked_BTV, lesson.heard, torch.ones_like(lesson.text_trained)[:, None]),
        ):
            word_BT = (wanted >= words.FIRST_WORD) & trained_BT
            right = ((logits.argmax(-1) == wanted) & word_BT).sum()
            found[name] = right / word_BT.sum().clamp(min=1)
        return found

    def _disturb(self, codes_BKT: Tensor, share: Tensor | float) -> Tensor:
        other_BKT = torch.randint_like(codes_BKT, self.spec.cardinality)
        changed_BKT = torch.rand(codes_BKT.shape, device=self.device) < share
        return torch.where(changed_BKT, other_BKT, codes_BKT)

    def _hide(self, user_BKT: Tensor) -> Tensor:
        hidden_B = torch.rand(len(user_BKT), device=self.device) < self.lm.hidden_share
        acoustic_K = torch.arange(user_BKT.shape[1], device=self.device) > 0
        hidden_BK1 = (hidden_B[:, None] & acoustic_K)[..., None]
        return torch.where(hidden_BK1, ZERO_CODE, user_BKT)


def train_lm(options: Options) -> None:
    """Train until the steps or the seconds are over, carrying on from the folder's checkpoint."""
    set_up_torch(options.threads)
    training, lm = LMTraining(options), options.lm
    codes = load_codes(training.folder / CODES)
    questions = load_questions(training.folder / QUESTIONS)
    kept_back = min(_KEPT_BACK, len(codes) // 4)
    other = decoys(codes, options.seed)
    late, early = slice(kept_back, None), slice(0, kept_back)
    lessons = Lesson.of(codes, late, training.device, other)
    plus = (codes.text[late] == words.token("plus")).sum(1)
    about_sums = np.flatnonzero((plus >= _SUM_TURNS) & codes.text_trained[late])
    validation = Lesson.of(codes, early, training.device, other)
    course = Course(training.step, lm.num_steps, lm.seconds, lm.decay_share)
    journal, means = Journal(training.folder / "lm.jsonl"), Means()
    alarm = Alarm(lm.save_every_s)
    while course.progress(training.step) < 1:
        rng = np.random.default_rng([options.seed, 8, training.step])
        torch.manual_seed(options.seed * 1_000_003 + training.step)
        chosen = rng.integers(len(lessons), size=lm.batch)
        if len(about_sums):
            count = training.num_sums(lm.batch)
            chosen[lm.batch - count :] = about_sums[rng.integers(len(about_sums), size=count)]
        rows = torch.from_numpy(chosen).to(training.device)
        losses = training.losses(lessons.pick(rows))
        rate = course.learning_rate(training.step, lm.learning_rate)
        norm = training.update(training.total(losses), rate)
        means.add(gradient=norm, **losses)
        if training.step % _LOG_EVERY == 0:
            journal.write(training.step, {**means.take(), "rate": rate})
        if training.step % _VALIDATE_EVERY == 0:
            journal.write(training.step, _measure(training, validation))
        if training.step % _ANSWER_EVERY == 0:
            journal.write(training.step, _answers(training, questions))
        if alarm.due():
            training.save()
    training.save()
    journal.write(training.step, _measure(training, validation))
    journal.write(training.step, _answers(training, questions))


@torch.no_grad()
def _measure(training: LMTraining, validation: Lesson) -> dict[str, float]:
    everything = validation.pick(torch.arange(len(validation), device=training.device))
    found = training.losses(everything, disturbed=False)
    return {f"unseen_{name}": float(value) for name, value in found.items()}


def _answers(training: LMTraining, questions: Questions) -> dict[str, float]:
    """How many of a few questions the averaged model answers rightly, on its own."""
    from moshi_pipe_nano.evaluate import score_questions

    return score_questions(training.average, questions, limit=64).shares
