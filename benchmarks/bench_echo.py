"""How much of an echo does the canceller take out, and what does it cost?

    python benchmarks/bench_echo.py --delay-ms 40 120 250

Speech comes back from the speaker by two paths of known delay, as in a small room; nobody else
speaks. The reduction is the energy before over that after, in the second half. Prints one JSON
line.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import soundfile
from measure import emit, summary

from moshi_pipe.nodes.echo import make_filter

SPEECH = Path(__file__).parents[1] / "examples" / "question.wav"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-ms", type=int, nargs="+", default=[40, 120, 250])
    args = parser.parse_args()
    speech, rate = soundfile.read(SPEECH, dtype="float32")
    played_N = np.tile(speech, 3)
    rows = {str(delay): cancel(played_N, rate, delay) for delay in args.delay_ms}
    emit("echo", {"rate": rate, "delay_ms": rows})


def cancel(played_N: np.ndarray, rate: int, delay_ms: int) -> dict[str, float]:
    """Cancel one loop, 20 ms at a time."""
    heard_N = np.zeros_like(played_N)
    for extra_ms, gain in ((0, 0.5), (17, 0.15)):
        delay = (delay_ms + extra_ms) * rate // 1000
        heard_N[delay:] += gain * played_N[:-delay]
    echo, block, times_ms, parts = make_filter("cancel", rate), rate // 50, [], []
    for start in range(0, heard_N.size - block, block):
        part = slice(start, start + block)
        begin_ns = time.perf_counter_ns()
        parts.append(echo.process(heard_N[part], played_N[part]))
        times_ms.append((time.perf_counter_ns() - begin_ns) / 1e6)
    clean_N = np.concatenate(parts)
    half = slice(clean_N.size // 2, clean_N.size)
    before, after = np.square(heard_N[half]).mean(), np.square(clean_N[half]).mean()
    reduction_db = float(10 * np.log10(before / max(float(after), 1e-12)))
    return {"reduction_db": round(reduction_db, 1), **summary(times_ms)}


if __name__ == "__main__":
    main()
