"""The desk: between edge processes, the lobby and the engine."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import MoshiPipeError
from moshi_pipe.server.connection import Connection
from moshi_pipe.server.counts import ServerCounts
from moshi_pipe.server.guest import Guest
from moshi_pipe.server.info import session_metadata
from moshi_pipe.server.link import LinkError, Put, Took
from moshi_pipe.server.lobby import Doors, Lobby, LobbyRules, Seat, State
from moshi_pipe.server.messages import Close

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Mapping

    from moshi_pipe.graph.host import Host
    from moshi_pipe.server.options import ServerOptions
    from moshi_pipe.server.process import EdgeProcess

_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_log = logging.getLogger("moshi_pipe.server")


class Desk(Doors):
    """Takes what edge processes say, and does what the lobby decides.

    Args:
        options: Of the server.
        now_s: A clock.
        arrived: Called with each guest that has a slot.
        asked: Answers what an edge asks: ``info`` or ``metrics``.
        greeted: Called with the number of each edge process that accepts clients.

    Attributes:
        counts: What was done so far.
        lobby: Who has a slot, and who waits.
        guests: Conversations that go on.
    """

    def __init__(
        self,
        options: ServerOptions,
        now_s: Callable[[], float],
        arrived: Callable[[Guest], None],
        asked: Callable[[str], Any],
        greeted: Callable[[int], None] = lambda number: None,
    ) -> None:
        rules = LobbyRules(options.max_waiting, options.resume_s, options.snapshot_mb * 1_000_000)
        self.counts = ServerCounts()
        self.lobby = Lobby(rules, self, now_s)
        self.guests: dict[Seat, Guest] = {}
        self._options = options
        self._now_s = now_s
        self._arrived = arrived
        self._asked = asked
        self._greeted = greeted
        self._host: Host | None = None
        self._connections: dict[tuple[EdgeProcess, int], Connection] = {}
        self._lanes: dict[EdgeProcess, list[Connection | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()
        self._came = asyncio.Event()

    def set_host(self, host: Host | None, why: str = "") -> None:
        """The engine is ready, or lost: conversations are closed then, and those who wait go on.

        Args:
            host: The engine; None when it is lost.
            why: What became of it.
        """
        self._host = host
        if host is None:
            self.lobby.set_slots(0, can_park=False)
            reason = f"engine failed: {why}"[:120]
            self.close_all(Close.RESTART, reason, f"engine_failed: {why}")
            self.lobby.clear()
        else:
            self.tick()

    def tick(self) -> None:
        """Do what time has come for; to be called twice a second or so."""
        host = self._host
        if host is not None:
            self.lobby.set_slots(host.usable_slots, can_park=host.can_park)
        for guest in list(self.guests.values()):
            guest.check()
        self.lobby.tick()

    def drain(self, in_s: float) -> None:
        """Let nobody in any more, and tell who is there that the end comes."""
        self.lobby.close(Close.GOING_AWAY, "shutdown", "shutdown: the server stops")
        for guest in list(self.guests.values()):
            guest.announce("shutdown", in_s)

    def end_all(self, why: str) -> None:
        """End the input of every conversation."""
        for guest in list(self.guests.values()):
            guest.end(why)

    def close_all(self, close: Close, reason: str, error: str | None = None) -> None:
        """Close every connection that has a slot, without waiting for last answers."""
        for guest in list(self.guests.values()):
            guest.close(close, reason, error)

    async def listen(self, edge: EdgeProcess) -> None:
        """Take what an edge process says, until its link closes; then its clients are lost."""
        self._lanes[edge] = [None] * edge.lanes.count
        try:
            async for message in edge.link.messages():
                if isinstance(message, Put):
                    if (connection := self._of_lane(edge, message.lane)) is not None:
                        connection.came(message.rows)
                elif isinstance(message, Took):
                    if (connection := self._of_lane(edge, message.lane)) is not None:
                        connection.went(message.rows)
                else:
                    self._hear(edge, message)
        except LinkError as error:
            _log.error("an edge process said what makes no sense: %s", error)
        except Exception:  # of it or of ours: it ends and is started anew, the others go on
            _log.exception("what an edge process said could not be done")
        finally:
            edge.link.close()
            for key in [key for key in self._connections if key[0] is edge]:
                self._gone(key, lost=True)
            del self._lanes[edge]
            self.counts.gauges.pop(edge.number, None)

    async def visited(self) -> None:
        """Wait until there is a connection or a conversation: without one, time brings nothing."""
        while not self._connections and not self.guests:
            self._came.clear()
            await self._came.wait()

    async def empty(self) -> None:
        """Wait until no conversation goes on."""
        while self.guests:
            self._left.clear()
            await self._left.wait()

    # what the lobby has done

    def seat(self, conn: Hashable, seat: Seat, *, resumed: bool) -> None:
        """Let a client talk, in a new conversation or in that which it left."""
        connection = self._connection(conn)
        lane = self._free_lane(connection)
        guest = self.guests.get(seat)
        if guest is None:
            guest = self.guests[seat] = self._make_guest(seat, connection)
        assert self._host is not None, "seats are given while there is an engine"
        facts = self._host.facts
        metadata = session_metadata(facts, self._options, guest, connection.request, resumed)
        connection.seat(lane, metadata)
        guest.attach(connection)
        if not resumed:
            self._arrived(guest)

    def queue(self, conn: Hashable, position: int, waiting: int) -> None:
        """Tell a client where it is in line."""
        self._connection(conn).queue(position, waiting)

    def refuse(self, conn: Hashable, close: Close, reason: str, error: str) -> None:
        """Send a client away."""
        self._connection(conn).end(close, reason, error)

    def take_over(self, conn: Hashable) -> None:
        """Close a connection whose client is on another now."""
        for guest in self.guests.values():
            if guest.connection is conn:
                guest.connection = None
        connection = self._connection(conn)
        connection.end(Close.POLICY, "taken_over", "taken_over: it goes on in another connection")

    def park(self, seat: Seat) -> None:
        """Move the state of a conversation to memory."""
        self._begin(self._park(seat, self.guests[seat]))

    def unpark(self, seat: Seat) -> None:
        """Move it back."""
        self._begin(self._unpark(seat, self.guests[seat]))

    def lose(self, seat: Seat) -> None:
        """End a conversation whose client does not come back."""
        guest = self.guests.get(seat)
        if guest is None:
            return
        guest.end("lost")
        if seat.state is State.OVER and self._host is not None:  # it was parked: no slot to leave
            self._host.cancel(guest.id)

    # what an edge process says

    def _hear(self, edge: EdgeProcess, message: Mapping[str, Any]) -> None:
        op = message.get("op")
        if op == "open":
            number = int(message["conn"])
            connection = Connection(edge, number, message["request"])
            self._connections[edge, number] = connection
            self._came.set()
            self.lobby.arrive(connection, connection.request.get("resume"))
        elif op == "gone":
            self._gone((edge, int(message["conn"])), lost=bool(message["lost"]))
        elif op == "end_turn":
            guest = self._guest(self._connections.get((edge, int(message["conn"]))))
            if guest is not None:
                guest.end_turn(int(message["rows"]))
        elif op == "counts":
            self.counts.edges.update({str(k): int(v) for k, v in message["counts"].items()})
        elif op == "gauges":
            gauges = message["gauges"].items()
            self.counts.gauges[edge.number] = {str(k): float(v) for k, v in gauges}
        elif op == "ask":
            value = self._asked(str(message["what"]))
            edge.link.send({"op": "answer", "id": message["id"], "value": value})
        elif op == "hello":
            self._greeted(edge.number)
        elif op == "log":
            _log.log(_LEVELS.get(str(message["level"]), logging.INFO), "%s", message["text"])

    def _gone(self, key: tuple[EdgeProcess, int], *, lost: bool) -> None:
        connection = self._connections.pop(key, None)
        if connection is None:
            return
        guest = self._guest(connection)
        if guest is not None:
            guest.detach()
            if not lost:
                guest.end("left")
        connection.drop()
        if connection.lane is not None:
            self._lanes[key[0]][connection.lane] = None
        self.lobby.leave(connection, lost=lost)

    def _of_lane(self, edge: EdgeProcess, lane: int) -> Connection | None:
        return self._lanes[edge][lane]

    def _guest(self, connection: Connection | None) -> Guest | None:
        if connection is None:
            return None
        return next((g for g in self.guests.values() if g.connection is connection), None)

    def _connection(self, conn: Hashable) -> Connection:
        assert isinstance(conn, Connection), "the lobby is given connections"
        return conn

    def _free_lane(self, connection: Connection) -> int:
        lanes = self._lanes[connection.edge]
        lane = lanes.index(None)  # there are as many as connections
        lanes[lane] = connection
        return lane

    # conversations

    def _make_guest(self, seat: Seat, connection: Connection) -> Guest:
        assert self._host is not None, "seats are given while there is an engine"
        options, facts, request = self._options, self._host.facts, connection.request
        max_s = request.get("max_s")
        return Guest(
            seat,
            request,
            sample_rate=facts.sample_rate,
            frame_s=facts.frame_s,
            max_s=options.max_s if max_s is None else min(options.max_s, float(max_s)),
            idle_s=options.idle_s,
            record=bool(request.get("record")) and options.recording,
            lossless=facts.late == "slow_down",
            counts=self.counts,
            now_s=self._now_s,
            on_over=self._over,
        )

    def _over(self, guest: Guest) -> None:
        self.counts.sessions[guest.ended or "failed"] += 1
        self.guests.pop(guest.seat, None)
        self._left.set()
        self.lobby.over(guest.seat)

    async def _park(self, seat: Seat, guest: Guest) -> None:
        num_bytes: int | None = None
        if self._host is not None:
            try:
                num_bytes = await self._host.park(guest.id)
            except MoshiPipeError as error:
                _log.warning("a conversation keeps its slot: %s", error)
        self.lobby.parked(seat, num_bytes)

    async def _unpark(self, seat: Seat, guest: Guest) -> None:
        done = False
        if self._host is not None:
            try:
                await self._host.unpark(guest.id)
                done = True
            except MoshiPipeError as error:
                _log.error("a conversation is lost: %s", error)
        self.lobby.unparked(seat, done=done)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
