"""The lobby: who gets a slot, who waits, who comes back.

Decisions alone: no sockets, no tasks, no engine. Events come in as calls, and what is to be done
goes out through a :class:`Doors`, so that every order of events can be tested by a manual clock.

A *seat* is a conversation with its place: it keeps its slot while its client is connected and, for
a while, when the client is lost. When others wait then, its state is parked in memory and the slot
given away; it is first in line when its client returns.
"""

from __future__ import annotations

import enum
import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from moshi_pipe.server.messages import Close

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

QUEUE_S: Final = 5.0
"""Seconds after which a position is told again although it has not changed."""


class State(enum.Enum):
    """Where a seat is; in all but ``PARKED`` and ``OVER`` it holds a slot."""

    HELD = "held"
    PARKING = "parking"
    PARKED = "parked"
    UNPARKING = "unparking"
    OVER = "over"


@dataclass(eq=False, slots=True)
class Seat:
    """A conversation.

    Attributes:
        token: Brings a lost client back to it; nobody can guess it.
        conn: The connection that it belongs to; None while its client is away.
        state: Where it is.
        away_since_s: When its client was lost; None while there is one.
        parked_bytes: What its parked state takes.
        ending: Its input has ended and its last frames are on their way: it ends by itself, and a
            client that is lost now stays so. Also set by who holds the conversation.
        fixed: Its state could not be parked; it is not tried again.
    """

    token: str
    conn: Hashable | None
    state: State = State.HELD
    away_since_s: float | None = None
    parked_bytes: int = 0
    ending: bool = False
    fixed: bool = False

    @property
    def holds_slot(self) -> bool:
        """Whether a slot is taken by it."""
        return self.state not in (State.PARKED, State.OVER)


