"""Sessions that leave their slot and come back: nobody notices, themselves least of all."""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import BASE_LM, CONDITIONED_LM, TINY_MIMI, fill_golden
from support.nodes import AUDIO, FRAME, Accumulate

from moshi_pipe.engine.clock import ManualClock
from moshi_pipe.engine.engine import Engine, TickOptions
from moshi_pipe.engine.session import TIMES, Session, SessionState, make_session
from moshi_pipe.engine.stages import DecodeStage, EncodeStage, LMStage
from moshi_pipe.errors import MoshiPipeError, SessionError
from moshi_pipe.graph.format import Audio, Text
from moshi_pipe.graph.node import BatchedNode, SessionSettings
from moshi_pipe.graph.schedule import Schedule
from moshi_pipe.models.spec import LMSpec, MimiSpec
from moshi_pipe.nn.mimi import Mimi
from moshi_pipe.nn.moshi import Moshi

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RATE = Fraction(25, 2)
NUM_SLOTS = 4
NUM_SESSIONS = 6
NUM_FRAMES = 14  # the rings of the model hold 8, those of the codec fewer
HEARD = Audio(400, 32)
DIALOGUE = Schedule(
    "heard",
    ("encode", "lm", "decode"),
    {
        "encode": {"audio": "heard"},
        "lm": {"user_codes": "encode.codes"},
        "decode": {"codes": "lm.codes"},
    },
    {"audio": "decode.audio", "text": "lm.text"},
)
ECHO = Schedule("heard", ("node",), {"node": {"audio": "heard"}}, {"audio": "node.audio"})


@cache
def models(*, guided: bool) -> tuple[Mimi, Moshi]:
    quantizer = TINY_MIMI["quantizer"] | {"bins": BASE_LM["card"]}
    codec = Mimi(MimiSpec.from_config(TINY_MIMI | {"quantizer": quantizer}))
    fill_golden(codec)
    codec.prepare()
    lm = Moshi(
        LMSpec.from_config(CONDITIONED_LM if guided else BASE_LM),
        numerics="reference",
        kv_dtype=torch.int8 if guided else None,
    )
    fill_golden(lm)
    return codec, lm


def dialogue_nodes(*, guided: bool) -> Mapping[str, BatchedNode]:
    codec, lm = models(guided=guided)
    return {
        "encode": EncodeStage(codec),
        "lm": LMStage(lm, frame_rate=RATE, guided=guided, max_candidates=10),
        "decode": DecodeStage(codec, 4),
    }


def session_settings(index: int, *, guided: bool) -> SessionSettings:
    conditions = {"description": "good", "description!": "bad"} if guided else {}
    return SessionSettings(
        seed=index,
        top_k=5,
        text_top_k=5 + index,
        temperature=0.3 * index,
        guidance=1.0 + 0.5 * guided * index,
        repetition_penalty=1.0 + 0.1 * index,
        first_frame=("reset", "duplicate", "none")[index % 3],
        conditions=conditions,
    )


