"""What all checks share: the error, comparisons, and the promises of anything that has slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moshi_pipe.errors import MoshiPipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

Output = dict[str, "npt.NDArray[Any]"]
"""What one slot gave in one step, by name."""


class ConformanceError(MoshiPipeError, AssertionError):
    """A part does not keep a promise; says which, what was seen and what was promised."""


def require(holds: object, what: str, *, got: object = None, wanted: str | None = None) -> None:
    """Raise unless something holds.

    Raises:
        ConformanceError: It does not.
    """
    if not holds:
        raise ConformanceError(what, got=None if got is None else str(got), wanted=wanted)


@dataclass(frozen=True, slots=True)
class Play:
    """One frame of one slot: which of several recordings, and which of its frames.

    Attributes:
        stream: Number of the recording.
        frame: Frame in it.
    """

    stream: int
    frame: int


class Subject(Protocol):
    """Something with slots, such as the encoder of a codec."""

    name: str

    def new(self, num_slots: int) -> Any:
        """Make state of ``num_slots`` fresh slots."""

    def reset(self, state: Any, slots: Sequence[int]) -> None:
        """Begin anew in some slots."""

    def step(self, state: Any, plays: Sequence[Play | None]) -> list[Output | None]:
        """Run rows ``[:len(plays)]``; those that are None are idle and are fed garbage."""


def check_slots(subject: Subject, *, num_slots: int, frames: int, tolerance: float) -> None:
    """Check what everything with slots promises.

    Comparisons are between runs of the same number of rows, since matrix products may differ in
    their last bits between numbers of rows.

    Args:
        subject: What is checked.
        num_slots: Slots of the state; at least 4.
        frames: Frames per recording.
        tolerance: Largest difference of floats; integers must be equal.

    Raises:
        ConformanceError: A promise is broken.
    """
    check = _SlotCheck(subject, num_slots, frames, tolerance)
    check.repeats()
    check.slots_are_alike()
    check.slots_are_independent()
    check.idle_slots_keep_their_state()
    check.reset_clears_one_slot()
    check.states_are_apart()
    check.a_prefix_runs()


class _SlotCheck:
    def __init__(self, subject: Subject, num_slots: int, frames: int, tolerance: float) -> None:
        if num_slots < 4:
            raise ValueError(f"a check needs at least 4 slots, got {num_slots}")
        self.subject = subject
        self.num_slots = num_slots
        self.frames = frames
        self.tolerance = tolerance
        self.name = subject.name
        everyone = range(num_slots)
        self.together = self.run({}, self.rows_of(everyone))

    def rows_of(self, streams: Sequence[int]) -> list[list[Play | None]]:
        """One recording per slot, all frames of it."""
        return [[Play(s, t) for s in streams] for t in range(self.frames)]

    def run(
        self,
        resets: Mapping[int, Sequence[int]],
        rows: Sequence[Sequence[Play | None]],
        state: Any = None,
    ) -> list[list[Output]]:
        """Run rows; returns what each slot gave, in order.

        Args:
            resets: Slots to reset before a row, by the number of the row.
            rows: What each slot plays, per step.
            state: Where to go on; None begins anew.
        """
        state = self.subject.new(self.num_slots) if state is None else state
        given: list[list[Output]] = [[] for _ in range(self.num_slots)]
        for i, row in enumerate(rows):
            if i in resets:
                self.subject.reset(state, resets[i])
            made = self.subject.step(state, row)
            for slot, (play, output) in enumerate(zip(row, made, strict=True)):
                if play is not None and output is not None:
                    given[slot].append(output)
        return given

    def alone(self, slot: int, stream: int) -> list[Output]:
        """What a slot gives when it plays a recording and all others are idle."""
        rows = [self.only(slot, Play(stream, t)) for t in range(self.frames)]
        return self.run({}, rows)[slot]

    def only(self, slot: int, play: Play) -> list[Play | None]:
        return [play if i == slot else None for i in range(self.num_slots)]

    def same(self, got: Sequence[Output], wanted: Sequence[Output], promise: str) -> None:
        require(
            len(got) == len(wanted),
            f"{self.name}: {promise}",
            got=f"{len(got)} outputs, where there should be {len(wanted)}",
        )
        for i, (one, other) in enumerate(zip(got, wanted, strict=True)):
            for key, value in other.items():
                difference = differs(one[key], value, self.tolerance)
                require(
                    difference is None,
                    f"{self.name}: {promise}",
                    got=f"'{key}' of output {i} differs: {difference}",
                    wanted="the same numbers",
                )

    def repeats(self) -> None:
        again = self.run({}, self.rows_of(range(self.num_slots)))
        for slot in range(self.num_slots):
            self.same(again[slot], self.together[slot], "the same input gives the same output")

    def slots_are_alike(self) -> None:
        last = self.num_slots - 1
        promise = "a session gives the same in every slot"
        self.same(self.alone(last, 0), self.alone(0, 0), promise)

    def slots_are_independent(self) -> None:
        promise = "a slot does not depend on what other slots play"
        for slot in (0, 1, self.num_slots - 1):
            self.same(self.together[slot], self.alone(slot, slot), f"{promise} (slot {slot})")

    def idle_slots_keep_their_state(self) -> None:
        """Slot 1 pauses twice; what it gives must be as if it had not."""
        rows: list[list[Play | None]] = []
        for t in range(self.frames):
            for pause in range(2 if t in (1, self.frames // 2) else 0):
                other = Play(2, (t + pause) % self.frames)
                rows.append([other if i == 2 else None for i in range(self.num_slots)])
            rows.append([Play(1, t) if i == 1 else None for i in range(self.num_slots)])
        paused = self.run({}, rows)[1]
        promise = "a step in which a slot is not valid leaves its state as it was"
        self.same(paused, self.together[1], promise)

    def reset_clears_one_slot(self) -> None:
        half = self.frames // 2
        everyone = range(self.num_slots)
        rows = self.rows_of(everyone)
        rows += [[Play(i if i == 1 else i + 1, t) for i in everyone] for t in range(half)]
        with_reset, without = self.run({self.frames: [1]}, rows), self.run({}, rows)
        promise = "a reset leaves nothing of the session before"
        self.same(with_reset[1][self.frames :], self.together[1][:half], promise)
        for slot in (0, self.num_slots - 1):
            promise = f"the reset of a slot leaves the others alone (slot {slot})"
            self.same(with_reset[slot], without[slot], promise)

    def states_are_apart(self) -> None:
        """Two states of one object, stepped in turn."""
        first, second = self.subject.new(self.num_slots), self.subject.new(self.num_slots)
        given: list[Output] = []
        for t, row in enumerate(self.rows_of(range(self.num_slots))):
            given += self.run({}, [row], first)[0]
            other = [Play(i + 1, self.frames - 1 - t) for i in range(self.num_slots)]
            self.run({}, [other], second)
        promise = "two states of one object know nothing of each other"
        self.same(given, self.together[0], promise)

    def a_prefix_runs(self) -> None:
        """The first rows of a state run as a state of as many slots would."""
        for num_rows in (1, self.num_slots // 2):
            rows = [row[:num_rows] for row in self.rows_of(range(num_rows))]
            wide = self.subject.new(self.num_slots)
            narrow = self.subject.new(num_rows)
            got, wanted = self.run({}, rows, wide), self.run({}, rows, narrow)
            promise = f"the first {num_rows} of {self.num_slots} slots can be run alone"
            for slot in range(num_rows):
                self.same(got[slot], wanted[slot], promise)
            rest: list[list[Play | None]] = [
                [Play(i, t) if i >= num_rows else None for i in range(self.num_slots)]
                for t in range(self.frames)
            ]
            after = self.run({}, rest, wide)
            promise = f"running the first {num_rows} slots leaves the others alone"
            last = self.num_slots - 1
            self.same(after[last], self.together[last], promise)


def differs(got: npt.NDArray[Any], wanted: npt.NDArray[Any], tolerance: float) -> str | None:
    """How two arrays differ, in words; None when they do not."""
    if got.shape != wanted.shape:
        return f"shape {list(got.shape)} and {list(wanted.shape)}"
    if got.dtype.kind != "f":
        wrong = int(np.count_nonzero(got != wanted))
        return f"{wrong} of {got.size} numbers" if wrong else None
    if np.array_equal(got, wanted, equal_nan=True):
        return None
    worst = float(np.max(np.abs(got.astype(np.float64) - wanted), initial=0.0))
    return None if worst <= tolerance else f"by up to {worst:.3g}, tolerance {tolerance:g}"
