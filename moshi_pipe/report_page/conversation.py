"""One session as a section of the page: its sides' audio, drawing, players and measures."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import numpy as np

from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.report_page.collect import SIDES, SessionPart
from moshi_pipe.report_page.sound import (
    FRAME_S,
    SILENCE_DBFS,
    data_uri,
    encode,
    load,
    loudness,
    overlap_s,
    responses,
    turns_by_loudness,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

LONGEST_S: Final = 3600.0
"""Seconds of a session that are looked at."""

DETAIL_S: Final = 120.0
"""Seconds of a session that are drawn and embedded."""

Samples = tuple["npt.NDArray[np.float32]", int]


@dataclass(slots=True)
class Heard:
    """What the audio of a session says.

    Attributes:
        levels: Loudness of each 80 ms in dBFS, by side.
        turns: When each side spoke.
        by_loudness: Whether turns are guessed from loudness, as nothing measured them.
        responses: Seconds from the user's end to the model's begin.
        measures: Numbers of ours, by name.
    """

    levels: dict[str, list[float]] = field(default_factory=dict)
    turns: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    by_loudness: bool = False
    responses: list[float] = field(default_factory=list)
    measures: dict[str, float | None] = field(default_factory=dict)


BY_LOUDNESS: Final = "by loudness"
"""What the names of measures end with that are guesses from loudness."""

MEASURE_UNITS: Final = {
    **dict.fromkeys(
        (
            f"{what}, {BY_LOUDNESS}"
            for what in ("user speaks", "model speaks", "overlap", "response")
        ),
        "s",
    ),
    "model level": "dBFS",
}
"""What is measured where no sink of the group ``metric`` was there, with units."""


def hear(part: SessionPart) -> Heard:
    """Read a session's audio; what cannot be read is added to its problems."""
    heard = Heard(turns=dict(part.turns), by_loudness=not part.turns)
    for side in SIDES:
        loaded = _load(part, side, LONGEST_S)
        if loaded is not None:
            level_T = loudness(*loaded)
            heard.levels[side] = level_T.tolist()
            if heard.by_loudness:
                heard.turns[side] = turns_by_loudness(level_T)
    user, model = (heard.turns.get(side, []) for side in SIDES)
    heard.responses = responses(user, model)
    heard.measures = _measures(part, heard)
    return heard


def _load(part: SessionPart, side: str, longest_s: float) -> Samples | None:
    sound = part.sounds.get(side)
    if sound is None:
        return None
    try:
        return load(sound, longest_s)
    except (MoshiPipeError, OSError, ValueError) as error:
        said = f"the audio of the {side} cannot be read: {str(error).splitlines()[0]}"
        if said not in part.problems:
            part.problems.append(said)
        part.sounds.pop(side)
        return None


def _measures(part: SessionPart, heard: Heard) -> dict[str, float | None]:
    """Simple numbers; of turns only where nothing better measured them."""
    found: dict[str, float | None] = {}
    if heard.by_loudness and heard.turns:
        user, model = (heard.turns.get(side, []) for side in SIDES)
        guesses = {
            "user speaks": sum(b - a for a, b in user) if "user" in heard.turns else None,
            "model speaks": sum(b - a for a, b in model) if "model" in heard.turns else None,
            "overlap": overlap_s(user, model) if len(heard.turns) == len(SIDES) else None,
            "response": float(np.median(heard.responses)) if heard.responses else None,
        }
        found = {f"{what}, {BY_LOUDNESS}": value for what, value in guesses.items()}
    loud = [level for level in heard.levels.get("model", ()) if level > SILENCE_DBFS]
    if heard.levels.get("model"):
        power = [10 ** (level / 10) for level in loud]
        found["model level"] = 10 * float(np.log10(np.mean(power))) if power else None
    if "model" in part.words and not part.metrics:
        found["words"] = float(len(part.words["model"]))
    return found


def length_s(part: SessionPart, heard: Heard) -> float:
    """How long a session is, as far as anybody knows."""
    ends = [len(levels) * FRAME_S for levels in heard.levels.values()]
    ends += [end for spans in heard.turns.values() for _, end in spans[-1:]]
    ends += [words[-1].end_s for words in part.words.values() if words]
    return max(ends, default=0.0)


@dataclass(slots=True)
class Player:
    """One side's audio on the page.

    Attributes:
        side: ``user`` or ``model``.
        address: What it plays: audio itself, or a file beside the page.
        note: What a reader should know.
    """

    side: str
    address: str
    note: str = ""


class Players:
    """Puts audio into the page, until it is full; then links to files.

    Args:
        form: ``opus``, ``mp3``, ``flac``, ``link`` or ``none``.
        room_bytes: How much audio may be in the page, as it is written there.
        page: Where the page goes, for links.
    """

    def __init__(self, form: str, room_bytes: int, page: Path) -> None:
        self.form = form
        self.linked = 0
        self._room = room_bytes
        self._page = page

    def players(self, part: SessionPart) -> list[Player]:
        """Players of both sides, where there is audio."""
        if self.form == "none":
            return []
        made = [self._player(part, side) for side in SIDES if side in part.sounds]
        return [player for player in made if player is not None]

    def _player(self, part: SessionPart, side: str) -> Player | None:
        if self.form == "link":
            return self._link(part, side, "")
        loaded = _load(part, side, DETAIL_S)
        if loaded is None:
            return None
        address = data_uri(encode(*loaded, self.form), self.form)
        if len(address) > self._room:
            self.linked += 1
            return self._link(part, side, "the page is full: this is a link to the file")
        self._room -= len(address)
        cut = len(loaded[0]) >= DETAIL_S * loaded[1]
        return Player(side, address, f"the first {DETAIL_S:g} s" if cut else "")

    def _link(self, part: SessionPart, side: str, note: str) -> Player:
        sound = part.sounds[side]
        relative = os.path.relpath(sound.path, self._page.parent)
        if sound.channel is not None:
            note = note or f"channel {sound.channel + 1} of the file is the {side}"
        return Player(side, quote(relative.replace(os.sep, "/")), note)
