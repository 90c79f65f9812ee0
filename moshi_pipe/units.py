"""Numbers with units: nanoseconds, samples, bytes, and how they are written for people."""

from __future__ import annotations

from typing import Final

NS_PER_SECOND: Final = 1_000_000_000
NS_PER_MS: Final = 1_000_000


def seconds_to_samples(seconds: float, sample_rate: int) -> int:
    """Samples that ``seconds`` take at ``sample_rate`` Hz, rounded to the nearest."""
    return round(seconds * sample_rate)


def format_bytes(num_bytes: float) -> str:
    """Write a size in decimal units: ``15.38 GB``, ``384.6 MB``, ``512 B``."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(num_bytes) >= scale:
            return f"{num_bytes / scale:.4g} {unit}"
    return f"{num_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """Write a duration: ``850 ms``, ``12.3 s``, ``4 min 05 s``, ``2 h 03 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_count(number: int, noun: str) -> str:
    """Write a number of things: ``1 slot``, ``8 slots``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
