"""What a config may set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RELEASE: Final = 0.15
"""By how much the probability must fall below the threshold before speech may end.

Source: snakers4/silero-vad src/silero_vad/utils_vad.py, VADIterator.__call__.
"""


@dataclass
class VadOptions:
    """What counts as speech, and where it is written down.

    Attributes:
        path: Name of the file under ``output_dir``, without ``.turns.jsonl``.
        threshold: Probability from which a window of 32 ms is speech, above 0.15 and below 1.
        min_silence_ms: Silence that ends a segment; shorter pauses belong to it.
        min_speech_ms: Shorter segments are left out.
        pad_ms: By how much a segment is widened at both ends.
    """

    path: str = "{stem}"
    threshold: float = 0.5
    min_silence_ms: int = 300
    min_speech_ms: int = 250
    pad_ms: int = 30
