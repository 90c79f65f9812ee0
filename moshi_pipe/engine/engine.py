"""The engine: loaded models with slots, and the thread that ticks them.

A tick runs the static schedule once over the first rows of the batch axis; sessions join and leave
between ticks. The engine talks to the edge through each session's rings and one small queue of
sessions that wait, and waits for neither a socket nor a disk.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moshi_pipe.engine.capacity import Capacity
from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.engine.lateness import Lateness, TickTimes
from moshi_pipe.engine.parking import Parking
from moshi_pipe.engine.scheduled_nodes import ScheduledNodes
from moshi_pipe.engine.session import TIMES, Session, SessionState
from moshi_pipe.engine.slots import SlotTable, padded_slots, tick_sizes
from moshi_pipe.engine.statistics import EngineStatistics, Histogram
from moshi_pipe.engine.tick_input import TickInput, has_frame
from moshi_pipe.errors import BackendError, MoshiPipeError, SessionError
from moshi_pipe.graph.node import BatchedNode, SessionSettings, Tick
from moshi_pipe.models.tokenizer import PADDING_ID
from moshi_pipe.units import NS_PER_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moshi_pipe.engine.scheduled_nodes import Outputs
    from moshi_pipe.graph.format import Format
    from moshi_pipe.graph.schedule import Schedule

_HELD_WAIT_S: Final = 1.0  # an upper bound on a wait that a notification normally ends


@dataclass(frozen=True, slots=True)
class TickOptions:
    """How ticks are formed.

    Attributes:
        num_slots: Sessions held at once; padded to 1 or a multiple of 4.
        live: Take whoever is ready. Otherwise wait until every session that holds a slot has a
            frame or has ended.
        fill: Not live: wait for sessions for the slots that are free, while some may come.
        all_rows: Run all rows in every tick, so that a run repeats bit for bit; otherwise only
            those up to the last ready one.
        min_interval_ns: Live: shortest time between two starts of ticks.
        frame_ns: Duration of a frame.
        budget_ns: Live: from a frame's delivery to its deadline.
        admit_ns: Longest that a tick may take for one more session to be let in; None lets in as
            many as there are slots.
        device: Where the graph's inputs go.
    """

    num_slots: int = 1
    live: bool = False
    fill: bool = True
    all_rows: bool = True
    min_interval_ns: int = 0
    frame_ns: int = 80 * NS_PER_MS
    budget_ns: int = 80 * NS_PER_MS
    admit_ns: int | None = None
    device: str = "cpu"


class Engine:
    """Runs a schedule of batched nodes over slots.

    Args:
        nodes: Makes the nodes of the schedule, by name; called on the engine's thread, since some
            backends belong to the thread that made them.
        schedule: Order of firing and wiring.
        input_format: Format of the graph's input.
        options: How ticks are formed.
        settings: Of the sessions that ticks are measured with, where ``options`` asks for it.
        clock: Source of time.
        on_late: Live: called with session, frame and ns after its deadline, for each late frame, on
            the engine's thread.
        on_failure: Called with the error that ends it, on the engine's thread, before the sessions
            are ended with it.

    Attributes:
        num_slots: Sessions that it holds at once.
        statistics: What it did.
        lateness: Whether it kept up; live only.
        error: Why it ended; None while it runs and when nothing failed.
        ready: Set when the nodes are open and warm, or when that failed.
        made_ns: How long it took to make the nodes, models included.
        warm_ns: How long it took to open them and to warm up.
    """

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, BatchedNode]],
        schedule: Schedule,
        *,
        input_format: Format,
        options: TickOptions,
        settings: SessionSettings | None = None,
        clock: Clock | None = None,
        on_late: Callable[[str, int, int], None] | None = None,
        on_failure: Callable[[MoshiPipeError], None] | None = None,
    ) -> None:
        self.num_slots = padded_slots(options.num_slots)
        self.statistics = EngineStatistics(nodes={name: Histogram() for name in schedule.order})
        self.lateness = Lateness(options.frame_ns, options.budget_ns)
        self.error: MoshiPipeError | None = None
        self.ready = threading.Event()
        self.made_ns = self.warm_ns = 0
        self._on_late = on_late
        self._on_failure = on_failure
        self._make_nodes = nodes
        self._schedule = schedule
        self._options = options
        self._clock = clock or SystemClock()
        self._nodes = ScheduledNodes(schedule, device=options.device, clock=self._clock)
        self._parking = Parking()
        self._can_park = False
        self._settings = settings or SessionSettings()
        self._capacity: Capacity | None = None
        pinned = options.device.startswith("cuda")
        self._input = TickInput(schedule.input, input_format, self.num_slots, pinned=pinned)
        self._slots: SlotTable[Session] = SlotTable(self.num_slots)
        self._waiting: deque[Session] = deque()
        self._no_more = False
        self._stopping = False
        self._closed = False
        self._changed = threading.Condition()
        self._version = 0
        self._next_start_ns = 0
        self._thread: threading.Thread | None = None

    # ---- called by the edge, from any thread

    def start(self) -> None:
        """Open the nodes and begin to tick, on a thread of the engine's own."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, session: Session) -> None:
        """Let a session wait for a slot; sessions get slots in the order of submission.

        After the engine has ended, the session is ended at once, with the engine's error.
        """
        session.inbox.listen(on_put=self.notify)
        session.outbox.listen(on_take=self.notify)
        with self._changed:
            refused = self._closed
            if not refused:
                self._waiting.append(session)
        if refused:
            self._cancel(session)
        self.notify()

    def no_more(self) -> None:
        """Say that no session will be submitted any more: a tick need not wait for one."""
        self._no_more = True
        self.notify()

    @property
    def usable_slots(self) -> int:
        """Sessions at once that it keeps up with, as far as that was asked for; at least 1."""
        return self.num_slots if self._capacity is None else self._capacity.sessions

    @property
    def can_park(self) -> bool:
        """Whether every node can keep a session's state; known once it is ready."""
        return self._can_park

    def park(self, session: Session, done: Callable[[int | MoshiPipeError], None]) -> None:
        """Take a running session out of its slot between two ticks.

        Args:
            session: Keeps its rings; frames that come in meanwhile wait there.
            done: Told the bytes of its state, or why it stays as it is; from any thread.
        """
        self._parking.ask(session, done, park=True)
        self.notify()

    def unpark(self, session: Session, done: Callable[[int | MoshiPipeError], None]) -> None:
        """Let a parked session wait for a slot, after others that wait.

        Args:
            session: Goes on where it was, in any slot.
            done: Told once it has one, or why it has not; from any thread.
        """
        self._parking.ask(session, done, park=False)
        self.notify()

    def stop(self) -> None:
        """End every session as cancelled, close the nodes and end the thread."""
        self._stopping = True
        self.notify()
        if self._thread is not None:
            self._thread.join()

    def notify(self) -> None:
        """Tell the engine that a ring or the queue changed."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    # ---- the engine's thread

    def open(self) -> None:
        """Make, open and warm up the nodes of the schedule, and measure full ticks if asked to."""
        began_ns = self._clock.now_ns()
        nodes = self._make_nodes()
        self.made_ns = self._clock.now_ns() - began_ns
        self._nodes.open(nodes, self.num_slots)
        self._can_park = self._nodes.can_snapshot
        limit_ns = self._options.admit_ns
        if limit_ns is not None and self.num_slots > 1 and not self._options.all_rows:
            self._capacity = self._measured(limit_ns)
        self.warm_ns = self._clock.now_ns() - began_ns - self.made_ns

    def _measured(self, limit_ns: int) -> Capacity:
        """Measure ticks of sessions that hear silence; the slots are free again then."""
        capacity = Capacity(tick_sizes(self.num_slots), limit_ns)
        joined: list[int] = []

        def tick(n: int) -> int:
            for slot in range(len(joined), n):
                self._nodes.join(slot, self._settings)
                joined.append(slot)
            everyone = np.ones(n, dtype=bool)
            full = Tick(n=n, active=everyone, end_codes=np.zeros(n, dtype=bool))
            began_ns = self._clock.now_ns()
            self._nodes.step(full, self._input.frames(n), everyone.copy())
            return self._clock.now_ns() - began_ns

        capacity.measure(tick)
        for slot in joined:
            self._nodes.leave(slot)
        return capacity

    def close(self) -> None:
        """Close the nodes."""
        self._nodes.close()

    def tick(self) -> bool:
        """Admit who waits, and fire once if the tick rule allows.

        Returns:
            Whether anything happened; False means that there is nothing to do until a
            notification.
        """
        changed = self._close_cancelled() | self._finish_ended() | self._move() | self._admit()
        active = self._choose()
        if active:
            self._fire(active)
        return changed or bool(active)

    def _run(self) -> None:
        try:
            self.open()
            self.ready.set()
            while not self._stopping:
                with self._changed:
                    version = self._version
                if self.tick():
                    continue
                held = self._waiting or self._slots.items() or self._parking.sessions
                if self._no_more and not held:
                    break
                self._wait(version, _HELD_WAIT_S if held else None)
        except Exception as error:  # whatever breaks a tick ends the engine, not the process
            self.error = _as_backend_error(error)
            if self._on_failure is not None and self.ready.is_set():
                self._on_failure(self.error)
        finally:
            self._end_all()
            self.ready.set()
            self.close()

    def _wait(self, version: int, timeout_s: float | None) -> None:
        pause_ns = self._next_start_ns - self._clock.now_ns()
        if self._options.live and timeout_s is not None and pause_ns > 0:
            timeout_s = min(timeout_s, pause_ns / 1e9)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._version != version, timeout_s)

    def _admit(self) -> bool:
        """Give free slots to waiting sessions, in order."""
        admitted = False
        while self._waiting and self._slots.num_free:
            with self._changed:
                session = self._waiting.popleft()
            admitted = True
            slot = self._slots.occupy(session)
            session.slot = slot
            returning = self._parking.returning(session)
            try:
                if returning is None:
                    self._nodes.join(slot, session.settings)
                else:
                    self._nodes.restore(slot, returning[0], session.settings)
            except MoshiPipeError as error:
                session.failure = error
                self._release(slot, session)
                if returning is not None:
                    returning[1](error)
                continue
            session.state = SessionState.RUNNING
            if returning is None:
                session.admitted_ns = self._clock.now_ns()
                self.statistics.sessions += 1
            else:
                returning[1](0)
        return admitted

    def _move(self) -> bool:
        """Park sessions, and let parked ones wait for a slot, as was asked for."""
        moved = False
        while (asked := self._parking.asked()) is not None:
            moved = True
            park, session, done = asked
            if park:
                done(self._park(session))
            elif self._parking.call_back(session, done):
                with self._changed:
                    self._waiting.append(session)
        return moved

    def _park(self, session: Session) -> int | MoshiPipeError:
        """Copy the state of a session and free its slot; bytes, or why not."""
        slot = session.slot
        if session.state is not SessionState.RUNNING or slot is None:
            return SessionError(
                f"session {session.id} cannot leave its slot",
                got=f"a session that is {session.state.value}",
            )
        try:
            snapshot = self._nodes.snapshot(slot)
        except MoshiPipeError as error:
            return error
        self._nodes.leave(slot)
        self._slots.free(slot)
        self.lateness.forget(session.id)
        return self._parking.keep(session, snapshot)

    def _choose(self) -> list[tuple[int, Session]]:
        """Sessions that advance in the next tick; empty when no tick may start."""
        held = self._slots.items()
        ready = [(slot, s) for slot, s in held if has_frame(s) and not s.outbox.full]
        if not self._options.live:
            may_join = self._options.fill and self._slots.num_free and not self._no_more
            return ready if len(ready) == len(held) and not may_join else []
        now_ns = self._clock.now_ns()
        if not ready or now_ns < self._next_start_ns:
            return []
        self._next_start_ns = now_ns + self._options.min_interval_ns
        return ready

    def _fire(self, active: list[tuple[int, Session]]) -> None:
        start_ns = self._clock.now_ns()
        n = self.num_slots if self._options.all_rows else self._slots.rows_for(active[-1][0])
        tick, fed, taken = self._input.fill(active, n, start_ns)
        outputs, nodes_ns = self._nodes.step(tick, self._input.frames(n), fed)
        broken = self._nodes.broken()
        end_ns = self._clock.now_ns()
        frames = tuple((session.id, *taken[slot]) for slot, session in active)
        times = TickTimes(start_ns, end_ns, tuple(nodes_ns), frames)
        for slot, session in active:
            session.next_frame = taken[slot][0] + (slot not in broken)
        self._hand_out([item for item in active if item[0] not in broken], outputs, times)
        for slot, session in active:
            if slot in broken:
                self._end_broken(slot, session, broken[slot])
        self._count(times, n)
        self.statistics.overhead.add(self._clock.now_ns() - start_ns - times.model_ns)

    def _count(self, times: TickTimes, n: int) -> None:
        """Add a tick to the statistics."""
        statistics = self.statistics
        statistics.ticks += 1
        statistics.rows += n
        statistics.frames += len(times.frames)
        statistics.tick.add(times.end_ns - times.start_ns)
        statistics.series.add(times.end_ns - times.start_ns)
        if self._capacity is not None:
            self._capacity.add(n, times.end_ns - times.start_ns)
        for name, (begin_ns, end_ns) in zip(self._schedule.order, times.nodes, strict=True):
            statistics.nodes[name].add(end_ns - begin_ns)
        if self._options.live:
            for late in self.lateness.add(times):
                if self._on_late is not None:
                    self._on_late(*late)

    def _hand_out(
        self,
        active: list[tuple[int, Session]],
        outputs: Outputs,
        times: TickTimes,
    ) -> None:
        """Put valid rows into the outboxes and end sessions whose last word was spoken."""
        delivered_ns = {session: at for session, _, at in times.frames}
        for slot, session in active:
            row = {name: host[slot] for name, (host, valid) in outputs.items() if valid[slot]}
            stamps = delivered_ns[session.id], times.start_ns, times.end_ns, times.model_ns
            session.outbox.put(session.next_frame - 1, {**row, TIMES: stamps})
            session.num_frames += 1
            if session.state is not SessionState.DRAINING:
                continue
            if _has_ended(session, row):
                self._release(slot, session)

    def _end_broken(self, slot: int, session: Session, node: str) -> None:
        session.failure = SessionError(
            f"session {session.id} was ended: '{node}' made numbers that are not finite",
            got=f"NaN or infinity in frame {session.next_frame}",
            fix="check the weights (model.check_finite=true), or try dtype=float32",
        )
        self._nodes.join(slot, session.settings)  # zeroes the state
        self._release(slot, session)

    def _finish_ended(self) -> bool:
        """Close sessions whose input is used up, or let their model speak on.

        A parked one whose input ends is closed as it is: nobody comes for it.
        """
        changed = False
        for session in self._parking.sessions:
            if session.inbox.ended:
                changed = True
                session.cancelled = session.cancelled or not session.inbox.finished
                self._close(session)
        for slot, session in self._slots.items():
            if session.state is SessionState.RUNNING and session.inbox.finished:
                changed = True
                settings = session.settings
                if settings.end_on_text is None and settings.end_on_padding is None:
                    self._release(slot, session)
                else:
                    session.state = SessionState.DRAINING
        return changed

    def _close_cancelled(self) -> bool:
        """Close sessions whose end was asked for: in a slot, parked, or waiting."""
        running = [(slot, s) for slot, s in self._slots.items() if s.cancelled]
        for slot, session in running:
            self._release(slot, session)
        with self._changed:
            others = [session for session in self._waiting if session.cancelled]
            for session in others:
                self._waiting.remove(session)
        others += [session for session in self._parking.sessions if session.cancelled]
        for session in others:
            self._close(session)
        return bool(running or others)

    def _release(self, slot: int, session: Session) -> None:
        self._nodes.leave(slot)
        self._slots.free(slot)
        self._close(session)

    def _close(self, session: Session) -> None:
        self.lateness.forget(session.id)
        self._parking.drop(session)
        session.state = SessionState.CLOSED
        session.slot = None
        session.outbox.end()
        session.inbox.end()

    def _end_all(self) -> None:
        """End every session; those that come later are ended as they come."""
        with self._changed:
            self._closed = True
            held = [session for _, session in self._slots.items()]
            sessions = [*held, *self._waiting, *self._parking.sessions]
            self._waiting.clear()
        self._parking.close()
        for session in sessions:
            self._cancel(session)

    def _cancel(self, session: Session) -> None:
        session.failure = session.failure or self.error
        session.cancelled = True
        self._close(session)


def _has_ended(session: Session, row: Mapping[str, Any]) -> bool:
    """Whether a session whose input has ended has nothing more to say, or may say no more."""
    settings = session.settings
    token = int(row["text"]) if "text" in row else None
    session.num_padding_frames = session.num_padding_frames + 1 if token == PADDING_ID else 0
    said = settings.end_on_text is not None and token == settings.end_on_text
    silent = (
        settings.end_on_padding is not None
        and session.num_padding_frames >= settings.end_on_padding
    )
    return said or silent or session.num_tail_frames >= settings.max_tail_frames


def _as_backend_error(error: Exception) -> MoshiPipeError:
    if isinstance(error, MoshiPipeError):
        return error
    wrapped = BackendError(
        "the engine stopped: a tick failed",
        got=f"{type(error).__name__}: {error}",
        fix="run again with --verbose for the traceback",
    )
    wrapped.__cause__ = error
    return wrapped
