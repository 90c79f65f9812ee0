"""What the small model can talk about: questions, their answers, and which it never saw.

An exchange is one question of the user and the one answer to it. A part of the sums and of the
repeated sentences is held out (never trained on as a pair), and so are some ways to ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

NUMBERS: Final = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
]
DAYS: Final = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
NAMES: Final = ["anna", "peter", "mary", "david", "laura", "tom", "sarah", "john", "emma", "daniel"]
NOUNS: Final = ["cat", "dog", "house", "ball", "bird", "table", "boat", "door"]
COLOURS: Final = ["red", "green", "blue", "white", "black", "yellow", "brown", "orange"]
THINGS: Final = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "the sun": "yellow",
    "blood": "red",
}  # fmt: skip

KINDS: Final = ("sum", "after", "count", "colour", "repeat", "name", "greeting", "goodbye")
"""Every kind of exchange."""

_SUM_ASKED: Final = ("what is {}", "how much is {}", "{}", "tell me what is {}")
_SUM_HELD_OUT: Final = ("please tell me how much is {}",)
_REPEAT_ASKED: Final = ("repeat after me {}", "please say {}", "say {}")
_REPEAT_HELD_OUT: Final = ("please repeat after me {}",)
_FIXED: Final[dict[str, tuple[tuple[tuple[str, ...], str], ...]]] = {
    "greeting": (
        (("hello", "hello there", "good morning"), "hello how are you"),
        (("how are you", "hello how are you", "how are you today"), "i am fine thank you"),
        (("what is your name", "hello what is your name", "tell me your name"), "my name is ada"),
        (("thank you", "thank you very much"), "you are welcome"),
    ),
    "goodbye": ((("goodbye", "bye bye", "goodbye ada", "see you tomorrow"), "goodbye"),),
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and its answer.

    Attributes:
        kind: One of :data:`KINDS`.
        question: What the user says.
        answer: What the model says.
        held_out_pair: The answer's content is never trained on.
        held_out_phrasing: This way to ask is never trained on.
    """

    kind: str
    question: str
    answer: str
    held_out_pair: bool = False
    held_out_phrasing: bool = False

    @property
    def trained(self) -> bool:
        """Whether training may see it."""
        return not (self.held_out_pair or self.held_out_phrasing)


@lru_cache(maxsize=1)
def exchanges() -> tuple[Exchange, ...]:
    """Every exchange of the domain, the held-out ones included, in a fixed order."""
    found = [*_sums(), *_after(), *_counts(), *_colours(), *_repeats(), *_names(), *_fixed()]
    return tuple(found)


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word that either side can say, sorted."""
    words = {w for e in exchanges() for w in (*e.question.split(), *e.answer.split())}
    return tuple(sorted(words))


def answers() -> tuple[str, ...]:
    """Every answer once, in order of appearance."""
    return tuple(dict.fromkeys(e.answer for e in exchanges()))


def _sums() -> list[Exchange]:
    """One-digit sums; a fifth of the ordered pairs is held out, each digit on both sides of it."""
    found = []
    for a in range(10):
        for b in range(10):
            spoken = f"{NUMBERS[a]} plus {NUMBERS[b]}"
            held_out = (3 * a + 7 * b + 2) % 5 == 0
            found += _asked(
                "sum", spoken, f"{spoken} is {NUMBERS[a + b]}", _SUM_ASKED, _SUM_HELD_OUT, held_out
            )
    return found


def _repeats() -> list[Exchange]:
    """Sentences to repeat; a fifth of the combinations is held out."""
    found = []
    for i, noun in enumerate(NOUNS):
        for j, colour in enumerate(COLOURS):
            said = f"the {noun} is {colour}"
            held_out = (i + 2 * j) % 5 == 0
            found += _asked("repeat", said, said, _REPEAT_ASKED, _REPEAT_HELD_OUT, held_out)
    return found


def _asked(
    kind: str,
    content: str,
    answer: str,
    known: tuple[str, ...],
    unknown: tuple[str, ...],
    held_out: bool,
) -> list[Exchange]:
    return [
        Exchange(kind, form.format(content), answer, held_out, form in unknown)
        for form in (*known, *unknown)
    ]


def _after() -> list[Exchange]:
    days = [
        Exchange("after", f"what day comes after {day}", f"{DAYS[(i + 1) % 7]} comes after {day}")
        for i, day in enumerate(DAYS)
    ]
    numbers = [
        Exchange(
            "after", f"what comes after {NUMBERS[n]}", f"{NUMBERS[n + 1]} comes after {NUMBERS[n]}"
        )
        for n in range(10)
    ]
    return days + numbers


def _counts() -> list[Exchange]:
    return [
        Exchange("count", form.format(NUMBERS[n]), " ".join(NUMBERS[1 : n + 1]))
        for n in range(2, 10)
        for form in ("count to {}", "please count to {}")
    ]


def _colours() -> list[Exchange]:
    return [
        Exchange("colour", form.format(thing), f"{thing} is {colour}")
        for thing, colour in THINGS.items()
        for form in ("what colour is {}", "tell me what colour is {}")
    ]


def _names() -> list[Exchange]:
    return [
        Exchange("name", form.format(name), f"nice to meet you {name}")
        for name in NAMES
        for form in ("my name is {}", "hello my name is {}")
    ]


def _fixed() -> list[Exchange]:
    return [
        Exchange(kind, question, answer)
        for kind, groups in _FIXED.items()
        for questions, answer in groups
        for question in questions
    ]
