"""Training of the codec, in two phases: encoder and decoder together, then the decoder alone.

The decoder learns the model's one voice. The encoder learns to keep the words of every voice: a
small classifier, thrown away afterwards, must tell the phonemes from the first codebook alone.
After the first phase the codes are final, and the language model can be trained beside the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moshi_pipe_nano.codec_data import (
    POSITIONS_PER_FRAME,
    Pool,
    assistant_sentences,
    phone_symbols,
    user_sentences,
)
from moshi_pipe_nano.losses import spectral_loss
from moshi_pipe_nano.mimi_net import MimiNet
from moshi_pipe_nano.noise import NoiseBeds
from moshi_pipe_nano.run import Journal, Means, learning_rate, load, save
from moshi_pipe_nano.shapes import mimi_spec

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe_nano.codec_data import Batch
    from moshi_pipe_nano.options import CodecOptions, Options

CHECKPOINT: Final = "codec.pt"
_DECODER: Final = ("upsample", "decoder")
_LOG_EVERY: Final = 50
_VALIDATE_EVERY: Final = 200
_GRADIENT_LIMIT: Final = 1.0
_DROPPED_SHARE: Final = 0.25  # of crops that are decoded from fewer codebooks


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


class CodecTraining:
    """The codec, its classifier, its data and where the training stands.

    Args:
        options: Of the whole command.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.codec = options, options.codec
        self.symbols = phone_symbols()
        self.net = MimiNet(mimi_spec(self.codec), options.seed)
        torch.manual_seed(options.seed)
        self.head = PhoneHead(self.codec.quantizer_dim, len(self.symbols))
        self.step = 0
        self.path = Path(options.out) / CHECKPOINT
        self.optimizer = self._optimizer()
        state = load(self.path)
        if state is not None:
            self.restore(state)

    @property
    def num_steps(self) -> int:
        """Steps of both phases."""
        return self.codec.num_steps + self.codec.num_decoder_steps

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved training."""
        self.net.load_state_dict(state["net"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self, path: Path | None = None) -> None:
        """Write everything that carrying on needs."""
        state = {
            "net": self.net.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        save(path or self.path, state)

    def losses(self, assistant: Batch, user: Batch, rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses of one step of the first phase, and updated codebooks."""
        codec = self.codec
        latent = self.net.encode(assistant.pcm_BN)
        kept = np.full(len(latent), codec.num_codebooks)
        dropped = rng.random(len(latent)) < _DROPPED_SHARE
        kept[dropped] = rng.integers(1, codec.num_codebooks + 1, size=int(dropped.sum()))
        own = self.net.quantize(
            latent, num_codebooks_B=torch.from_numpy(kept), learn=(True, True)
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

    def update(self, loss: Tensor) -> float:
        """One step of the optimizer; returns the norm of the gradient."""
        decoder_only = self.step >= self.codec.num_steps
        first = self.codec.num_steps if decoder_only else 0
        length = self.codec.num_decoder_steps if decoder_only else self.codec.num_steps
        # The decoder goes on at half of the rate: it is not new any more.
        peak = self.codec.learning_rate * (0.5 if decoder_only else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step - first, length, peak)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, _GRADIENT_LIMIT, error_if_nonfinite=True)
        self.optimizer.step()
        self.step += 1
        return float(norm)

    def _optimizer(self) -> torch.optim.AdamW:
        parameters = [*self.net.parameters(), *self.head.parameters()]
        return torch.optim.AdamW(parameters, lr=0.0, betas=(0.8, 0.99), weight_decay=1e-4)


@torch.no_grad()
def phone_accuracy(training: CodecTraining, batch: Batch) -> float:
    """Share of spoken positions whose phoneme the first codebook tells."""
    heard = training.net.quantize(training.net.encode(batch.pcm_BN))
    guessed = training.head(heard.semantic_MQ).argmax(-1)
    targets = batch.phones_BP.flatten()
    spoken = targets > 0
    return float((guessed[spoken] == targets[spoken]).float().mean())


def train_codec(options: Options) -> None:
    """Train until both phases are done, carrying on from the folder's checkpoint."""
    torch.set_num_threads(options.threads)
    training = CodecTraining(options)
    codec: CodecOptions = options.codec
    own = Pool(list(assistant_sentences(codec.num_salads, options.seed)), training.symbols)
    user = Pool(list(user_sentences(codec.num_user_sentences, options.seed)), training.symbols)
    unheard = list(user_sentences(48, options.seed + 1, held_out=True))
    beds = NoiseBeds(options.seed)
    validation = Pool(unheard, training.symbols).draw(
        48, 25, np.random.default_rng([options.seed, 3]), beds
    )
    journal, means = Journal(Path(options.out) / "codec.jsonl"), Means()
    while training.step < training.num_steps:
        rng = np.random.default_rng([options.seed, 4, training.step])
        torch.manual_seed(options.seed * 1_000_003 + training.step)
        assistant = own.draw(codec.assistant_batch, codec.assistant_frames, rng)
        if training.step < codec.num_steps:
            heard = user.draw(codec.user_batch, codec.user_frames, rng, beds)
            losses = training.losses(assistant, heard, rng)
        else:
            losses = training.decoder_losses(assistant)
        norm = training.update(training.total(losses))
        means.add(gradient=norm, **{name: float(value.detach()) for name, value in losses.items()})
        _after_step(training, validation, journal, means)
    training.save()


def _after_step(
    training: CodecTraining, validation: Batch, journal: Journal, means: Means
) -> None:
    step, codec = training.step, training.codec
    if step % _LOG_EVERY == 0:
        values = means.take()
        if step % _VALIDATE_EVERY == 0 and step <= codec.num_steps:
            values["unheard_accuracy"] = phone_accuracy(training, validation)
        journal.write(step, values)
    if step % codec.save_every == 0 or step == codec.num_steps:
        training.save()
    if step == codec.num_steps:
        training.save(training.path.with_name("codec-joint.pt"))
