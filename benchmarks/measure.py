"""What every benchmark shares: pinned threads, paired timing, one JSON line."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

Step = Callable[[int], None]
"""Do frame ``i``; everything it needs was prepared before."""


def time_interleaved(
    steps: Mapping[str, Step], num_frames: int, warm_up: int
) -> dict[str, list[float]]:
    """Time several contestants frame by frame in turn, so that a drift of the machine hits all.

    Each frame has an order of its own, drawn: who comes after whom matters by up to a fifth, as
    every contestant finds in the caches what the one before it left.

    Returns:
        Milliseconds per frame and contestant, the warm-up left out.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in steps}
    draw = random.Random(0)
    for frame in range(num_frames + warm_up):
        for name in draw.sample(list(steps), len(steps)):
            start_ns = time.perf_counter_ns()
            steps[name](frame)
            if frame >= warm_up:
                times_ms[name].append((time.perf_counter_ns() - start_ns) / 1e6)
    return times_ms


def alone(work: Callable[..., Any], *args: Any, threads: int) -> Any:
    """Call ``work(*args)`` in a process of its own, where Rust takes so many threads, once."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def summary(times_ms: Sequence[float]) -> dict[str, float]:
    """Median, p99 and minimum, in ms."""
    ordered = sorted(times_ms)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]
    return {
        "median_ms": round(statistics.median(ordered), 3),
        "p99_ms": round(p99, 3),
        "min_ms": round(ordered[0], 3),
    }


def bandwidth(*, threads: int, megabytes: int = 1024) -> float:
    """Bytes per second at which so many threads read memory that no cache holds, the best of ten.

    A floor: what a step reads once takes at least its bytes over this.
    """
    import torch

    from moshi_pipe.nn.huge_pages import HugePages

    torch.set_num_threads(threads)
    data = HugePages().zeros((megabytes << 8, 1024), torch.float32).fill_(1.0)
    other = torch.ones(1024)
    times = []
    for read in (data.sum, lambda: data.mv(other)) * 5:
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    return data.nbytes / min(times)


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def emit(question: str, result: Mapping[str, Any]) -> None:
    """Print the result as one JSON line."""
    print(json.dumps({"bench": question, **result, "machine": machine()}), flush=True)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return "unknown"
    return result.stdout.strip() or "unknown"
