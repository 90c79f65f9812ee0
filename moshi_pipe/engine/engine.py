"""The engine: loaded models with slots, and the thread that ticks them.

A tick runs the static schedule once over the first rows of the batch axis; sessions join and leave
between ticks. The engine talks to the edge through each session's rings and one small queue of
sessions that wait, and waits for neither a socket nor a disk.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.engine.session import Session, SessionState
from moshi_pipe.engine.slots import SlotTable, padded_slots
from moshi_pipe.engine.statistics import EngineStatistics, Histogram
from moshi_pipe.errors import BackendError, MoshiPipeError, SessionError
from moshi_pipe.graph.format import Audio, Codes, Format
from moshi_pipe.graph.node import BatchedNode, Tick, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from moshi_pipe.graph.schedule import Schedule

_IDLE_WAIT_S: Final = 1.0  # an upper bound on a wait that a notification normally ends


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How ticks are formed.

    Attributes:
        num_slots: Sessions held at once; padded to 1 or a multiple of 4.
        live: Take whoever is ready, and only the rows needed. Otherwise wait until every session
            that holds a slot has a frame or has ended, and run all rows, so that a run repeats.
        min_interval_ns: Live: shortest time between two starts of ticks.
        device: Where the graph's inputs go.
    """

    num_slots: int = 1
    live: bool = False
    min_interval_ns: int = 0
    device: str = "cpu"


