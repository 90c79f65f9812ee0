"""The command with Hydra: ``conf/nano.yaml`` and overrides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import hydra

from moshi_pipe_nano.app import run_stage
from moshi_pipe_nano.options import read_options

if TYPE_CHECKING:
    from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=str(Path(__file__).parent / "conf"), config_name="nano")
def hydra_main(cfg: DictConfig) -> None:
    """Run the stage that the composed config names."""
    run_stage(read_options(cfg))