class Hall:
    """Sessions on an engine that is ticked by hand, more than there are slots for."""

    def __init__(self, *, guided: bool) -> None:
        self.clock = ManualClock()
        self.engine = Engine(
            lambda: dialogue_nodes(guided=guided),
            DIALOGUE,
            input_format=HEARD,
            options=TickOptions(num_slots=NUM_SLOTS, live=True),
            clock=self.clock,
        )
        self.engine.open()
        self.sessions = [
            make_session(
                f"s{i}",
                session_settings(i, guided=guided),
                {"heard": HEARD},
                {"audio": HEARD, "text": Text(48, RATE)},
                inbox_frames=2,
                outbox_frames=4,
            )
            for i in range(NUM_SESSIONS)
        ]
        self.fed = [0] * NUM_SESSIONS
        self.rows: list[list[tuple[int, bytes, int | None]]] = [[] for _ in self.sessions]
        self.slots: list[set[int]] = [set() for _ in self.sessions]
        self.outcomes: list[int | MoshiPipeError] = []
        for session in self.sessions:
            self.engine.submit(session)

    def go(self) -> None:
        """One frame for everyone who has a slot."""
        self.settle()
        for i, session in enumerate(self.sessions):
            if session.state is SessionState.RUNNING and self.fed[i] < NUM_FRAMES:
                frame = np.random.default_rng([i, self.fed[i]]).standard_normal((1, 32)) / 4
                session.inbox.put(self.fed[i], {"heard": frame.astype(np.float32), TIMES: 0})
                self.fed[i] += 1
                if self.fed[i] == NUM_FRAMES:
                    session.inbox.end()
        self.settle()

    def settle(self) -> None:
        while self.engine.tick():
            for i, session in enumerate(self.sessions):
                if session.slot is not None:
                    self.slots[i].add(session.slot)
                while (taken := session.outbox.take()) is not None:
                    row = taken[1]
                    audio = row["audio"].tobytes() if "audio" in row else b""
                    self.rows[i].append((taken[0], audio, int(row["text"]) if "text" in row else 0))

    def move(self, index: int) -> None:
        """Park who runs, and call back who is parked."""
        session = self.sessions[index]
        if session.state is SessionState.PARKED:
            self.engine.unpark(session, self.outcomes.append)
        elif session.state is SessionState.RUNNING and not session.inbox.ended:
            self.engine.park(session, self.outcomes.append)

    def end(self) -> None:
        """Call everyone back, and let all come to their end."""
        for _ in range(NUM_SESSIONS * (NUM_FRAMES + 2)):
            for index, session in enumerate(self.sessions):
                if session.state is SessionState.PARKED:
                    self.move(index)
            self.go()
        assert {session.state for session in self.sessions} == {SessionState.CLOSED}
        assert all(session.failure is None for session in self.sessions)
        assert [len(rows) for rows in self.rows] == [NUM_FRAMES] * NUM_SESSIONS


@cache
def uninterrupted(*, guided: bool) -> list[list[tuple[int, bytes, int | None]]]:
    hall = Hall(guided=guided)
    hall.end()
    return hall.rows


@pytest.mark.parametrize("guided", [False, True])
@settings(max_examples=8, deadline=None)
@given(
    script=st.lists(
        st.lists(st.integers(0, NUM_SESSIONS - 1), max_size=3, unique=True), max_size=25
    )
)
def test_a_parked_session_goes_on_to_the_last_bit_and_others_do_not_notice(
    guided: bool, script: list[list[int]]
) -> None:
    hall = Hall(guided=guided)
    for moves in script:
        for index in moves:
            hall.move(index)
        hall.go()
    hall.end()

    assert not any(isinstance(outcome, MoshiPipeError) for outcome in hall.outcomes)
    for index, expected in enumerate(uninterrupted(guided=guided)):
        assert hall.rows[index] == expected, f"session {index}"


@pytest.mark.parametrize("at", range(1, NUM_FRAMES))
def test_a_session_comes_back_into_another_slot_at_any_frame(at: int) -> None:
    hall = Hall(guided=False)
    for _ in range(at):
        hall.go()
    for index in (0, 1):  # the first in the lowest slots; who waits takes them
        hall.move(index)
    hall.go()
    assert [hall.sessions[i].state for i in (0, 1)] == [SessionState.PARKED] * 2
    assert [hall.sessions[i].slot for i in (4, 5)] == [0, 1]
    hall.end()

    assert all(len(hall.slots[i]) == 2 for i in (0, 1)), "it should have moved"
    assert hall.rows == uninterrupted(guided=False)


def test_the_bytes_of_a_state_are_those_of_its_frames() -> None:
    hall = Hall(guided=False)
    for session in hall.sessions[1:]:
        session.cancel()  # the slot is free again at once
    hall.settle()
    sizes = []
    for _ in range(NUM_FRAMES - 1):
        hall.go()
        hall.move(0)
        hall.settle()
        size = hall.outcomes.pop()
        assert isinstance(size, int)
        sizes.append(size)
        hall.move(0)
        hall.settle()
        assert hall.outcomes.pop() == 0

    grown = [b - a for a, b in itertools.pairwise(sizes)]
    assert grown[0] > 0
    assert grown[-1] == 0, "once the rings are full it grows no more"


class Keeps(Accumulate):
    """Its state can be kept."""

    refuses = False
    restored: list[int]

    @property
    def can_snapshot(self) -> bool:
        return True

    def snapshot(self, slot: int) -> Any:
        if self.refuses:
            raise SessionError("not now")
        return self.state[slot].clone()

    def restore(self, slot: int, snapshot: Any, settings: SessionSettings) -> None:
        if self.refuses:
            raise SessionError("not any more")
        self.state[slot] = snapshot