class Engine:
    """Runs a schedule of batched nodes over slots.

    Args:
        nodes: Makes the nodes of the schedule, by name; called on the engine's thread, since some
            backends belong to the thread that made them.
        schedule: Order of firing and wiring.
        input_format: Format of the graph's input.
        options: How ticks are formed.
        clock: Source of time for pacing.
    """

    def __init__(
        self,
        nodes: Callable[[], Mapping[str, BatchedNode]],
        schedule: Schedule,
        *,
        input_format: Format,
        options: EngineOptions,
        clock: Clock | None = None,
    ) -> None:
        self.num_slots = padded_slots(options.num_slots)
        self.statistics = EngineStatistics(nodes={name: Histogram() for name in schedule.order})
        self.error: MoshiPipeError | None = None
        self.ready = threading.Event()
        self._make_nodes = nodes
        self._nodes: Mapping[str, BatchedNode] = {}
        self._schedule = schedule
        self._options = options
        self._clock = clock or SystemClock()
        self._input = _input_buffer(input_format, self.num_slots)
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
        """Open the nodes and begin to tick, on a thread of the engine's own.

        :attr:`ready` is set when the nodes are open and warm, or when that failed.
        """
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
        """Make, open and warm up the nodes of the schedule."""
        self._nodes = self._make_nodes()
        for name in self._schedule.order:
            self._nodes[name].open(self.num_slots)

    def close(self) -> None:
        """Close the nodes."""
        for node in self._nodes.values():
            node.close()

    def tick(self) -> bool:
        """Admit who waits, and fire once if the tick rule allows.

        Returns:
            Whether anything happened; False means that there is nothing to do until a
            notification.
        """
        changed = self._close_cancelled() | self._finish_ended() | self._admit()
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
                if self._no_more and not self._waiting and not self._slots.items():
                    break
                self._wait(version)
        except Exception as error:  # whatever breaks a tick ends the engine, not the process
            self.error = _as_backend_error(error)
        finally:
            self._end_all()
            self.ready.set()
            self.close()

    def _wait(self, version: int) -> None:
        timeout = _IDLE_WAIT_S
        pause_ns = self._next_start_ns - self._clock.now_ns()
        if self._options.live and pause_ns > 0:
            timeout = min(timeout, pause_ns / 1e9)
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout)

    def _admit(self) -> bool:
        """Give free slots to waiting sessions, in order."""
        admitted = False
        while self._waiting and self._slots.num_free:
            with self._changed:
                session = self._waiting.popleft()
            admitted = True
            if session.cancelled:
                self._close(session)
                continue
            slot = self._slots.occupy(session)
            session.slot = slot
            try:
                for name in self._schedule.order:
                    self._nodes[name].join(slot, session.settings)
            except MoshiPipeError as error:
                session.failure = error
                self._release(slot, session)
                continue
            session.state = SessionState.RUNNING
            session.admitted_s = time.monotonic()
            self.statistics.sessions += 1
        return admitted

    def _choose(self) -> list[tuple[int, Session]]:
        """Sessions that advance in the next tick; empty when no tick may start."""
        held = self._slots.items()
        ready = [(slot, s) for slot, s in held if _has_frame(s) and not s.outbox.full]
        if not self._options.live:
            may_join = self._slots.num_free and not self._no_more
            return ready if len(ready) == len(held) and not may_join else []
        now_ns = self._clock.now_ns()
        if not ready or now_ns < self._next_start_ns:
            return []
        self._next_start_ns = now_ns + self._options.min_interval_ns
        return ready

    def _fire(self, active: list[tuple[int, Session]]) -> None:
        start_ns = time.perf_counter_ns()
        n = self.num_slots
        if self._options.live:
            n = self._slots.rows_for(active[-1][0])
        tick, fed = self._fill(active, n)
        values = self._run_schedule(tick, fed)
        outputs = {
            name: (_to_host(values[place].tensor), values[place].valid)
            for name, place in self._schedule.outputs.items()
        }
        broken = self._broken()
        self._hand_out([(slot, s) for slot, s in active if slot not in broken], outputs)
        for slot, session in active:
            if slot in broken:
                self._end_broken(slot, session, broken[slot])
        self.statistics.ticks += 1
        self.statistics.rows += n
        self.statistics.frames += len(active)
        self.statistics.tick.add(time.perf_counter_ns() - start_ns)

    def _fill(self, active: list[tuple[int, Session]], n: int) -> tuple[Tick, npt.NDArray[Any]]:
        """Copy one frame per active session into the input buffer."""
        tick = Tick(
            n=n,
            active=np.zeros(n, dtype=bool),
            end_codes=np.zeros(n, dtype=bool),
        )
        fed = np.zeros(n, dtype=bool)
        buffer = self._input.numpy()
        for slot, session in active:
            tick.active[slot] = True
            if session.state is SessionState.DRAINING:
                first = session.num_tail_frames == 0
                tick.end_codes[slot] = first
                fed[slot] = not first
                buffer[slot] = 0
                session.num_tail_frames += 1
            else:
                session.inbox.take_into(self._schedule.input, buffer[slot])
                fed[slot] = True
        return tick, fed

    def _run_schedule(self, tick: Tick, fed: npt.NDArray[Any]) -> dict[str, Value]:
        device = torch.device(self._options.device)
        tensor = self._input[: tick.n]
        if device.type != "cpu":
            tensor = tensor.to(device, non_blocking=True)
        values = {self._schedule.input: Value(tensor, fed)}
        for name in self._schedule.order:
            start_ns = time.perf_counter_ns()
            links = self._schedule.inputs[name]
            made = self._nodes[name].step({port: values[at] for port, at in links.items()}, tick)
            values.update({f"{name}.{port}": value for port, value in made.items()})
            self.statistics.nodes[name].add(time.perf_counter_ns() - start_ns)
        return values

    def _hand_out(
        self,
        active: list[tuple[int, Session]],
        outputs: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]],
    ) -> None:
        """Put valid rows into the outboxes and end sessions whose last word was spoken."""
        for slot, session in active:
            row = {name: host[slot] for name, (host, valid) in outputs.items() if valid[slot]}
            session.outbox.put(session.num_frames, row)
            session.num_frames += 1
            if session.state is not SessionState.DRAINING:
                continue
            settings = session.settings
            spoken = "text" in row and int(row["text"]) == settings.end_on_text
            if spoken or session.num_tail_frames >= settings.max_tail_frames:
                self._release(slot, session)

    def _broken(self) -> dict[int, str]:
        """Slots whose numbers are not finite, with the node that made them."""
        return {
            slot: name
            for name in reversed(self._schedule.order)
            for slot in self._nodes[name].failed()
        }

    def _end_broken(self, slot: int, session: Session, node: str) -> None:
        session.failure = SessionError(
            f"session {session.id} was ended: '{node}' made numbers that are not finite",
            got=f"NaN or infinity in frame {session.num_frames}",
            fix="check the weights (model.check_finite=true), or try dtype=float32",
        )
        for name in self._schedule.order:
            self._nodes[name].join(slot, session.settings)  # zeroes the state
        self._release(slot, session)

    def _finish_ended(self) -> bool:
        """Close sessions whose input is used up, or let their model speak on."""
        changed = False
        for slot, session in self._slots.items():
            if session.state is SessionState.RUNNING and session.inbox.finished:
                changed = True
                if session.settings.end_on_text is None:
                    self._release(slot, session)
                else:
                    session.state = SessionState.DRAINING
        return changed

    def _close_cancelled(self) -> bool:
        cancelled = [(slot, s) for slot, s in self._slots.items() if s.cancelled]
        for slot, session in cancelled:
            self._release(slot, session)
        return bool(cancelled)

    def _release(self, slot: int, session: Session) -> None:
        for name in self._schedule.order:
            self._nodes[name].leave(slot)
        self._slots.free(slot)
        self._close(session)

    def _close(self, session: Session) -> None:
        session.state = SessionState.CLOSED
        session.slot = None
        session.outbox.end()
        session.inbox.end()

    def _end_all(self) -> None:
        """End every session; those that come later are ended as they come."""
        with self._changed:
            self._closed = True
            sessions = [session for _, session in self._slots.items()] + list(self._waiting)
            self._waiting.clear()
        for session in sessions:
            self._cancel(session)

    def _cancel(self, session: Session) -> None:
        session.failure = session.failure or self.error
        session.cancelled = True
        self._close(session)


def _has_frame(session: Session) -> bool:
    if session.state is SessionState.DRAINING:
        return True
    return len(session.inbox) > 0


def _input_buffer(wanted: Format, num_slots: int) -> torch.Tensor:
    if isinstance(wanted, Audio):
        return torch.zeros(num_slots, wanted.channels, wanted.frame_size)
    if isinstance(wanted, Codes):
        return torch.zeros(num_slots, wanted.num_codebooks, dtype=torch.int64)
    raise ValueError(f"a graph's input is audio or codes, got {wanted}")


def _to_host(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array


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
