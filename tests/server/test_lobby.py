from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moshi_pipe.server.lobby import Doors, Lobby, LobbyRules, Seat, State
from moshi_pipe.server.messages import Close

if TYPE_CHECKING:
    from collections.abc import Hashable


class Log(Doors):
    """Keeps what the lobby did."""

    def __init__(self) -> None:
        self.seated: dict[Hashable, Seat] = {}
        self.positions: dict[Hashable, tuple[int, int]] = {}
        self.refused: dict[Hashable, str] = {}
        self.closed: list[Hashable] = []
        self.parking: list[Seat] = []
        self.unparking: list[Seat] = []
        self.lost: list[Seat] = []
        self.said: list[tuple[Hashable, int, int]] = []

    def seat(self, conn: Hashable, seat: Seat, *, resumed: bool) -> None:
        assert conn not in self.seated
        assert conn not in self.refused
        self.positions.pop(conn, None)
        self.seated[conn] = seat

    def queue(self, conn: Hashable, position: int, waiting: int) -> None:
        self.positions[conn] = (position, waiting)
        self.said.append((conn, position, waiting))

    def refuse(self, conn: Hashable, close: Close, reason: str, error: str) -> None:
        assert conn not in self.seated
        assert error.startswith(f"{reason}: ")
        self.positions.pop(conn, None)
        self.refused[conn] = reason

    def take_over(self, conn: Hashable) -> None:
        self.positions.pop(conn, None)
        self.seated.pop(conn, None)
        self.closed.append(conn)

    def park(self, seat: Seat) -> None:
        self.parking.append(seat)

    def unpark(self, seat: Seat) -> None:
        self.unparking.append(seat)

    def lose(self, seat: Seat) -> None:
        assert seat not in self.lost
        self.lost.append(seat)


class Hall:
    """A lobby by a manual clock."""

    def __init__(
        self, slots: int = 1, max_waiting: int = 8, resume_s: float = 30, snapshot_bytes: int = 100
    ) -> None:
        self.log = Log()
        self.now_s = 0.0
        tokens = count()
        self.lobby = Lobby(
            LobbyRules(max_waiting, resume_s, snapshot_bytes),
            self.log,
            lambda: self.now_s,
            lambda: f"token-{next(tokens)}",
        )
        self.lobby.set_slots(slots, can_park=True)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.lobby.tick()


def test_who_finds_no_slot_waits_and_is_told_where() -> None:
    hall = Hall()
    for conn in "abc":
        hall.lobby.arrive(conn)
    assert list(hall.log.seated) == ["a"]
    assert hall.log.positions == {"b": (1, 2), "c": (2, 2)}
    hall.lobby.over(hall.log.seated["a"])
    assert list(hall.log.seated) == ["a", "b"]
    assert hall.log.positions == {"c": (1, 1)}


def test_a_position_is_told_again_every_five_seconds() -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    hall.lobby.arrive("b")
    for _ in range(9):
        hall.wait(0.5)
    assert len(hall.log.said) == 1
    hall.wait(0.5)
    assert hall.log.said == [("b", 1, 1)] * 2


def test_nobody_waits_where_nobody_may() -> None:
    hall = Hall(max_waiting=0)
    hall.lobby.arrive("a")
    hall.lobby.arrive("b")
    assert hall.log.refused == {"b": "at_capacity"}
    assert hall.lobby.counts.refused == {"at_capacity": 1}


def test_a_full_line_takes_nobody() -> None:
    hall = Hall(max_waiting=1)
    for conn in "abc":
        hall.lobby.arrive(conn)
    assert hall.log.refused == {"c": "at_capacity"}


def test_a_lost_client_keeps_its_slot_and_comes_back_to_it() -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    seat = hall.log.seated["a"]
    hall.lobby.leave("a", lost=True)
    hall.wait(29)
    hall.lobby.arrive("b", seat.token)
    assert hall.log.seated["b"] is seat
    hall.wait(60)
    assert not hall.log.lost


def test_who_comes_back_too_late_or_with_a_wrong_token_is_refused() -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    seat = hall.log.seated["a"]
    hall.lobby.arrive("wrong", "töken")
    hall.lobby.leave("a", lost=True)
    hall.wait(30)
    assert hall.log.lost == [seat]
    hall.lobby.arrive("late", seat.token)
    assert hall.log.refused == {"wrong": "resume_failed", "late": "resume_failed"}


@pytest.mark.parametrize(("lost", "resume_s"), [(False, 30.0), (True, 0.0)])
def test_who_leaves_or_cannot_come_back_frees_its_slot(lost: bool, resume_s: float) -> None:
    hall = Hall(resume_s=resume_s)
    hall.lobby.arrive("a")
    hall.lobby.arrive("b")
    seat = hall.log.seated["a"]
    hall.lobby.leave("a", lost=lost)
    assert hall.log.lost == [seat]
    assert hall.log.positions == {"b": (1, 1)}
    hall.lobby.over(seat)
    assert "b" in hall.log.seated


