"""The whole way from nothing to a model that was measured, and its released form.

On a GPU whole conversations are encoded, sentences are spoken once and kept in memory, and the
decoder goes on in a process of its own beside the language model, for both leave much of it idle.
On a CPU sentences are encoded once, and one thing is done after the other.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from moshi_pipe_nano.clips import write_clips
from moshi_pipe_nano.codec_train import make_pools, train_codec, train_decoder
from moshi_pipe_nano.codes import write_codes
from moshi_pipe_nano.evaluate import evaluate
from moshi_pipe_nano.export import export
from moshi_pipe_nano.lm_train import train_lm
from moshi_pipe_nano.plots import draw_journals
from moshi_pipe_nano.run import Journal, pick_device, set_up_torch

if TYPE_CHECKING:
    from moshi_pipe_nano.options import Options

_KEPT_S: Final = 26.0  # of the deadline, for what follows the language model's training
_START_S: Final = 14.0  # until a process of its own trains


def run_everything(options: Options) -> None:
    """Train codec and language model, measure them, write ``released/`` and the curves.

    With ``deadline_s`` the language model's training is cut so that all ends about then.
    """
    begun = time.monotonic()
    set_up_torch(options.threads)
    device = pick_device(options.device)
    journal = Journal(Path(options.out) / "everything.jsonl")
    if device.type == "cpu":
        _train_in_turn(options, journal, begun)
    else:
        _train_at_once(options, journal, begun, device)
    evaluate(options)
    export(options)
    draw_journals(options)
    journal.write(5, {"evaluated_s": time.monotonic() - begun})


def _train_in_turn(options: Options, journal: Journal, begun: float) -> None:
    """Codec, decoder, sentences, language model."""
    train_codec(options)
    journal.write(1, {"codec_s": time.monotonic() - begun})
    train_decoder(options)
    journal.write(2, {"decoder_s": time.monotonic() - begun})
    count = write_clips(options)
    journal.write(3, {"codes_s": time.monotonic() - begun, "conversations": count})
    if options.deadline_s > 0:
        left = options.deadline_s - _KEPT_S - (time.monotonic() - begun)
        options.lm.seconds = min(options.lm.seconds or left, max(left, 1.0))
    train_lm(options)
    journal.write(4, {"lm_s": time.monotonic() - begun})


def _train_at_once(options: Options, journal: Journal, begun: float, device: torch.device) -> None:
    """Codec, conversations, then the language model and the decoder beside each other."""
    pools = make_pools(options, device)
    hours = float(pools.user.lengths.sum() + pools.own.lengths.sum()) / 24_000 / 3600
    journal.write(0, {"sentences_s": time.monotonic() - begun, "hours": hours})
    train_codec(options, pools)
    journal.write(1, {"codec_s": time.monotonic() - begun, **_memory(device)})
    count = write_codes(options, pools)
    journal.write(
        2, {"codes_s": time.monotonic() - begun, "conversations": count, **_memory(device)}
    )
    del pools
    if options.deadline_s > 0:
        left = options.deadline_s - _KEPT_S - (time.monotonic() - begun)
        options.lm.seconds = min(options.lm.seconds or left, max(left, 1.0))
        options.codec.decoder_seconds = max(options.lm.seconds - _START_S, 1.0)
    decoder = _decoder_process(options)
    try:
        train_lm(options)
        journal.write(3, {"lm_s": time.monotonic() - begun, **_memory(device)})
        with suppress(subprocess.TimeoutExpired):
            decoder.wait(timeout=15 if options.deadline_s > 0 else None)
    finally:
        if decoder.poll() is None:
            decoder.terminate()  # it saved now and then
        decoder.wait()
    journal.write(4, {"decoder_s": time.monotonic() - begun, "code": float(decoder.returncode)})


def _decoder_process(options: Options) -> subprocess.Popen[bytes]:
    """Train the decoder with the same options."""
    arguments = ["stage=decoder"]
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            arguments += [f"{field.name}.{f.name}={getattr(value, f.name)}" for f in fields(value)]
        elif field.name != "stage" and value != "":
            arguments.append(f"{field.name}={value}")
    return subprocess.Popen([sys.executable, "-m", "moshi_pipe_nano.app", *arguments])


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"peak_gb": torch.cuda.max_memory_allocated(device) / 1e9}
