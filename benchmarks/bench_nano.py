"""Does the small model answer, in time and intelligibly, and does it run in real time?

    OMP_NUM_THREADS=1 python benchmarks/bench_nano.py --model nano --questions 100

Voices, speeds, phrasings and pairs that training never heard, spoken by espeak-ng and stepped
through the pipeline frame by frame. Needs `plugins/nano[score]` and espeak-ng's library. Prints one
JSON line: every figure beside its target. With `--floors` it fails where a figure is worse than
what even a few questions must give; times are not among those.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measure import emit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "plugins" / "nano"))

from moshi_pipe_nano import domain  # noqa: E402
from moshi_pipe_nano.espeak import SAMPLE_RATE  # noqa: E402
from moshi_pipe_nano.live import (  # noqa: E402
    Answer,
    Question,
    ask,
    interrupt,
    long_questions,
    onset_after,
    questions,
    spoke_between,
    spoken_part,
)
from moshi_pipe_nano.recognise import recognise, word_errors  # noqa: E402
from moshi_pipe_nano.synthesis import Line, speak_all  # noqa: E402
from moshi_pipe_nano.voices import ASSISTANT  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moshi_pipe.api import Model

IN_TIME_S = 1.0
SEED = 20
MEMORY_FRAMES = 100
PEAK = """
import re, torch
torch.zeros(1)
{}
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
RUN = """
import numpy, moshi_pipe
with moshi_pipe.load({!r}).session(seed=0) as session:
    for _ in session.run(numpy.zeros({}, numpy.float32)):
        pass
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that is aimed at.

    Attributes:
        value: The bound, in the figure's own unit.
        at_least: Whether more is better.
    """

    value: float
    at_least: bool = False


TARGETS = {
    "right": Target(0.9, at_least=True),
    "right_held_out": Target(0.7, at_least=True),
    "in_time": Target(0.9, at_least=True),
    "spoke_over_the_user": Target(0.05),
    "stopped_when_interrupted": Target(0.8, at_least=True),
    "answer_word_error_rate": Target(0.1),
    "round_trip_word_error_rate": Target(0.05),
    "frame_median_ms": Target(40.0),
    "memory_mb": Target(250.0),
    "same_bytes": Target(1.0, at_least=True),
}

FLOORS = {
    "right": 0.6,
    "right_held_out": 0.3,
    "in_time": 0.8,
    "spoke_over_the_user": 0.1,
    "stopped_when_interrupted": 0.6,
    "answer_word_error_rate": 0.2,
    "round_trip_word_error_rate": 0.1,
    "memory_mb": 250.0,
    "same_bytes": 1.0,
}
"""What a few questions must give: looser than the targets by what chance does to a few."""


