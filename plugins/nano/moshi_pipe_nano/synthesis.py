"""Many sentences at once, by several processes: espeak-ng is not for several threads.

This module does not import torch, so a process starts quickly.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moshi_pipe_nano.espeak import synthesizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from moshi_pipe_nano.espeak import Span
    from moshi_pipe_nano.voices import Speaker

_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Line:
    """What is to be said, and by whom.

    Attributes:
        text: Plain words.
        speaker: Voice, speed, pitch.
        exchange: Index of the exchange whose question it is; -1 for none.
    """

    text: str
    speaker: Speaker
    exchange: int = -1


@dataclass(frozen=True, slots=True)
class Recording:
    """A line that was spoken.

    Attributes:
        line: What it is of.
        pcm: int16 ``[N]`` at 24 kHz.
        words: As written, in order.
        phones: IPA symbols, in order.
    """

    line: Line
    pcm: npt.NDArray[np.int16]
    words: tuple[Span, ...]
    phones: tuple[Span, ...]


def speak(line: Line) -> Recording:
    """Speak one line in this process."""
    speaker = line.speaker
    said = synthesizer().say(
        line.text, voice=speaker.voice, speed=speaker.speed, pitch=speaker.pitch
    )
    pcm = (said.samples * 32_767).clip(-32_768, 32_767).astype(np.int16)
    return Recording(line, pcm, said.words, said.phones)


def speak_all(lines: Sequence[Line], workers: int) -> list[Recording]:
    """Speak every line, in order; the result does not depend on the number of processes."""
    if workers <= 1:
        return [speak(line) for line in lines]
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        return list(pool.imap(speak, lines, chunksize=_CHUNK))
