"""Own codes that say something else, so that the text is not read from the model's own voice.

A spoken sentence gives away its end early: melody and the last sound of a word tell what follows.
With the true voice given, a model learns to read the result of a sum from it; on its own there is
nothing to read. Given the voice of another answer, it has to know.

Shape letters: B conversation, K codebook, T frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from moshi_pipe_nano import words

if TYPE_CHECKING:
    import numpy.typing as npt

    from moshi_pipe_nano.codes import Codes

_STILL: Final = 3  # frames before an answer, one that is silent
_FORM: Final = slice(1, 2)  # the word of an answer that tells its form: "plus", "comes"


def decoys(codes: Codes, seed: int) -> npt.NDArray[np.int16]:
    """Own codes ``[B, K, T]`` in which every answer is another one, of its form if possible."""
    rng = np.random.default_rng([seed, 14])
    runs = [(row, *span) for row in range(len(codes)) for span in _runs(codes.speaking[row])]
    forms = [_form(codes.text[row, max(first - 2, 0) : end]) for row, first, end in runs]
    alike: dict[str, list[int]] = {}
    for i, form in enumerate(forms):
        alike.setdefault(form, []).append(i)
    own = codes.own.copy()
    num_frames = own.shape[-1]
    for (row, first, end), form in zip(runs, forms, strict=True):
        choices = alike[form] if len(alike[form]) > 1 else range(len(runs))
        other, begin, stop = runs[choices[rng.integers(len(choices))]]
        length = min(stop - begin, num_frames - first)
        before = max(first - _STILL, 0)
        own[row, :, first:end] = codes.own[row, :, before : before + 1]
        own[row, :, first : first + length] = codes.own[other, :, begin : begin + length]
    return own


def _runs(speaking_T: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First frame and end of every stretch of speech."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speaking_T, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _form(text_T: npt.NDArray[np.int16]) -> str:
    said = words.text_of(text_T.tolist()).split()
    return " ".join(said[_FORM])
