"""Runs as a CSV file: a session a row."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moshi_pipe.report_page.page import Study

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would run


def write_table(found: Study) -> str:
    """One row per session: its run, what differs in the configuration, its metrics with units."""
    fixed = [
        "configuration",
        "run",
        "signature",
        "seed",
        "session",
        "status",
        "frames",
        "audio_s",
        "wall_s",
    ]
    names = [
        f"{name} ({unit})" if (unit := found.units.get(name)) else name for name in found.metrics
    ]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([_safe(cell) for cell in (*fixed, *found.keys, *names)])
    for group in found.groups:
        for run in group.runs:
            about_run = [
                group.letter,
                run.name,
                run.report.get("signature"),
                run.report.get("seed"),
            ]
            values = [group.values[key] for key in found.keys]
            for part in run.sessions:
                about = [part.record.get(key) for key in ("frames", "audio_s", "wall_s")]
                metrics = [part.metrics.get(name) for name in found.metrics]
                row = [*about_run, part.id, part.status, *about, *values, *metrics]
                rows.writerow([_safe(cell) for cell in row])
    return text.getvalue()


def _safe(cell: object) -> object:
    """Text that no spreadsheet takes for a formula; numbers as they are."""
    if cell is None:
        return ""
    if isinstance(cell, str) and cell.startswith(_FORMULA) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
