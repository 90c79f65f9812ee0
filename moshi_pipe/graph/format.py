"""What a port carries. Two ports can be linked when their formats are equal field by field."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Audio:
    """PCM, float32 in [-1, 1], one ``[channels, frame_size]`` array per frame.

    Attributes:
        sample_rate: Hz.
        frame_size: Samples per channel in one frame.
        channels: 1 is mono.
    """

    sample_rate: int
    frame_size: int
    channels: int = 1
    dtype: ClassVar[str] = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame's array."""
        return (self.channels, self.frame_size)

    def __str__(self) -> str:
        return f"audio {self.sample_rate} Hz, {self.channels} ch, {self.frame_size} samples a frame"


@dataclass(frozen=True, slots=True)
class Codes:
    """One column of codes per frame, int64 ``[num_codebooks]``.

    Attributes:
        num_codebooks: Codes per frame.
        cardinality: Legal codes are ``0 .. cardinality - 1``.
        frame_rate: Frames per second.
    """

    num_codebooks: int
    cardinality: int
    frame_rate: Fraction
    dtype: ClassVar[str] = "int64"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame's array."""
        return (self.num_codebooks,)

    def __str__(self) -> str:
        return (
            f"codes, {self.num_codebooks} codebooks of {self.cardinality}, "
            f"{float(self.frame_rate):g} Hz"
        )


@dataclass(frozen=True, slots=True)
class Text:
    """One text token per frame, an int.

    Attributes:
        cardinality: Tokens in the vocabulary; 0 for pieces of a remote model, whose vocabulary
            is not known.
        frame_rate: Frames per second.
    """

    cardinality: int
    frame_rate: Fraction
    dtype: ClassVar[str] = "int64"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame's array: a single number."""
        return ()

    def __str__(self) -> str:
        what = f"{self.cardinality} tokens" if self.cardinality else "pieces"
        return f"text, {what}, {float(self.frame_rate):g} Hz"


Format = Audio | Codes | Text


def differing_fields(offered: Format, wanted: Format) -> tuple[str, ...]:
    """Names of the fields in which two formats differ; ``kind`` when they are of two kinds."""
    if type(offered) is not type(wanted):
        return ("kind",)
    names = (f.name for f in fields(offered))
    return tuple(n for n in names if getattr(offered, n) != getattr(wanted, n))
