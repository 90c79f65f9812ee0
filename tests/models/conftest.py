"""A tiny checkpoint of each kind, made once; tests that change one make a copy."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from moshi_pipe.models.make_checkpoint import make_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny dialogue model in float32; not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    make_checkpoint(folder, preset="tiny", dtype="float32")
    return folder


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """The same in a folder of the test's own."""
    return shutil.copytree(tiny, tmp_path / "model")
