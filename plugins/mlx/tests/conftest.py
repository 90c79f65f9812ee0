"""What the tests of this package share. Nothing here needs MLX: without it they are skipped."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # whatever the import mode, installed or not

if TYPE_CHECKING:
    from collections.abc import Callable

    from moshi_pipe.models.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def lm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """Checkpoint by the name of its config, made once."""
    from mlx_models import CONDITIONED_LM, LMS, PACKED_LM, write_lm

    made: dict[str, Checkpoint] = {}

    def get(name: str) -> Checkpoint:
        if name not in made:
            config = {"conditioned": CONDITIONED_LM, "packed": PACKED_LM, **LMS}[name]
            made[name] = write_lm(tmp_path_factory.mktemp("lm"), config)
        return made[name]

    return get
