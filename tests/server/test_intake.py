"""What one message may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from moshi_pipe.server.intake import Intake, TooFast

if TYPE_CHECKING:
    import numpy.typing as npt


class Bomb:
    """Makes 30 s of a slice."""

    def __init__(self) -> None:
        self.num_slices = 0

    def push(self, data: bytes) -> npt.NDArray[np.float32]:
        self.num_slices += 1
        return np.zeros(30 * 24_000, np.float32)


def intake(decoder: Bomb) -> Intake:
    return Intake(
        decoder,
        is_opus=True,
        rate=24_000,
        sample_rate=24_000,
        frame_samples=1_920,
        lossless=True,
        told=lambda rows: None,
    )


def test_where_frames_wait_a_message_of_hours_is_left_after_minutes() -> None:
    bomb = Bomb()
    with pytest.raises(TooFast):
        intake(bomb).push(bytes(65_535), 0)
    assert bomb.num_slices == 5


def test_a_message_of_two_minutes_is_none() -> None:
    bomb = Bomb()
    hears = intake(bomb)
    hears.push(bytes(4 * 1_024), 0)
    assert hears.num_put == 1_500
