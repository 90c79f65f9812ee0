"""What tests of remote models share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.remote_runs import write_talk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """A recording of twelve frames, less a little."""
    return write_talk(tmp_path)
