"""Parity tests need the reference packages; without them they are not collected."""

from __future__ import annotations

import importlib.util
import os

# The reference reads this when it is imported: without it a CPU run compiles its norms.
os.environ["NO_TORCH_COMPILE"] = "1"
os.environ["NO_CUDA_GRAPH"] = "1"

collect_ignore_glob = []
if importlib.util.find_spec("moshi") is None:
    collect_ignore_glob += ["test_*.py"]