def main() -> None:
    """Run and print; the exit code is 1 beneath a floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano", help="a name of conf/model, or a folder")
    parser.add_argument("--questions", type=int, default=100, help="of each kind")
    parser.add_argument("--interruptions", type=int, default=40)
    parser.add_argument("--sentences", type=int, default=30, help="of the codec's round trip")
    parser.add_argument("--floors", action="store_true", help="fail beneath them")
    args = parser.parse_args()
    import moshi_pipe

    model = moshi_pipe.load(args.model)
    known = [(q, ask(model, q, SEED)) for q in questions(args.questions, SEED, unknown=False)]
    unknown = [(q, ask(model, q, SEED)) for q in questions(args.questions, SEED, unknown=True)]
    found = {
        **answered(known, unknown),
        **interrupted(model, args.interruptions),
        **round_trip(moshi_pipe.load(args.model, graph="codec"), args.sentences),
        "frame_median_ms": statistics.median(t for _, a in known for t in a.frame_ms),
        "memory_mb": memory_mb(args.model),
        "same_bytes": float(same_bytes(model, known[0])),
    }
    figures = {name: figure(name, value) for name, value in found.items()}
    emit("nano", {**vars(args), "figures": figures})
    low = [name for name in FLOORS if args.floors and not above(name, found[name])]
    if low:
        sys.exit(f"beneath the floor: {', '.join(f'{n} {found[n]} of {FLOORS[n]}' for n in low)}")


def above(name: str, value: float | None) -> bool:
    """Whether a figure is as good as its floor; one that was not measured is not."""
    if value is None:
        return False
    return value >= FLOORS[name] if TARGETS[name].at_least else value <= FLOORS[name]


def figure(name: str, value: float | None) -> dict[str, Any]:
    """A figure beside its target, if it has one."""
    shown: dict[str, Any] = {"value": None if value is None else round(value, 4)}
    target = TARGETS.get(name)
    if target is not None:
        better = value is not None and (value >= target.value) == target.at_least
        reached = better or value == target.value
        shown |= {("min" if target.at_least else "max"): target.value, "reached": reached}
    return shown


def answered(
    known: Sequence[tuple[Question, Answer]], unknown: Sequence[tuple[Question, Answer]]
) -> dict[str, float | None]:
    """Right words, in time, intelligible."""
    both = [*known, *unknown]
    delays = [onset_after(a.pcm, q.end_s) for q, a in both]
    late = [d is None or d - q.end_s > IN_TIME_S for d, (q, _) in zip(delays, both, strict=True)]
    waited = [d - q.end_s for d, (q, _) in zip(delays, both, strict=True) if d is not None]
    early = [spoke_between(a, q.start_s, q.end_s) for q, a in both]
    found: dict[str, float | None] = {
        "right": share([a.text == q.exchange.answer for q, a in known]),
        "right_held_out": share([a.text == q.exchange.answer for q, a in unknown]),
        "in_time": share([not x for x in late]),
        "median_delay_s": statistics.median(waited) if waited else None,
        "spoke_over_the_user": share(early),
    }
    for kind in domain.KINDS:
        rows = [a.text == q.exchange.answer for q, a in known if q.exchange.kind == kind]
        if rows:
            found[f"right_{kind}"] = share(rows)
    spoken = [(a.text.split(), spoken_part(a.pcm)) for _, a in both if a.text]
    return {**found, "answer_word_error_rate": word_error_rate(spoken)}


def interrupted(model: Model, count: int) -> dict[str, float | None]:
    """How soon it stops when the user speaks while it does."""
    first, over = long_questions(count, SEED + 1), questions(count, SEED + 2, unknown=False)
    stops = [interrupt(model, q, other, SEED) for q, other in zip(first, over, strict=False)]
    heard = [s for s in stops if s is not None]
    return {
        "interruptions": float(len(heard)),
        "stopped_when_interrupted": share([s <= IN_TIME_S for s in heard]) if heard else None,
    }


def round_trip(codec: Model, count: int) -> dict[str, float | None]:
    """What the codec leaves of held-out sentences in the model's own voice."""
    import torch
    from moshi_pipe_nano.losses import mel_distance
    from pystoi import stoi

    texts = sorted({e.answer for e in domain.exchanges() if e.held_out_pair})
    texts = texts[:: max(1, len(texts) // count)]
    originals, decoded = [], []
    for recording in speak_all([Line(text, ASSISTANT) for text in texts], workers=1):
        original_N = recording.pcm.astype(np.float32) / 32_768
        originals.append(original_N)
        with codec.session() as session:
            out = [f.audio[0] for f in session.run(original_N) if f.audio is not None]
        whole_N = np.concatenate(out)[: len(original_N)]
        decoded.append(np.pad(whole_N, (0, len(original_N) - len(whole_N))))
    pairs = list(zip(decoded, originals, strict=True))
    distances = [
        mel_distance(torch.from_numpy(d)[None], torch.from_numpy(o)[None], SAMPLE_RATE)
        for d, o in pairs
    ]
    words = [text.split() for text in texts]
    return {
        "round_trip_word_error_rate": word_error_rate(zip(words, decoded, strict=True)),
        "original_word_error_rate": word_error_rate(zip(words, originals, strict=True)),
        "mel_distance_db": statistics.fmean(distances),
        "stoi": statistics.fmean(float(stoi(o, d, SAMPLE_RATE)) for d, o in pairs),
    }


def word_error_rate(spoken: Any) -> float | None:
    """What the recogniser gets wrong of pairs of words and sound."""
    rows = list(spoken)
    errors = sum(word_errors(words, recognise(pcm, SAMPLE_RATE).split()) for words, pcm in rows)
    total = sum(len(words) for words, _ in rows)
    return errors / total if total else None


def same_bytes(model: Model, asked: tuple[Question, Answer]) -> bool:
    """Whether the same question and seed give the same bytes again."""
    question, before = asked
    after = ask(model, question, SEED)
    return after.text == before.text and after.pcm.tobytes() == before.pcm.tobytes()


def memory_mb(model: str) -> float | None:
    """What loading and running adds to a process that imported torch alone, at its peak.

    From Linux's own account: a child's ``ru_maxrss`` begins at its parent's.
    """
    if not sys.platform.startswith("linux"):
        return None
    bare, full = (
        float(subprocess.check_output([sys.executable, "-c", code], text=True))
        for code in (PEAK.format(""), PEAK.format(RUN.format(model, MEMORY_FRAMES * 1_920)))
    )
    return (full - bare) / 1e3


def share(rows: Sequence[bool]) -> float:
    """Share of the rows that are true."""
    return sum(rows) / len(rows) if rows else 0.0


if __name__ == "__main__":
    main()
