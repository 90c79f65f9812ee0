"""Which session sits on which index of the batch axis."""

from __future__ import annotations

from typing import Generic, TypeVar

from moshi_pipe.errors import ConfigError

T = TypeVar("T")

_GROUP = 4


def padded_slots(wanted: int) -> int:
    """Slots that an engine makes for ``wanted`` sessions: 1, or the next multiple of 4.

    Matrix products treat a row alike whatever the others hold only at these numbers of rows:
    on CPUs, 2, 3, 5 to 7 and 9 to 11 rows take kernels whose sums depend on the row's place.

    Raises:
        ConfigError: ``wanted`` is not positive.
    """
    if wanted < 1:
        raise ConfigError("an engine needs at least one slot", got=str(wanted), wanted="1 or more")
    return 1 if wanted == 1 else -(-wanted // _GROUP) * _GROUP


def tick_sizes(num_slots: int) -> list[int]:
    """Rows that a tick can have in an engine of so many slots: 1, 4, 8, 12, ..."""
    return sorted({padded_slots(n) for n in range(1, num_slots + 1)})


class SlotTable(Generic[T]):
    """Occupants of ``num_slots`` indices; the lowest free one is given first.

    Args:
        num_slots: Indices.
    """

    def __init__(self, num_slots: int) -> None:
        self._occupants: list[T | None] = [None] * num_slots

    @property
    def num_slots(self) -> int:
        """Indices in all."""
        return len(self._occupants)

    @property
    def num_free(self) -> int:
        """Indices without an occupant."""
        return self._occupants.count(None)

    def occupy(self, occupant: T) -> int:
        """Give the lowest free index.

        Raises:
            RuntimeError: None is free.
        """
        slot = self._occupants.index(None) if self.num_free else -1
        if slot < 0:
            raise RuntimeError(f"all {self.num_slots} slots are taken")
        self._occupants[slot] = occupant
        return slot

    def free(self, slot: int) -> None:
        """Take the occupant away."""
        self._occupants[slot] = None

    def items(self) -> list[tuple[int, T]]:
        """Occupied indices in order, with their occupants."""
        return [(i, held) for i, held in enumerate(self._occupants) if held is not None]

    def rows_for(self, highest: int) -> int:
        """Rows that a tick runs so that ``highest`` is among them: 1, 4, 8, 12, ..."""
        return min(self.num_slots, padded_slots(highest + 1))