def test_a_connection_that_seems_alive_is_taken_over() -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    seat = hall.log.seated["a"]
    hall.lobby.arrive("b", seat.token)
    assert hall.log.closed == ["a"]
    assert hall.log.seated == {"b": seat}
    hall.lobby.leave("a", lost=True)  # its end is told afterwards, and means nothing
    assert seat.conn == "b"


def test_others_waiting_the_longest_away_is_parked_and_is_first_in_line_again() -> None:
    hall = Hall(slots=2)
    for conn in "ab":
        hall.lobby.arrive(conn)
    first, second = hall.log.seated["a"], hall.log.seated["b"]
    hall.lobby.leave("b", lost=True)
    hall.wait(1)
    hall.lobby.leave("a", lost=True)
    hall.lobby.arrive("c")
    assert hall.log.parking == [second]
    hall.lobby.parked(second, 40)
    assert "c" in hall.log.seated
    assert hall.lobby.num_parked == 1
    hall.lobby.arrive("a2", first.token)
    hall.lobby.arrive("d")
    hall.lobby.arrive("b2", second.token)
    assert hall.log.positions == {"b2": (1, 2), "d": (2, 2)}
    hall.lobby.over(hall.log.seated["c"])
    assert hall.log.unparking == [second]
    assert "b2" not in hall.log.seated
    hall.lobby.unparked(second, done=True)
    assert hall.log.seated["b2"] is second
    assert hall.lobby.parked_bytes == 0


def test_what_memory_does_not_hold_keeps_its_slot() -> None:
    hall = Hall(slots=2, snapshot_bytes=50)
    for conn in "ab":
        hall.lobby.arrive(conn)
    for conn in "ab":
        hall.lobby.leave(conn, lost=True)
    hall.lobby.arrive("c")
    hall.lobby.parked(hall.log.parking[0], 40)
    hall.lobby.arrive("d")
    assert len(hall.log.parking) == 1
    hall.wait(30)
    assert len(hall.log.lost) == 2
    for seat in hall.log.lost:
        hall.lobby.over(seat)
    assert "d" in hall.log.seated


def test_no_memory_parks_nobody() -> None:
    hall = Hall(snapshot_bytes=0)
    hall.lobby.arrive("a")
    hall.lobby.leave("a", lost=True)
    hall.lobby.arrive("b")
    assert not hall.log.parking


def test_a_state_that_cannot_be_parked_stays_and_is_not_tried_again() -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    seat = hall.log.seated["a"]
    hall.lobby.leave("a", lost=True)
    hall.lobby.arrive("b")
    hall.lobby.parked(seat, None)
    hall.wait(1)
    assert hall.log.parking == [seat]
    hall.lobby.arrive("c", seat.token)
    assert hall.log.seated["c"] is seat


def test_a_client_may_come_back_while_its_state_is_on_its_way_out() -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    seat = hall.log.seated["a"]
    hall.lobby.leave("a", lost=True)
    hall.lobby.arrive("b")
    hall.lobby.arrive("c", seat.token)
    assert hall.log.positions == {"c": (1, 2), "b": (2, 2)}
    hall.lobby.parked(seat, 40)
    hall.lobby.unparked(seat, done=True)
    assert hall.log.seated["c"] is seat
    assert hall.log.positions == {"b": (1, 1)}


@pytest.mark.parametrize("lost", [True, False])
def test_who_is_away_again_while_in_line_is_not_waited_for_without_end(lost: bool) -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    seat = hall.log.seated["a"]
    hall.lobby.leave("a", lost=True)
    hall.lobby.arrive("b")
    hall.lobby.parked(seat, 40)
    hall.lobby.arrive("a2", seat.token)
    assert hall.log.positions == {"a2": (1, 1)}
    hall.lobby.leave("a2", lost=lost)
    assert hall.log.lost == ([] if lost else [seat])
    hall.wait(30)
    assert hall.log.lost == [seat]
    assert hall.lobby.parked_bytes == 0


def test_a_state_that_does_not_come_back_ends_the_conversation() -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    seat = hall.log.seated["a"]
    hall.lobby.leave("a", lost=True)
    hall.lobby.arrive("b")
    hall.lobby.parked(seat, 40)
    hall.lobby.arrive("c", seat.token)
    hall.lobby.over(hall.log.seated["b"])
    hall.lobby.unparked(seat, done=False)
    assert hall.log.refused == {"c": "resume_failed"}
    assert hall.log.lost == [seat]