class Doors(Protocol):
    """What a lobby has done; calls return at once, and call no method of the lobby."""

    def seat(self, conn: Hashable, seat: Seat, *, resumed: bool) -> None:
        """The client may talk: in a conversation that begins, or that goes on."""

    def queue(self, conn: Hashable, position: int, waiting: int) -> None:
        """The client is told its position, 1 is next, of so many."""

    def refuse(self, conn: Hashable, close: Close, reason: str, error: str) -> None:
        """The client is told why not, and its connection closed."""

    def take_over(self, conn: Hashable) -> None:
        """The connection is closed: its client has come back on another."""

    def park(self, seat: Seat) -> None:
        """Begin to move its state to memory; ends in :meth:`Lobby.parked`."""

    def unpark(self, seat: Seat) -> None:
        """Begin to move its state back into a slot; ends in :meth:`Lobby.unparked`."""

    def lose(self, seat: Seat) -> None:
        """Its client does not come back: the conversation is over."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """A connection in line; with a seat it has come back to a conversation."""

    conn: Hashable
    seat: Seat | None
    told: tuple[int, int] = (0, 0)
    told_s: float = 0.0


@dataclass(slots=True)
class LobbyRules:
    """What a lobby goes by.

    Attributes:
        max_waiting: Newcomers that may wait; 0 refuses them at once.
        resume_s: Seconds that a lost client may take to come back; 0 is never.
        snapshot_bytes: What parked states may take in all.
    """

    max_waiting: int
    resume_s: float
    snapshot_bytes: int


@dataclass(slots=True)
class LobbyCounts:
    """What has happened so far.

    Attributes:
        refused: Clients refused, by reason.
        resumed: Clients that came back.
        taken_over: Those whose old connection was still there.
        parked: States that were parked.
        lost: Conversations whose client did not come back.
    """

    refused: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    taken_over: int = 0
    parked: int = 0
    lost: int = 0


class Lobby:
    """See the module. All calls are of one thread.

    Args:
        rules: What it goes by.
        doors: What it has done.
        now_s: A clock.
        make_token: Makes tokens that nobody can guess.

    Attributes:
        counts: What has happened so far.
    """

    def __init__(
        self,
        rules: LobbyRules,
        doors: Doors,
        now_s: Callable[[], float],
        make_token: Callable[[], str] = lambda: secrets.token_urlsafe(24),
    ) -> None:
        self.counts = LobbyCounts()
        self._rules = rules
        self._doors = doors
        self._now_s = now_s
        self._make_token = make_token
        self._slots = 0
        self._can_park = False
        self._seats: list[Seat] = []
        self._line: list[_Waiter] = []
        self._largest_bytes = 0
        self._closed: tuple[Close, str, str] | None = None

    @property
    def used(self) -> int:
        """Slots that are taken, whether or not a client is there."""
        return sum(seat.holds_slot for seat in self._seats)

    @property
    def waiting(self) -> int:
        """Connections in line."""
        return len(self._line)

    @property
    def num_parked(self) -> int:
        """Conversations without a slot."""
        return sum(seat.state is State.PARKED for seat in self._seats)

    @property
    def parked_bytes(self) -> int:
        """What parked states take."""
        return sum(seat.parked_bytes for seat in self._seats)

    def set_slots(self, slots: int, *, can_park: bool, state_bytes: int = 0) -> None:
        """Say how many conversations the engine holds in time; may change at any time.

        Those that are seated stay so when the number falls.

        Args:
            slots: How many.
            can_park: Whether their states can be moved to memory.
            state_bytes: What one takes there, 0 where that is not known before.
        """
        self._slots, self._can_park = slots, can_park
        self._largest_bytes = max(self._largest_bytes, state_bytes)
        self._settle()

    def arrive(self, conn: Hashable, token: str | None = None) -> None:
        """A client wants a conversation: a new one, or that of its token."""
        if self._closed is not None:
            self._refuse(conn, *self._closed)
        elif token is not None:
            self._return(conn, token)
        elif self._newcomers() >= self._rules.max_waiting and self._free() <= len(self._line):
            self._refuse(conn, *self._at_capacity())
        else:
            self._line.append(_Waiter(conn, None))
        self._settle()

    def leave(self, conn: Hashable, *, lost: bool) -> None:
        """A connection is over; one that is unknown by now is nothing.

        Args:
            conn: Which.
            lost: Its client did not mean to leave, and may come back.
        """
        left = [seat for seat in self._seats if seat.conn == conn]
        for waiter in [w for w in self._line if w.conn == conn]:
            self._line.remove(waiter)
            if waiter.seat is not None:  # back in line, and away again
                left.append(waiter.seat)
        for seat in left:
            seat.conn = None
            seat.away_since_s = self._now_s()
            if seat.ending:
                continue  # it ends by itself
            if not lost or self._rules.resume_s <= 0 or self._closed is not None:
                self._lose(seat)
        self._settle()

    def over(self, seat: Seat) -> None:
        """A conversation is over and has left its slot."""
        self._remove(seat)
        self._settle()

    def parked(self, seat: Seat, num_bytes: int | None) -> None:
        """A state was moved to memory.

        Args:
            seat: Whose.
            num_bytes: What it takes; None if it could not be moved and is where it was.
        """
        if seat.state is not State.PARKING:
            return  # over meanwhile
        if num_bytes is None:
            seat.fixed = True
            seat.state = State.HELD
        else:
            seat.state = State.PARKED
            seat.parked_bytes = num_bytes
            self._largest_bytes = max(self._largest_bytes, num_bytes)
            self.counts.parked += 1
        if seat.ending:
            self._let_go(seat)
        self._settle()

    def unparked(self, seat: Seat, *, done: bool) -> None:
        """A state was moved back into a slot, or is lost."""
        if seat.state is not State.UNPARKING:
            return
        seat.parked_bytes = 0
        if not done:
            conn, seat.conn = seat.conn, None
            if conn is not None:
                self._refuse(conn, *_RESUME_FAILED)
            self.counts.lost += 1
            seat.ending, seat.state = True, State.HELD
            self._let_go(seat)
        else:
            seat.state = State.HELD
            if seat.ending:
                self._let_go(seat)
            elif seat.conn is not None:
                self._welcome(seat)
        self._settle()

    def close(self, close: Close, reason: str, error: str) -> None:
        """Let nobody in any more, and send away those who wait or are away."""
        self._closed = (close, reason, error)
        for waiter in self._line:
            self._refuse(waiter.conn, close, reason, error)
        self._line.clear()
        for seat in [s for s in self._seats if s.conn is None and not s.ending]:
            self._lose(seat)

    def clear(self) -> None:
        """Forget all conversations: the engine that held them is gone. Those who wait go on."""
        for seat in list(self._seats):
            self._remove(seat)
        self._slots = 0
        self._settle()

    def tick(self) -> None:
        """Do what time has come for; to be called twice a second or so."""
        now_s = self._now_s()
        for seat in list(self._seats):
            away_s = None if seat.away_since_s is None else now_s - seat.away_since_s
            if away_s is not None and away_s >= self._rules.resume_s and not seat.ending:
                self._lose(seat)
        self._settle()

    def _return(self, conn: Hashable, token: str) -> None:
        """Bring a client back to its conversation."""
        seat = self._find(token)
        if seat is None or seat.ending:
            self._refuse(conn, *_RESUME_FAILED)
            return
        for waiter in [w for w in self._line if w.seat is seat]:
            self._line.remove(waiter)
            self._leave_old(waiter.conn)
        if seat.conn is not None:
            self._leave_old(seat.conn)
            seat.conn = None
        seat.away_since_s = None
        if seat.state is State.HELD:
            seat.conn = conn
            self._welcome(seat)
        elif seat.state is State.UNPARKING:
            seat.conn = conn
        else:  # first in line, after others that have come back
            place = sum(waiter.seat is not None for waiter in self._line)
            self._line.insert(place, _Waiter(conn, seat))

    def _leave_old(self, conn: Hashable) -> None:
        self.counts.taken_over += 1
        self._doors.take_over(conn)

    def _welcome(self, seat: Seat) -> None:
        self.counts.resumed += 1
        seat.away_since_s = None
        assert seat.conn is not None, "a client is back only with its connection"
        self._doors.seat(seat.conn, seat, resumed=True)

    def _find(self, token: str) -> Seat | None:
        """The seat of a token; takes as long for any."""
        found = None
        given = token.encode(errors="replace")
        for seat in self._seats:
            if hmac.compare_digest(seat.token.encode(), given):
                found = seat
        return found

    def _settle(self) -> None:
        """Seat who can be seated, make room for who cannot, and tell the others where they are."""
        for waiter in list(self._line):
            seat = waiter.seat
            if seat is not None and seat.state is State.HELD:  # parking was of no use
                self._line.remove(waiter)
                seat.conn = waiter.conn
                self._welcome(seat)
        while self._free() > 0 and (first := self._next()) is not None:
            self._line.remove(first)
            seat = first.seat
            if seat is None:
                seat = Seat(self._make_token(), first.conn)
                self._seats.append(seat)
                self._doors.seat(first.conn, seat, resumed=False)
            else:
                seat.conn = first.conn
                seat.state = State.UNPARKING
                self._doors.unpark(seat)
        self._make_room()
        self._tell()

    def _next(self) -> _Waiter | None:
        """The first in line that can be seated: one whose state is on its way out cannot yet."""
        ready = (w for w in self._line if w.seat is None or w.seat.state is State.PARKED)
        return next(ready, None)

    def _make_room(self) -> None:
        """Park who is away the longest, for each that waits."""
        parking = sum(seat.state is State.PARKING for seat in self._seats)
        need = sum(w.seat is None or w.seat.state is State.PARKED for w in self._line) - parking
        away = [
            s
            for s in self._seats
            if s.state is State.HELD and s.away_since_s is not None and not (s.ending or s.fixed)
        ]
        away.sort(key=lambda seat: seat.away_since_s or 0.0)
        for seat in away[: max(0, need)]:
            held_bytes = self.parked_bytes + (parking + 1) * max(1, self._largest_bytes)
            if not self._can_park or held_bytes > self._rules.snapshot_bytes:
                return
            seat.state = State.PARKING
            parking += 1
            self._doors.park(seat)

    def _tell(self) -> None:
        now_s, waiting = self._now_s(), len(self._line)
        for position, waiter in enumerate(self._line, start=1):
            if waiter.told != (position, waiting) or now_s - waiter.told_s >= QUEUE_S:
                waiter.told, waiter.told_s = (position, waiting), now_s
                self._doors.queue(waiter.conn, position, waiting)

    def _newcomers(self) -> int:
        return sum(waiter.seat is None for waiter in self._line)

    def _free(self) -> int:
        return self._slots - self.used

    def _lose(self, seat: Seat) -> None:
        """End the conversation of a client that does not come back."""
        seat.ending = True
        self.counts.lost += 1
        if seat.state not in (State.PARKING, State.UNPARKING):  # else when that is done
            self._let_go(seat)

    def _let_go(self, seat: Seat) -> None:
        if seat.state is State.PARKED:  # no slot to leave
            self._remove(seat)
        self._doors.lose(seat)

    def _remove(self, seat: Seat) -> None:
        if seat in self._seats:
            self._seats.remove(seat)
        seat.state, seat.parked_bytes = State.OVER, 0
        for waiter in [w for w in self._line if w.seat is seat]:
            self._line.remove(waiter)
            self._refuse(waiter.conn, *_RESUME_FAILED)

    def _at_capacity(self) -> tuple[Close, str, str]:
        if self._slots <= 1:
            what = "the only slot is in use" if self._slots else "no slot is ready"
        else:
            what = f"all {self._slots} slots are in use"
        return Close.TRY_LATER, "at_capacity", f"at_capacity: {what}; try again later"

    def _refuse(self, conn: Hashable, close: Close, reason: str, error: str) -> None:
        self.counts.refused[reason] = self.counts.refused.get(reason, 0) + 1
        self._doors.refuse(conn, close, reason, error)


_RESUME_FAILED: Final = (
    Close.POLICY,
    "resume_failed",
    "resume_failed: there is no such conversation any more; begin a new one",
)
