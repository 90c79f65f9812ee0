"""The reference package's own server as a process, on the CPU, with a model of ours.

Run as a script it is that process: ``reference_server.py CONFIG``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_START_S: Final = 120.0
_URL: Final = re.compile(r"Running on http://(\S+:\d+)")
_FILES: Final = ("moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name")


def reference_config(folder: Path, **values: Any) -> Path:
    """Write the config of a folder as the reference wants it: with ``file://`` names.

    Args:
        folder: What ``make-checkpoint`` wrote.
        values: Keys to add.
    """
    raw = json.loads((folder / "config.json").read_text())
    raw |= {key: f"file://{folder}/{raw[key]}" for key in _FILES if key in raw}
    path = folder / "config_reference.json"
    path.write_text(json.dumps(raw | values))
    return path


class ReferenceServer:
    """``python -m moshi.server``; use as a context manager.

    It holds its weights in bfloat16, and nothing wider.

    Args:
        folder: A checkpoint that ``make-checkpoint`` wrote.
        generation: Arguments of its generator; without any it takes the likeliest codes and text.

    Attributes:
        url: Such as ``ws://127.0.0.1:40001``.
        process: The process.
        lines: The last lines that it wrote.
    """

    def __init__(self, folder: Path, generation: Mapping[str, Any] | None = None) -> None:
        self.url = ""
        self.lines: deque[str] = deque(maxlen=200)
        config = reference_config(folder, lm_gen_config=dict(generation or {"use_sampling": False}))
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-u", __file__, str(config)],
            cwd=folder,
            env={
                **os.environ,
                "NO_TORCH_COMPILE": "1",  # without it a CPU run compiles its norms
                "NO_CUDA_GRAPH": "1",
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> ReferenceServer:
        if not self._ready.wait(_START_S) or not self.url:
            self.process.kill()
            raise RuntimeError("the reference's server did not start:\n" + "".join(self.lines))
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            found = _URL.search(line)
            if found:
                self.url = f"ws://{found[1]}"
                self._ready.set()
        self._ready.set()  # it has ended


def _serve(config: str) -> None:
    """Be the server."""
    import torch

    # Its warm-up waits for a GPU, whatever the device.
    torch.cuda.synchronize = lambda *_: None
    torch.set_num_threads(1)
    sys.argv = ["moshi.server", "--host", "127.0.0.1", "--port", "0", "--static", "none"]
    sys.argv += ["--device", "cpu", "--hf-repo", "no/where", "--config-path", config]
    import moshi.server  # noqa: F401  # it serves while it is imported


if __name__ == "__main__":
    _serve(sys.argv[1])