def test_a_closed_lobby_sends_everybody_away_but_those_who_talk() -> None:
    hall = Hall(slots=2)
    for conn in "abc":
        hall.lobby.arrive(conn)
    away = hall.log.seated["b"]
    hall.lobby.leave("b", lost=True)
    hall.lobby.close(Close.GOING_AWAY, "shutdown", "shutdown: the server stops")
    hall.lobby.arrive("d")
    assert hall.log.refused == {"c": "shutdown", "d": "shutdown"}
    assert not hall.log.lost
    hall.lobby.parked(away, 40)  # it was on its way out
    assert hall.log.lost == [away]


def test_an_engine_that_is_lost_takes_its_conversations_along_and_leaves_who_waits() -> None:
    hall = Hall()
    hall.lobby.arrive("a")
    hall.lobby.arrive("b")
    hall.lobby.set_slots(0, can_park=False)
    hall.lobby.clear()
    assert hall.lobby.used == 0
    hall.lobby.set_slots(1, can_park=True)
    assert "b" in hall.log.seated


class Comings(RuleBasedStateMachine):
    """Clients come, are lost, come back and leave in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.hall = Hall(slots=2, max_waiting=2, resume_s=10, snapshot_bytes=100)
        self.slots = 2
        self.conns = count()
        self.known: list[Seat] = []
        self.arrived: set[int] = set()

    @property
    def log(self) -> Log:
        return self.hall.log

    @rule()
    def arrive(self) -> None:
        conn = next(self.conns)
        self.arrived.add(conn)
        self.hall.lobby.arrive(conn)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        seat = data.draw(st.sampled_from(self.known))
        conn = next(self.conns)
        self.arrived.add(conn)
        self.hall.lobby.arrive(conn, seat.token)

    @precondition(lambda self: self.arrived)
    @rule(data=st.data(), lost=st.booleans())
    def leave(self, data: st.DataObject, lost: bool) -> None:
        conn = data.draw(st.sampled_from(sorted(self.arrived)))
        self.arrived.discard(conn)
        self.log.seated.pop(conn, None)
        self.log.positions.pop(conn, None)
        self.hall.lobby.leave(conn, lost=lost)

    @precondition(lambda self: any(s.state is State.HELD for s in self.known))
    @rule(data=st.data())
    def over(self, data: st.DataObject) -> None:
        held = [seat for seat in self.known if seat.state is State.HELD]
        seat = data.draw(st.sampled_from(held))
        self.arrived.discard(seat.conn)
        self.log.seated.pop(seat.conn, None)
        self.hall.lobby.over(seat)

    @precondition(lambda self: self.log.parking)
    @rule(done=st.booleans())
    def parked(self, done: bool) -> None:
        self.hall.lobby.parked(self.log.parking.pop(0), 30 if done else None)

    @precondition(lambda self: self.log.unparking)
    @rule(done=st.booleans())
    def unparked(self, done: bool) -> None:
        self.hall.lobby.unparked(self.log.unparking.pop(0), done=done)

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.hall.wait(seconds)

    @rule(slots=st.integers(0, 3))
    def resize(self, slots: int) -> None:
        self.slots = slots
        self.hall.lobby.set_slots(slots, can_park=True)

    @invariant()
    def everybody_is_somewhere(self) -> None:
        lobby, log = self.hall.lobby, self.log
        self.known += [s for s in log.seated.values() if s not in self.known]
        holding = [seat for seat in lobby._seats if seat.holds_slot]
        unparking = {seat.conn for seat in log.unparking}
        for conn in self.arrived:
            places = [conn in log.positions, conn in log.seated, conn in log.refused]
            places += [conn in log.closed, conn in unparking]
            assert sum(places) <= 1 or conn in unparking
            assert any(places)
        positions = sorted(position for position, _ in log.positions.values())
        line = [conn for conn in log.positions if conn not in unparking]
        assert lobby.waiting == len(line)
        assert sorted(log.positions[conn][0] for conn in line) == list(range(1, len(line) + 1))
        assert len(positions) >= len(line)
        assert lobby.parked_bytes <= 100
        ready = [w for w in lobby._line if w.seat is None or w.seat.state is State.PARKED]
        assert not ready or len(holding) >= self.slots
        holders = [seat.conn for seat in lobby._seats if seat.conn is not None]
        assert len(holders) == len(set(holders))
        returning = [waiter.seat for waiter in lobby._line]
        for seat in lobby._seats:
            here = seat.conn is not None or seat in returning
            assert here or seat.ending or seat.away_since_s is not None

    @rule()
    def nobody_new_is_seated_beyond_the_slots(self) -> None:
        before = self.hall.lobby.used
        self.hall.lobby.tick()
        assert self.hall.lobby.used <= max(before, self.slots)


TestComings = Comings.TestCase
TestComings.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
