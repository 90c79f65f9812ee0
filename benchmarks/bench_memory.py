"""Does memory stay flat over an hour of audio?

    python benchmarks/bench_memory.py --hours 1 --graph codec

One whole run of the command in this process on the random model in the package. Resident memory is
noted every half second together with how much of the answer is on the disk; the growth is that from
the first minute of audio to the end. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import soundfile
from measure import emit

from moshi_pipe.cli import main as command

SAMPLE_RATE = 24_000
BYTES_PER_S = 2 * SAMPLE_RATE
MB = 1e6


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--graph", default="codec")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recording(folder / "long.wav", args.hours)
        readings = run(folder, args.graph)
    settled = [rss for seconds, rss in readings if seconds >= 60]
    emit(
        "memory",
        {
            "graph": args.graph,
            "audio_s": args.hours * 3600,
            "rss_after_a_minute_mb": round(settled[0] / MB, 1),
            "rss_at_the_end_mb": round(settled[-1] / MB, 1),
            "rss_largest_mb": round(max(settled) / MB, 1),
            "growth_mb": round((max(settled) - settled[0]) / MB, 1),
        },
    )


def write_recording(path: Path, hours: float) -> None:
    """Write noise, a minute at a time."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for _ in range(round(hours * 60)):
            file.write(0.1 * rng.standard_normal(60 * SAMPLE_RATE))


def run(folder: Path, graph: str) -> list[tuple[float, int]]:
    """Run the recording; give pairs of seconds on the disk and resident bytes."""
    answer = folder / "out" / "long.wav"
    readings: list[tuple[float, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            size = answer.stat().st_size if answer.exists() else 0
            readings.append((size / BYTES_PER_S, resident_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    words = [
        "model=embedded",
        f"source.path={folder / 'long.wav'}",
        f"output_dir={folder / 'out'}",
        f"graph={graph}",
        "sink=[file]",
        "engine.threads=1",
        "seed=1",
    ]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            code = command(words)
    finally:
        done.set()
        watcher.join()
    if code:
        raise SystemExit(f"the run failed with exit code {code}")
    return readings


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