class Small:
    """Two sessions on an engine of one slot."""

    def __init__(self, node: BatchedNode | None = None) -> None:
        self.node = node or Keeps()
        self.engine = Engine(
            lambda: {"node": self.node},
            ECHO,
            input_format=AUDIO,
            options=TickOptions(num_slots=1, live=True),
            clock=ManualClock(),
        )
        self.engine.open()
        self.told: list[int | MoshiPipeError] = []
        self.sessions = [self.session(name) for name in "ab"]

    def session(self, name: str) -> Session:
        session = make_session(
            name,
            SessionSettings(),
            {"heard": AUDIO},
            {"audio": AUDIO},
            inbox_frames=4,
            outbox_frames=4,
        )
        self.engine.submit(session)
        return session

    def talk(self, session: Session, *values: float) -> list[float]:
        for value in values:
            frame = np.full((1, FRAME), value, np.float32)
            session.inbox.put(session.inbox.counters.put, {"heard": frame, TIMES: 0})
        self.settle()
        heard = []
        while (taken := session.outbox.take()) is not None:
            heard.append(float(taken[1]["audio"][0, 0]))
        return heard

    def settle(self) -> None:
        while self.engine.tick():
            pass

    def park(self, session: Session) -> int | MoshiPipeError:
        self.engine.park(session, self.told.append)
        self.settle()
        return self.told.pop()

    def unpark(self, session: Session) -> Sequence[int | MoshiPipeError]:
        self.engine.unpark(session, self.told.append)
        self.settle()
        told = list(self.told)
        self.told.clear()
        return told


def test_who_waits_gets_the_slot_of_who_is_parked() -> None:
    small = Small()
    a, b = small.sessions
    assert small.talk(a, 1, 1) == [1, 2]
    assert small.park(a) == 4 * FRAME
    assert (a.state, a.slot, b.state) == (SessionState.PARKED, None, SessionState.RUNNING)
    assert small.talk(b, 5) == [5]
    assert small.talk(a, 1) == [], "it has no slot"
    assert small.unpark(a) == [], "it waits"
    assert small.park(b) == 0, "the first is back by then"
    assert small.told == [4 * FRAME]
    assert small.talk(a, 1) == [3, 4]
    assert small.engine.statistics.sessions == 2


def test_what_cannot_be_parked_is_said_and_goes_on() -> None:
    small = Small()
    a, b = small.sessions
    small.settle()
    assert "waiting" in str(small.park(b))
    [told] = small.unpark(a)
    assert "not parked" in str(told)
    small.node.refuses = True  # type: ignore[attr-defined]
    assert "not now" in str(small.park(a))
    assert small.talk(a, 2) == [2]


def test_a_node_that_cannot_keep_sessions_says_so() -> None:
    small = Small(Accumulate())
    assert not small.engine.can_park
    assert Small().engine.can_park
    small.settle()
    assert "cannot be kept" in str(small.park(small.sessions[0]))


@pytest.mark.parametrize("how", ["cancel", "end"])
def test_a_parked_session_ends_when_it_is_asked_to(how: str) -> None:
    small = Small()
    a, b = small.sessions
    small.talk(a, 1)
    small.park(a)
    if how == "cancel":
        a.cancel()
    else:
        a.inbox.end()
    small.settle()
    assert a.state is SessionState.CLOSED
    assert a.outbox.finished
    assert a.cancelled == (how == "cancel")
    assert "not parked" in str(small.unpark(a)[0])
    assert small.talk(b, 1) == [1]


def test_a_session_that_waits_to_come_back_may_end_too() -> None:
    small = Small()
    a, _ = small.sessions
    small.settle()
    small.park(a)
    assert small.unpark(a) == []
    a.cancel()
    small.settle()
    assert a.state is SessionState.CLOSED
    assert "has ended meanwhile" in str(small.told.pop())


def test_a_state_that_cannot_be_put_back_ends_its_session_alone() -> None:
    small = Small()
    a, b = small.sessions
    small.settle()
    small.park(a)
    small.node.refuses = True  # type: ignore[attr-defined]
    small.unpark(a)
    b.inbox.end()
    small.settle()
    assert "not any more" in str(a.failure)
    assert "not any more" in str(small.told.pop())
    assert small.engine.error is None


def test_an_engine_that_ends_ends_who_is_parked() -> None:
    small = Small()
    a, b = small.sessions
    small.settle()
    small.park(a)
    small.engine._end_all()
    assert {a.state, b.state} == {SessionState.CLOSED}
    assert "has ended meanwhile" in str(small.park(a))
