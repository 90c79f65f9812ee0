"""What a model says before it is spoken to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.models.tokenizer import PADDING_ID

if TYPE_CHECKING:
    import numpy.typing as npt

_OF_THE_MODEL: Final = ("audio", "text", "codes")


class Greeting:
    """Leaves out what a model makes at first, until its text has been padding for a while.

    The padding itself is left out too: it is silence. A model that begins with padding loses
    nothing but that; one that never pads loses everything.

    Args:
        num_padding: Frames of padding in a row that end it; None leaves nothing out.

    Attributes:
        num_frames: Frames up to the last one with text that was left out.
    """

    def __init__(self, num_padding: int | None) -> None:
        self.num_frames = 0
        self._num_padding = num_padding
        self._frames = 0
        self._padding = 0

    def without(self, row: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """What of a frame's outputs is passed on."""
        if self._num_padding is None or self._padding >= self._num_padding:
            return row
        self._frames += 1
        if "text" in row:
            padding = int(row["text"]) == PADDING_ID
            self._padding = self._padding + 1 if padding else 0
            if not padding:
                self.num_frames = self._frames
        return {name: value for name, value in row.items() if name not in _OF_THE_MODEL}
