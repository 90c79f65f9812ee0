"""What is the latency of a live conversation made of, and does it run without a gap?

    python benchmarks/bench_live.py --seconds 60 --graph codec dialogue

The real command, on the model in the package, with a virtual microphone and speaker of a PulseAudio
server of its own. Ours is the time from a frame's last sample delivered to its answer queued at the
speaker, less the time inside codec and language model. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import emit

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.audio import babble  # noqa: E402
from support.pulse import Pulse, end  # noqa: E402


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--graph", nargs="+", default=["codec", "dialogue"])
    args = parser.parse_args()
    emit("live", {"seconds": args.seconds, **{g: run(g, args.seconds) for g in args.graph}})


def run(graph: str, seconds: float) -> dict[str, Any]:
    """One conversation."""
    with tempfile.TemporaryDirectory(prefix="mp") as name:
        folder = Path(name)
        pulse = Pulse(folder).start()
        player = pulse.feed(babble(seconds + 20).astype(np.float32))
        words = [
            *("source=mic", "source.device=virt_mic", f"source.duration_s={seconds}"),
            *("sink=[speaker,file]", "sink.speaker.device=virt_speaker", f"graph={graph}"),
            *("model=embedded", "seed=1", f"output_dir={folder}/out"),
        ]
        command = [sys.executable, "-m", "moshi_pipe", *words]
        try:
            subprocess.run(
                command, check=True, env=pulse.environment, cwd=ROOT, capture_output=True
            )
        finally:
            end(player)
            pulse.stop()
        return parts(folder / "out")


def parts(folder: Path) -> dict[str, Any]:
    """The latency in its parts, in ms."""
    (path,) = folder.glob("*.session.json")
    session, report = json.loads(path.read_text()), json.loads((folder / "run.json").read_text())
    speaker, live = session["sinks"]["speaker"], report["live"]
    pick = ("p50_ms", "p99_ms", "max_ms")
    return {
        "microphone_ms": session["source"]["latency_ms"],
        "framing_ms": session["frame_s"] * 1000,
        "nodes": {node["name"]: {k: node[k] for k in pick} for node in report["nodes"]},
        "ours": {k: speaker["ours"][k] for k in pick},
        "reserve_ms": speaker["reserve_ms"],
        "speaker_ms": speaker["latency_ms"],
        "delivered_to_audible": {k: speaker["audible"][k] for k in pick},
        "underruns": speaker["underruns"],
        "late": live["late"],
        "dropped": session["dropped"],
        "drift_ppm": speaker["drift_ppm"],
        "verdict": report["verdict"],
    }


if __name__ == "__main__":
    main()
