"""The model of tests that nobody needs to understand."""

from __future__ import annotations

from typing import Final

RANDOM: Final = "model=embedded"
"""The model with random weights: seven times as fast as the default one, and it always talks."""
