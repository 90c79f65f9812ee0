"""Questions that training never heard, answered by the model alone, frame by frame.

This measures the network itself on stored codes; ``benchmarks/bench_nano.py`` measures what the
released layout does inside the pipeline.

Shape letters: B question, S stream, K codebook, T frame, D width, V entries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from moshi_pipe_nano import domain, words
from moshi_pipe_nano.codec_data import FRAME_SAMPLES
from moshi_pipe_nano.codes import QUESTIONS, load_net, load_questions
from moshi_pipe_nano.espeak import SAMPLE_RATE
from moshi_pipe_nano.lm_net import LMNet
from moshi_pipe_nano.lm_train import AVERAGE
from moshi_pipe_nano.run import load, pick_device, set_up_torch
from moshi_pipe_nano.shapes import lm_spec

if TYPE_CHECKING:
    from torch import Tensor

    from moshi_pipe_nano.codes import Questions
    from moshi_pipe_nano.options import Options

EVALUATION: Final = "evaluation.json"
SAMPLES: Final = "samples.npz"
_NUM_SAMPLES: Final = 24
_IN_TIME_FRAMES: Final = 12  # 0.96 s from the question's end to the first word


@dataclass(frozen=True, slots=True)
class Score:
    """How questions were answered.

    Attributes:
        shares: Named shares of the questions, 0 to 1.
        lines: One question each: what was asked, wanted, said.
        own: Codes that were said, ``[B, K, T]``.
    """

    shares: dict[str, float]
    lines: list[dict[str, object]]
    own: Tensor


@torch.no_grad()
def answer(net: LMNet, user_BKT: Tensor, temperature: float = 0.0) -> tuple[Tensor, Tensor]:
    """Let the model speak: greedy text, and codes at a temperature.

    Args:
        net: The model.
        user_BKT: What it hears, int64.
        temperature: Of the codes; 0 takes the most likely ones.

    Returns:
        Text ``[B, T]`` and own codes ``[B, K, T]``, aligned.
    """
    spec, (batch, _, num_frames) = net.spec, user_BKT.shape
    device, num_own = user_BKT.device, spec.num_generated
    initial_S = torch.tensor(spec.initial_codes, device=device)
    ids_BST = initial_S[None, :, None].repeat(batch, 1, num_frames + 1)
    text_BT = torch.full((batch, num_frames), words.PADDING, device=device)
    own_BKT = torch.zeros(batch, num_own, num_frames, dtype=torch.int64, device=device)
    for t in range(num_frames):
        for k in range(spec.num_user):
            delay = spec.delays[1 + num_own + k]
            if t > delay:
                ids_BST[:, 1 + num_own + k, t] = user_BKT[:, k, t - delay - 1]
        state_BD = net.temporal(ids_BST[..., : t + 1])[:, -1]
        text_B = net.text_logits(state_BD).argmax(-1)
        codes_BK = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        for _ in range(num_own):
            logits_BV = net.depth(state_BD, text_B, codes_BK)[:, -1]
            codes_BK = torch.cat([codes_BK, _choose(logits_BV, temperature)], dim=1)
        text_BT[:, t] = text_B
        ids_BST[:, 0, t + 1] = text_B
        for k in range(num_own):
            delay = spec.delays[1 + k]
            if t >= delay:
                own_BKT[:, k, t - delay] = codes_BK[:, k]
                ids_BST[:, 1 + k, t + 1] = codes_BK[:, k]
    return text_BT, own_BKT


def score_questions(
    net: LMNet, questions: Questions, limit: int | None = None, temperature: float = 0.0
) -> Score:
    """Ask and compare the text; ``limit`` takes about as many of them, both kinds alike."""
    step = 1 if limit is None else max(1, len(questions.user) // limit)
    chosen = np.arange(0, len(questions.user), step)
    device = net.weights["out_norm.alpha"].device
    user_BKT = torch.from_numpy(questions.user[chosen]).long().to(device)
    text_BT, own_BKT = answer(net, user_BKT, temperature)
    lines: list[dict[str, object]] = []
    for row, text in zip(chosen, text_BT.tolist(), strict=True):
        exchange, end = domain.exchanges()[questions.exchange[row]], int(questions.end_frame[row])
        spoken = [t for t, token in enumerate(text) if token >= words.FIRST_WORD]
        lines.append(
            {
                "asked": exchange.question,
                "wanted": exchange.answer,
                "said": words.text_of(text),
                "held_out": bool(questions.held_out[row]),
                "right": words.text_of(text) == exchange.answer,
                "in_time": bool(spoken) and spoken[0] - end <= _IN_TIME_FRAMES,
                "early": bool(spoken) and spoken[0] < end,
            }
        )
    known = [line for line in lines if not line["held_out"]]
    unknown = [line for line in lines if line["held_out"]]
    shares = {
        "right": _share(known, "right"),
        "right_held_out": _share(unknown, "right"),
        "in_time": _share(lines, "in_time"),
        "early": _share(lines, "early"),
    }
    return Score(shares, lines, own_BKT)


def evaluate(options: Options) -> None:
    """Ask every stored question; write the figures, the lines, and codes and sound of some."""
    set_up_torch(options.threads)
    folder, device = Path(options.out), pick_device(options.device)
    net = LMNet(lm_spec(options.lm, options.codec)).place(device).requires_grad_(False)
    state = load(folder / AVERAGE)
    if state is None:
        raise FileNotFoundError(f"{folder / AVERAGE}: run stage=lm first")
    net.load_state_dict(state["net"])
    questions = load_questions(folder / QUESTIONS)
    scores = {str(t): score_questions(net, questions, temperature=t) for t in (0.0, 0.5)}
    text = {name: {"shares": s.shares, "lines": s.lines} for name, s in scores.items()}
    (folder / EVALUATION).write_text(json.dumps(text, indent=1), encoding="utf-8")
    codec = load_net(options)
    step = max(1, len(questions.user) // _NUM_SAMPLES)
    own_BKT = scores["0.0"].own[::step]
    with torch.no_grad():
        pcm_BN = codec.decode(codec.latents(own_BKT)).clamp(-1, 1)
    np.savez_compressed(
        folder / SAMPLES,
        codes=own_BKT.to(torch.int16).cpu().numpy(),
        pcm=(pcm_BN * 32_767).to(torch.int16).cpu().numpy(),
        said=np.array([line["said"] for line in scores["0.0"].lines[::step]]),
        sample_rate=SAMPLE_RATE,
        frame_size=FRAME_SAMPLES,
    )


def _choose(logits_BV: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        return logits_BV.argmax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits_BV / temperature, dim=-1), 1)


def _share(lines: list[dict[str, object]], name: str) -> float:
    return sum(bool(line[name]) for line in lines) / max(len(lines), 1)
