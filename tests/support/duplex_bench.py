"""Full-Duplex-Bench in miniature: a sample of each task, and answers whose scores are known.

Users speak espeak-ng's English at 16 kHz. An answer is what a model would say at which time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import soundfile

from support.speech import placed, speech
from support.tokens import PAD, START, WordTokenizer

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

USER_RATE: Final = 16_000
MODEL_RATE: Final = 24_000
FRAME: Final = 1920
FRAME_S: Final = FRAME / MODEL_RATE

FIRST: Final = "I would like to book a table"
SECOND: Final = "for four people on Friday evening please"
LONG: Final = (
    "Yesterday I walked to the market and bought some apples and a loaf of bread, "
    "and then I went home along the river because the weather was so nice."
)
BREAK_IN: Final = "Wait, make it for six people"
OVERLAPS: Final = {
    "user_interruption": BREAK_IN,
    "user_backchannel": "yeah right",
    "talking_to_other": "Could you pass me the salt please",
    "background_speech": "The next train leaves from platform two",
}
"""What is said into the model's speech, by task of v1.5."""
ASKS: Final = "Sure for what time shall I book it"
TELLS: Final = (
    "Certainly we have a nice one on the terrace and another by the window which one do you prefer"
)
AGREES: Final = "for six then of course"


@dataclass(frozen=True)
class Said:
    """A sentence of the model: when it begins, a multiple of 80 ms, and its words."""

    at_s: float
    text: str

    @property
    def pcm_N(self) -> npt.NDArray[np.float32]:
        return speech(self.text, MODEL_RATE)

    @property
    def end_s(self) -> float:
        return self.at_s + self.pcm_N.size / MODEL_RATE

    @property
    def words(self) -> list[tuple[str, int]]:
        """Each word and its frame: that of its share of the sentence."""
        words = self.text.split()
        begin, frames = round(self.at_s / FRAME_S), self.pcm_N.size / FRAME
        return [(word, begin + int(i * frames / len(words))) for i, word in enumerate(words)]


@dataclass
class Bench:
    """The miniature: times of what the users say, by task.

    Attributes:
        root: Holds the folders of tasks.
        spans: Start and end of each sentence of the user.
    """

    root: Path
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(
        self,
        task: str,
        seconds: float,
        *sentences: tuple[float, str],
        annotation: tuple[str, Any] | None = None,
        clean: int | None = None,
    ) -> None:
        """Write a sample called 1; ``clean`` is how many sentences are no overlap."""
        folder = self.root / task / "1"
        folder.mkdir(parents=True)
        pieces = [(at_s, speech(text, USER_RATE)) for at_s, text in sentences]
        write(folder / "input.wav", placed(seconds, *pieces, rate=USER_RATE))
        self.spans[task] = [(at, at + pcm_N.size / USER_RATE) for at, pcm_N in pieces]
        if clean is not None:
            write(folder / "clean_input.wav", placed(seconds, *pieces[:clean], rate=USER_RATE))
        if annotation is not None:
            (folder / annotation[0]).write_text(json.dumps(annotation[1]))


def write(path: Path, pcm_N: npt.NDArray[np.float32]) -> None:
    soundfile.write(path, 0.7 * pcm_N, USER_RATE, subtype="PCM_16")


def length_s(text: str) -> float:
    return speech(text, USER_RATE).size / USER_RATE


def make_bench(root: Path) -> Bench:
    """Write all tasks of v1 and v1.5."""
    bench = Bench(root)
    first_s = length_s(FIRST)
    for task in ("candor_pause_handling", "synthetic_pause_handling"):
        second_s = round(1 + first_s + 1.6, 2)
        bench.add(
            task,
            second_s + length_s(SECOND) + 0.5,
            *((1.0, FIRST), (second_s, SECOND)),
            annotation=(
                "pause.json",
                [{"text": "[PAUSE]", "timestamp": [1 + first_s, second_s]}],
            ),
        )
    bench.add(
        "candor_turn_taking",
        9.0,
        (1.0, f"{FIRST} {SECOND}"),
        annotation=(
            "turn_taking.json",
            [{"text": "[TURN-TAKING]", "timestamp": [turn_end_s(), turn_end_s() + 0.2]}],
        ),
    )
    bench.add("icc_backchannel", 1 + length_s(LONG), (0.5, LONG))
    end_s = 7 + length_s(BREAK_IN)
    bench.add(
        "synthetic_user_interruption",
        14.0,
        *((0.5, FIRST), (7.0, BREAK_IN)),
        annotation=(
            "interrupt.json",
            [{"context": FIRST, "interrupt": BREAK_IN, "timestamp": [7.0, end_s]}],
        ),
    )
    for task, overlap in OVERLAPS.items():
        bench.add(
            task,
            14.0,
            *((0.5, FIRST), (6.0, overlap)),
            annotation=(
                "metadata.json",
                {
                    "context_text": FIRST,
                    "current_turn_text": overlap,
                    "timestamps": [6.0, 6 + length_s(overlap)],
                },
            ),
            clean=1,
        )
    return bench


def turn_end_s() -> float:
    """When the user of ``candor_turn_taking`` has ended."""
    return 1 + length_s(f"{FIRST} {SECOND}")


def after(time_s: float, pause_s: float) -> float:
    """A frame's start, at least ``pause_s`` after a time."""
    return ceil((time_s + pause_s) / FRAME_S - 1e-9) * FRAME_S


TOKENIZER: Final = WordTokenizer(
    tuple(
        f"▁{word}"
        for word in (
            *("Sure", "for", "what", "time", "shall", "I", "book", "it", "Yes", "mhm", "Certainly"),
            *("we", "have", "a", "nice", "on", "the", "terrace", "and", "another", "by"),
            *("window", "which", "one", "do", "you", "prefer", "six", "then", "of", "course"),
        )
    )
)


def answer_tokens(said: tuple[Said, ...], num_frames: int) -> list[int]:
    """A token per frame."""
    tokens = [PAD] * num_frames
    for one in said:
        for word, frame in one.words:
            assert tokens[frame] == PAD, f"'{word}' has no frame of its own"
            tokens[frame] = TOKENIZER.pieces.index(f"▁{word}")
            if frame and tokens[frame - 1] == PAD:
                tokens[frame - 1] = START
    return tokens


def answer_audio(said: tuple[Said, ...], num_frames: int) -> npt.NDArray[np.float32]:
    """What is heard of the model, ``[N]`` at 24 kHz."""
    return 0.7 * placed(num_frames * FRAME_S, *((one.at_s, one.pcm_N) for one in said))
