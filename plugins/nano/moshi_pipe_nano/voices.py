"""Who speaks: the model's one voice, and many for the user, some of which are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Speaker:
    """A voice of espeak-ng and how it speaks.

    Attributes:
        voice: Such as ``en-us+f2``.
        speed: Words a minute.
        pitch: 0 to 99.
    """

    voice: str
    speed: int
    pitch: int


ASSISTANT: Final = Speaker("en-us+f2", 150, 50)
"""The model's own voice."""

ACCENTS: Final = ("en-us", "en")
TRAINED: Final = [
    "f1",
    "f3",
    "f5",
    "m1",
    "m2",
    "m3",
    "m4",
    "m6",
    "m7",
    "klatt",
    "klatt2",
    "klatt4",
    "adam",
    "alex",
    "anika",
    "antonio",
    "belinda",
    "benjamin",
    "boris",
    "david",
    "ed",
    "edward",
    "gene2",
    "gustave",
    "henrique",
    "hugo",
    "iven",
    "jacky",
    "john",
    "linda",
    "marcelo",
    "max",
    "michel",
    "miguel",
    "norbert",
    "pablo",
    "pedro",
    "quincy",
    "robert",
    "sandro",
    "shelby",
    "steph",
    "travis",
    "victor",
]
"""Variants that training hears."""

HELD_OUT: Final = ["f4", "m5", "m8", "klatt3", "caleb", "annie"]
"""Variants that only measurements hear."""

_SPEED: Final = (125, 185)
_PITCH: Final = (25, 75)


def draw_speaker(rng: np.random.Generator, *, held_out: bool = False) -> Speaker:
    """Draw a user: variant, accent, speed and pitch.

    Args:
        rng: Consumed.
        held_out: Draw from the voices that training never hears.
    """
    variants = HELD_OUT if held_out else TRAINED
    variant = _cased(variants[rng.integers(len(variants))])
    accent = ACCENTS[0] if rng.random() < 0.7 else ACCENTS[1]
    return Speaker(
        f"{accent}+{variant}",
        int(rng.integers(_SPEED[0], _SPEED[1] + 1)),
        int(rng.integers(_PITCH[0], _PITCH[1] + 1)),
    )


def all_voices() -> tuple[str, ...]:
    """Every voice that :func:`draw_speaker` can give."""
    return tuple(f"{accent}+{_cased(v)}" for v in (*TRAINED, *HELD_OUT) for accent in ACCENTS)


def _cased(variant: str) -> str:
    return {"alex": "Alex", "gene2": "Gene2", "henrique": "Henrique", "hugo": "Hugo",
            "jacky": "Jacky", "annie": "Annie"}.get(variant, variant)  # fmt: skip
