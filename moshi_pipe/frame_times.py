"""The last minute of a live session, frame by frame, as a file: when each thing happened."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from moshi_pipe.report import write_atomically
from moshi_pipe.units import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from moshi_pipe.engine.lateness import TickTimes


def write_frame_times(
    path: Path,
    session_id: str,
    ticks: Iterable[TickTimes],
    nodes: Sequence[str],
    audible_ns: Mapping[int, int],
) -> None:
    """Write one JSON object a line.

    It holds ``frame``, and in ms from the first delivery in the file ``delivered_ms``, ``tick_ms``
    (start and end), ``nodes`` (likewise) and ``audible_ms`` (null where it was not played).

    Args:
        path: The file.
        session_id: Whose frames.
        ticks: Of the engine, oldest first.
        nodes: Their names, in the order of the schedule.
        audible_ns: When frames left the speaker, by number.

    Raises:
        OutputError: It cannot be written.
    """
    rows = [
        (frame, delivered_ns, tick)
        for tick in ticks
        for owner, frame, delivered_ns in tick.frames
        if owner == session_id
    ]
    zero_ns = rows[0][1] if rows else 0

    def ms(at_ns: int) -> float:
        return round((at_ns - zero_ns) / NS_PER_MS, 3)

    lines = []
    for frame, delivered_ns, tick in rows:
        spans = zip(nodes, tick.nodes, strict=True)
        audible = audible_ns.get(frame)
        record = {
            "frame": frame,
            "delivered_ms": ms(delivered_ns),
            "tick_ms": [ms(tick.start_ns), ms(tick.end_ns)],
            "nodes": {name: [ms(begin), ms(end)] for name, (begin, end) in spans},
            "audible_ms": None if audible is None else ms(audible),
        }
        lines.append(json.dumps(record) + "\n")
    write_atomically(path, "".join(lines))
