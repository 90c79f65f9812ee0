"""Slots: padded numbers, lowest index first."""

from __future__ import annotations

import pytest

from moshi_pipe.engine.slots import SlotTable, padded_slots
from moshi_pipe.errors import ConfigError


def test_slots_are_one_or_a_multiple_of_four() -> None:
    assert [padded_slots(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 4, 4, 4, 8, 8, 12]
    with pytest.raises(ConfigError, match="at least one slot"):
        padded_slots(0)


def test_the_lowest_free_slot_is_given_first_and_a_full_table_says_so() -> None:
    table: SlotTable[str] = SlotTable(4)
    assert [table.occupy(name) for name in "abcd"] == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="all 4 slots are taken"):
        table.occupy("e")

    table.free(1)
    table.free(3)

    assert table.num_free == 2
    assert table.occupy("f") == 1
    assert table.items() == [(0, "a"), (1, "f"), (2, "c")]


def test_a_tick_runs_no_more_rows_than_it_needs() -> None:
    table: SlotTable[str] = SlotTable(8)

    assert [table.rows_for(highest) for highest in (0, 1, 3, 4, 7)] == [1, 4, 4, 8, 8]
