"""Slots: padded numbers, lowest index first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_pipe.engine.slots import SlotTable, padded_slots
from moshi_pipe.errors import ConfigError


def test_slots_are_one_or_a_multiple_of_four() -> None:
    assert [padded_slots(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [1, 4, 4, 4, 8, 8, 12]
    with pytest.raises(ConfigError) as caught:
        padded_slots(0)

    assert str(caught.value) == (
        "an engine needs at least one slot\n  got:    0\n  wanted: 1 or more"
    )


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


@given(st.integers(1, 12), st.lists(st.integers(0, 11), max_size=60))
def test_an_occupant_sits_where_it_was_put_until_it_is_freed(
    num_slots: int, freed: list[int]
) -> None:
    table: SlotTable[str] = SlotTable(num_slots)
    seats: dict[int, str] = {}
    for number, leaving in enumerate(freed):
        if leaving in seats:
            table.free(leaving)
            del seats[leaving]
        elif table.num_free:
            slot = table.occupy(str(number))
            assert slot == min(set(range(num_slots)) - set(seats))
            seats[slot] = str(number)
        assert table.items() == sorted(seats.items())
        assert table.num_free == table.num_slots - len(seats)


def test_a_tick_runs_no_more_rows_than_it_needs() -> None:
    table: SlotTable[str] = SlotTable(8)

    assert [table.rows_for(highest) for highest in (0, 1, 3, 4, 7)] == [1, 4, 4, 8, 8]
    assert SlotTable[str](1).rows_for(0) == 1
