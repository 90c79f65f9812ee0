"""Training of the codec, in two phases: encoder and decoder together, then the decoder alone.

The decoder learns the model's one voice. The encoder learns to keep the words of every voice: a
small classifier, thrown away afterwards, must tell the phonemes from the first codebook alone.
After the first phase the codes are final, and the language model can be trained beside the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe_nano.codec_data import (
    POSITIONS_PER_FRAME,
    Pool,
    assistant_lines,
    phone_symbols,
    user_lines,
)
from moshi_pipe_nano.losses import spectral_loss
from moshi_pipe_nano.mimi_net import MimiNet
from moshi_pipe_nano.noise import NoiseBeds
from moshi_pipe_nano.run import (
    Alarm,
    Course,
    Journal,
    Means,
    load,
    pick_device,
    save,
    set_up_torch,
)
from moshi_pipe_nano.shapes import mimi_spec
from moshi_pipe_nano.synthesis import speak_all

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe_nano.codec_data import Batch
    from moshi_pipe_nano.options import Options

CHECKPOINT: Final = "codec.pt"
OPTIMIZER: Final = "codec-optimizer.pt"
_DECODER: Final = ("upsample", "decoder", "decoder_transformer", "quantizer.rvq_first.output_proj",
                   "quantizer.rvq_rest.output_proj")  # fmt: skip
_LOG_EVERY: Final = 50
_VALIDATE_EVERY: Final = 200
_GRADIENT_LIMIT: Final = 1.0
_DROPPED_SHARE: Final = 0.25  # of crops that are decoded from fewer codebooks
_UNHEARD: Final = 64  # sentences by held-out voices that measure the encoder


class PhoneHead(nn.Module):
    """Phonemes of a frame from its first code; only training has it."""

    def __init__(self, width: int, num_symbols: int) -> None:
        super().__init__()
        self.num_classes = num_symbols + 1
        self.net = nn.Sequential(
            nn.Linear(width, 128), nn.GELU(), nn.Linear(128, POSITIONS_PER_FRAME * self.num_classes)
        )

    def forward(self, semantic_MQ: Tensor) -> Tensor:
        """Logits, one row per position in order of time."""
        logits: Tensor = self.net(semantic_MQ)
        return logits.view(-1, self.num_classes)


@dataclass(frozen=True, slots=True)
class CodecPools:
    """What the codec hears.

    Attributes:
        symbols: Phoneme inventory.
        own: The model's voice.
        user: Many voices, the ones of training.
        unheard: Sentences by voices that training never hears.
    """

    symbols: tuple[str, ...]
    own: Pool
    user: Pool
    unheard: Pool


def make_pools(options: Options, device: torch.device) -> CodecPools:
    """Speak everything that the codec is trained on."""
    codec, symbols = options.codec, phone_symbols()
    own = assistant_lines(codec.num_salads, options.seed)
    user = user_lines(codec.num_user_sentences, options.seed)
    unheard = user_lines(_UNHEARD, options.seed + 1, held_out=True)
    spoken = speak_all([*own, *user, *unheard], options.workers)
    parts = (spoken[: len(own)], spoken[len(own) : -len(unheard)], spoken[-len(unheard) :])
    pools = [Pool(part, symbols, device) for part in parts]
    return CodecPools(symbols, *pools)


class CodecTraining:
    """The codec, its classifier and where the training stands.

    Args:
        options: Of the whole command.
        num_symbols: Of the phoneme inventory.
    """

    def __init__(self, options: Options, num_symbols: int) -> None:
        self.options, self.codec = options, options.codec
        self.device = pick_device(options.device)
        self.net = MimiNet(mimi_spec(self.codec), options.seed).place(self.device)
        torch.manual_seed(options.seed)
        self.head = PhoneHead(self.codec.quantizer_dim, num_symbols).to(self.device)
        self.step = 0
        self.folder = Path(options.out)
        self.optimizer = self._optimizer()
        state = load(self.folder / CHECKPOINT)
        if state is None and options.codec_from:
            state = load(Path(options.codec_from))
        if state is not None:
            self.restore(state)

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved training."""
        self.net.load_state_dict(state["net"])
        self.head.load_state_dict(state["head"])
        self.step = state["step"]
        optimizer = load(self.folder / OPTIMIZER)
        if optimizer is not None and optimizer["step"] == self.step:
            self.optimizer.load_state_dict(optimizer["optimizer"])

    def save(self, name: str = CHECKPOINT) -> None:
        """Write everything that carrying on needs; the optimizer's part into a file of its own."""
        state = {
            "net": self.net.state_dict(),
            "head": self.head.state_dict(),
            "step": self.step,
        }
        save(self.folder / name, state)
        if name == CHECKPOINT:
            optimizer = {"optimizer": self.optimizer.state_dict(), "step": self.step}
            save(self.folder / OPTIMIZER, optimizer)

    def losses(self, assistant: Batch, user: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses of one step of the first phase, and updated codebooks."""
        codec = self.codec
        latent = self.net.encode(assistant.pcm_BN)
        kept = np.full(len(latent), codec.num_codebooks)
        dropped = rng.random(len(latent)) < _DROPPED_SHARE
        kept[dropped] = rng.integers(1, codec.num_codebooks + 1, size=int(dropped.sum()))
        own = self.net.quantize(
            latent,
            num_codebooks_B=torch.from_numpy(kept).to(self.device),
            learn=(True, True),
        )
        decoded = self.net.decode(own.latent_BDT)
        found = {
            "spectrum": spectral_loss(decoded, assistant.pcm_BN, self.net.spec.sample_rate),
            "waveform": F.l1_loss(decoded, assistant.pcm_BN),
            "commitment": own.commitment,
        }
        heard = self.net.quantize(self.net.encode(user.pcm_BN), learn=(True, False))
        for name, part, batch in (("own_phones", own, assistant), ("phones", heard, user)):
            targets = batch.phones_BP.flatten()
            found[name] = F.cross_entropy(self.head(part.semantic_MQ), targets)
            # Without the quantizer as well: that is where learning gets hold at first.
            found[name] = found[name] + 0.5 * F.cross_entropy(self.head(part.plain_MQ), targets)
        found["commitment"] = found["commitment"] + F.mse_loss(
            heard.plain_MQ, heard.semantic_MQ.detach()
        )
        return found

    def decoder_losses(self, assistant: Batch) -> dict[str, Tensor]:
        """Losses of one step of the second phase."""
        with torch.no_grad():
            latent = self.net.quantize(self.net.encode(assistant.pcm_BN)).latent_BDT
        decoded = self.net.decode(latent)
        return {
            "spectrum": spectral_loss(decoded, assistant.pcm_BN, self.net.spec.sample_rate),
            "waveform": F.l1_loss(decoded, assistant.pcm_BN),
        }

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Weighted sum."""
        weights = {
            "waveform": self.codec.waveform_weight,
            "commitment": self.codec.commitment_weight,
            "own_phones": 0.5 * self.codec.phone_weight,
            "phones": self.codec.phone_weight,
        }
        parts = [weights.get(name, 1.0) * value for name, value in losses.items()]
        return torch.stack(parts).sum()

    def update(self, loss: Tensor, rate: float) -> Tensor:
        """One step of the optimizer; returns the norm of the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, _GRADIENT_LIMIT)
        self.optimizer.step()
        self.step += 1
        return norm

    def _optimizer(self) -> torch.optim.AdamW:
        parameters = [*self.net.parameters(), *self.head.parameters()]
        return torch.optim.AdamW(
            parameters, lr=0.0, betas=(0.8, 0.99), weight_decay=1e-4, fused=True
        )


@torch.no_grad()
def phone_accuracy(training: CodecTraining, batch: Batch) -> float:
    """Share of spoken positions whose phoneme the first codebook tells."""
    heard = training.net.quantize(training.net.encode(batch.pcm_BN))
    guessed = training.head(heard.semantic_MQ).argmax(-1)
    targets = batch.phones_BP.flatten()
    spoken = targets > 0
    return float((guessed[spoken] == targets[spoken]).float().mean())


def train_codec(options: Options, pools: CodecPools | None = None) -> None:
    """Train encoder and decoder until the phase is done, from the folder's checkpoint on."""
    set_up_torch(options.threads)
    device = pick_device(options.device)
    pools = pools or make_pools(options, device)
    training, codec = CodecTraining(options, len(pools.symbols)), options.codec
    course = Course(training.step, codec.num_steps, codec.seconds)
    beds = NoiseBeds(options.seed, device)
    validation = pools.unheard.draw(_UNHEARD, 25, np.random.default_rng([options.seed, 3]), beds)
    journal, means = Journal(training.folder / "codec.jsonl"), Means()
    alarm = Alarm(codec.save_every_s)
    while course.progress(training.step) < 1:
        rng = np.random.default_rng([options.seed, 4, training.step])
        torch.manual_seed(options.seed * 1_000_003 + training.step)
        own = pools.own.draw(codec.assistant_batch, codec.assistant_frames, rng)
        heard = pools.user.draw(codec.user_batch, codec.user_frames, rng, beds)
        losses = training.losses(own, heard, rng)
        rate = course.learning_rate(training.step, codec.learning_rate)
        norm = training.update(training.total(losses), rate)
        means.add(gradient=norm, **losses)
        if training.step % _LOG_EVERY == 0:
            values = means.take()
            if training.step % _VALIDATE_EVERY == 0:
                values["unheard_accuracy"] = phone_accuracy(training, validation)
            journal.write(training.step, {**values, "rate": rate})
        if alarm.due():
            training.save()
    journal.write(training.step, {"unheard_accuracy": phone_accuracy(training, validation)})
    training.save()
    training.save("codec-joint.pt")


def train_decoder(options: Options, pool: Pool | None = None) -> None:
    """Train the decoder alone; the codes stay as they are.

    A checkpoint of the first phase with more steps than a second phase began with starts anew.
    """
    set_up_torch(options.threads)
    device, codec = pick_device(options.device), options.codec
    symbols = phone_symbols()
    if pool is None:
        lines = assistant_lines(codec.num_salads, options.seed)
        pool = Pool(speak_all(lines, options.workers), symbols, device)
    training = CodecTraining(options, len(symbols))
    for name, parameter in training.net.weights.items():
        parameter.requires_grad_(name.startswith(_DECODER) and isinstance(parameter, nn.Parameter))
    last = codec.num_steps + codec.num_decoder_steps
    course = Course(training.step, last, codec.decoder_seconds)
    journal, means = Journal(training.folder / "decoder.jsonl"), Means()
    alarm = Alarm(codec.save_every_s)
    while course.progress(training.step) < 1:
        rng = np.random.default_rng([options.seed, 5, training.step])
        losses = training.decoder_losses(
            pool.draw(codec.assistant_batch, codec.assistant_frames, rng)
        )
        # At half of the rate: the decoder is not new any more.
        rate = course.learning_rate(training.step, 0.5 * codec.learning_rate)
        norm = training.update(training.total(losses), rate)
        means.add(gradient=norm, **losses)
        if training.step % _LOG_EVERY == 0:
            journal.write(training.step, {**means.take(), "rate": rate})
        if alarm.due():
            training.save()
    training.save()
