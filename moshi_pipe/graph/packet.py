"""What travels from the engine to a sink: one output of one frame, and its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """When a frame went through the engine, by its clock, in ns.

    Attributes:
        delivered_ns: Its last sample came from the source.
        start_ns: Its tick began.
        end_ns: Its tick ended.
        model_ns: Time that the tick spent inside nodes.
    """

    delivered_ns: int = 0
    start_ns: int = 0
    end_ns: int = 0
    model_ns: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """One graph output of one frame of one session.

    Attributes:
        output: Name of the graph output, such as ``audio`` or ``text``.
        frame: Tick of the session that made it, from 0. Frames that were not valid are missing:
            numbers rise but may skip.
        pts_ns: Start of the frame on the session's time line: frame times its duration.
        payload: Audio float32 ``[channels, frame_size]``, codes int64 ``[num_codebooks]``, or a
            text token as int.
        times: When the frame went through the engine.
    """

    output: str
    frame: int
    pts_ns: int
    payload: npt.NDArray[np.float32] | npt.NDArray[np.int64] | int
    times: FrameTimes = FrameTimes()
