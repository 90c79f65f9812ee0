"""What one session wants other than the run that it is part of."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import ConfigError, closest
from moshi_pipe.graph.node import FIRST_FRAMES, SessionSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES: Final = tuple(one.name for one in fields(SessionSettings) if one.name != "seed")
_NUMBERS: Final = ("temperature", "text_temperature", "guidance", "repetition_penalty")
_COUNTS: Final = ("top_k", "text_top_k", "end_on_text", "end_on_padding", "max_tail_frames")
_MAY_BE_NONE: Final = ("end_on_text", "end_on_padding")
_POSITIVE: Final = ("repetition_penalty",)  # it divides


def choose_settings(run: SessionSettings, asked: Mapping[str, Any], seed: int) -> SessionSettings:
    """Settings of a session: those of the run, and over them what the session asks for.

    What a model does not have, or was not made for, is refused when the session joins.

    Args:
        run: What a session gets that asks for nothing.
        asked: By field of :class:`SessionSettings`, but its seed.
        seed: Of the session.

    Raises:
        ConfigError: A setting that there is not, or a value that it cannot have.
    """
    for name, value in asked.items():
        if name not in _NAMES:
            raise ConfigError(
                f"a session cannot have a setting '{name}'", wanted=closest(name, _NAMES)
            )
        wanted = _unlike(name, value)
        if wanted is not None:
            raise ConfigError(
                f"a session cannot have this {name}", got=f"{value!r}"[:80], wanted=wanted
            )
    return replace(run, seed=seed, **asked)


def _unlike(name: str, value: Any) -> str | None:
    """What a value should have been; None when it is right."""
    if name in _NUMBERS:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            return "a number of 0 or more"
        return "a number above 0" if name in _POSITIVE and value == 0 else None
    if name in _COUNTS:
        if value is None and name in _MAY_BE_NONE:
            return None
        right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return None if right else "a whole number of 0 or more"
    if name == "first_frame":
        return None if value in FIRST_FRAMES else ", ".join(FIRST_FRAMES)
    right = isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
    return None if right else "a value per condition"
