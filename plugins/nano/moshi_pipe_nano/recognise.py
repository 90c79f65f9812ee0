"""An independent recogniser reads what was said: pocketsphinx with a grammar over the answers.

Its English model comes with its package. The grammar knows the forms of the answers and every
word of their slots, so that a wrong word is a wrong word.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe_nano import domain

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_RATE: Final = 16_000
_PAD_S: Final = 0.3


def grammar() -> str:
    """The answers as a JSGF grammar."""
    things = [*domain.THINGS]
    fixed = [a for e in domain.exchanges() if e.kind in ("greeting", "goodbye") for a in [e.answer]]
    rules = {
        "number": domain.NUMBERS,
        "day": domain.DAYS,
        "name": domain.NAMES,
        "noun": domain.NOUNS,
        "colour": domain.COLOURS,
        "thing": things,
        "fixed": list(dict.fromkeys(fixed)),
    }
    lines = ["#JSGF V1.0;", "grammar nano;"]
    lines += [f"<{name}> = {' | '.join(words)};" for name, words in rules.items()]
    forms = (
        "<number> plus <number> is <number>",
        "<number> comes after <number>",
        "<day> comes after <day>",
        "<number>+",
        "the <noun> is <colour>",
        "<thing> is <colour>",
        "nice to meet you <name>",
        "<fixed>",
    )
    return "\n".join([*lines, f"public <answer> = {' | '.join(forms)};"]) + "\n"


def recognise(pcm: npt.NDArray[np.float32], sample_rate: int) -> str:
    """Words of one answer; empty where nothing was recognised."""
    size = len(pcm) * _RATE // sample_rate
    spectrum = np.fft.rfft(pcm)
    keep = min(len(spectrum), size // 2 + 1)
    narrow = np.fft.irfft(spectrum[:keep], size) * (size / max(len(pcm), 1))
    peak = max(float(np.abs(narrow).max(initial=0.0)), 1e-3)
    pad = np.zeros(int(_PAD_S * _RATE))
    samples = np.concatenate([pad, narrow * (0.5 / peak), pad])
    rng = np.random.default_rng(0)  # exact silence upsets its noise estimate
    samples = samples + 3e-4 * rng.standard_normal(len(samples))
    decoder = _decoder()
    decoder.start_utt()
    decoder.process_raw((samples * 32_767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    return "" if found is None else str(found.hypstr)


def word_errors(wanted: Sequence[str], said: Sequence[str]) -> int:
    """Least number of words to insert, delete or replace."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(wanted, 1):
        last, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (word != other))
    return row[-1]


@lru_cache(maxsize=1)
def _decoder() -> Any:
    from pocketsphinx import Decoder  # type: ignore[import-untyped]

    decoder = Decoder(samprate=_RATE, loglevel="FATAL", lm=None)
    decoder.add_jsgf_string("nano", grammar())
    decoder.activate_search("nano")
    return decoder
