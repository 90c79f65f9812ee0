"""Rings: bounded, counted, in order, between two threads."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_pipe.engine.ring import POLICIES, Ring
from moshi_pipe.errors import ConfigError


def make_ring(policy: str = "block", capacity: int = 3) -> Ring:
    return Ring({"a": ((2,), "float32"), "b": ((), "int64")}, capacity=capacity, policy=policy)


@given(
    st.sampled_from(POLICIES),
    st.integers(1, 4),
    st.lists(st.sampled_from(["put", "take", "end"]), max_size=40),
)
def test_a_ring_is_a_bounded_queue_with_exact_counters(
    policy: str, capacity: int, actions: list[str]
) -> None:
    ring = make_ring(policy, capacity)
    model: deque[int] = deque()
    put = taken = dropped = longest = 0
    ended = False
    for stamp, action in enumerate(actions):
        if action == "end":
            ring.end()
            ended = True
        elif action == "take":
            got = ring.take()
            assert (got[0] if got else None) == (model.popleft() if model else None)
            taken += got is not None
        else:
            accepted = ring.put(stamp, {"b": stamp})
            if ended:
                assert not accepted
                continue
            is_full = len(model) == capacity
            assert accepted == (not is_full or policy.startswith("drop"))
            dropped += 0 if not is_full or policy == "block" else 1
            if is_full and policy == "drop_all":
                dropped += capacity - 1
                model = deque([model[-1]])
            ended = is_full and policy == "close"
            if accepted:
                put += 1
                if is_full:
                    model.popleft()
                model.append(stamp)
            longest = max(longest, len(model))
        assert len(ring) == len(model)
        assert ring.ended == ended
    counters = ring.counters
    assert (counters.put, counters.taken, counters.dropped) == (put, taken, dropped)
    assert counters.longest == longest


def test_a_missing_value_stays_missing_when_the_row_is_used_again() -> None:
    ring = make_ring(capacity=1)
    ring.put(0, {"a": np.ones(2), "b": 1})
    ring.take()
    ring.put(1, {"b": 2})

    taken = ring.take()

    assert taken is not None
    assert set(taken[1]) == {"b"}


@pytest.mark.parametrize(
    ("policy", "accepted", "kept", "dropped"),
    [
        ("block", [True, True, True, False, False], [0, 1, 2], 0),
        ("drop_oldest", [True] * 5, [2, 3, 4], 2),
        ("close", [True, True, True, False, False], [0, 1, 2], 1),
    ],
)
def test_a_full_ring_does_what_its_policy_says(
    policy: str, accepted: list[bool], kept: list[int], dropped: int
) -> None:
    ring = make_ring(policy)

    assert [ring.put(stamp, {"b": stamp}) for stamp in range(5)] == accepted
    assert ring.full
    assert ring.ended == (policy == "close")
    assert [taken[0] for taken in iter(ring.take, None)] == kept
    assert ring.counters.dropped == dropped
    assert ring.finished == (policy == "close")


def test_the_listener_hears_of_rows_and_of_the_end_and_never_of_a_refusal() -> None:
    heard: list[str] = []
    ring = make_ring(capacity=1)
    ring.listen(on_put=lambda: heard.append("put"), on_take=lambda: heard.append("take"))

    ring.put(0, {})
    ring.put(1, {})
    ring.take()
    ring.take()
    ring.end()
    ring.put(2, {})

    assert heard == ["put", "take", "put"]


def test_the_listener_hears_that_a_full_ring_closed_itself() -> None:
    ended: list[bool] = []
    ring = make_ring("close", capacity=1)
    ring.listen(on_put=lambda: ended.append(ring.ended))

    ring.put(0, {})
    ring.put(1, {})
    ring.put(2, {})

    assert ended == [False, True]


def test_what_is_put_is_copied() -> None:
    ring = make_ring()
    value = np.ones(2, np.float32)
    ring.put(0, {"a": value})
    value[:] = 5
    out = np.zeros(2, np.float32)

    assert ring.take_into({"a": out}) == 0
    assert out.tolist() == [1, 1]
    assert ring.take_into({"a": out}) is None


def test_drop_all_forgets_every_row_that_waits() -> None:
    ring = make_ring("drop_all", capacity=3)
    for i in range(4):
        assert ring.put(i, {"b": i})

    assert len(ring) == 1
    out = np.zeros((), np.int64)
    assert ring.take_into({"b": out}) == 3
    assert out == 3
    assert (ring.counters.put, ring.counters.dropped) == (4, 3)


def test_two_threads_pass_every_row_in_order() -> None:
    ring = make_ring(capacity=4)
    count = 2000
    room, news = threading.Semaphore(0), threading.Semaphore(0)
    ring.listen(on_put=news.release, on_take=room.release)

    def produce() -> None:
        for i in range(count):
            while not ring.put(i, {"a": np.full(2, i), "b": i}):
                room.acquire(timeout=5)
        ring.end()

    producer = threading.Thread(target=produce)
    producer.start()
    seen = []
    while not ring.finished:
        taken = ring.take()
        if taken is None:
            news.acquire(timeout=5)
            continue
        assert taken[1]["a"].tolist() == [taken[0]] * 2
        seen.append(taken[0])
    producer.join()

    assert seen == list(range(count))
    assert (ring.counters.put, ring.counters.taken) == (count, count)
    assert ring.counters.longest <= 4


def test_between_two_threads_every_row_is_taken_or_counted_as_dropped() -> None:
    ring = make_ring("drop_oldest", capacity=2)
    count = 5000

    def produce() -> None:
        for i in range(count):
            ring.put(i, {"a": np.full(2, i)})
        ring.end()

    producer = threading.Thread(target=produce)
    producer.start()
    seen = []
    out = np.zeros(2, np.float32)
    while not ring.finished:
        stamp = ring.take_into({"a": out})
        if stamp is not None:
            assert out.tolist() == [stamp, stamp]
            seen.append(stamp)
    producer.join()

    assert seen == sorted(set(seen))
    assert seen[-1] == count - 1
    assert ring.counters.put == count
    assert ring.counters.taken == len(seen) == count - ring.counters.dropped


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ConfigError) as policy:
        make_ring("blok")
    with pytest.raises(ConfigError) as capacity:
        make_ring(capacity=0)

    assert str(policy.value) == (
        "unknown ring policy 'blok'\n"
        "  wanted: did you mean 'block'? (there are: block, close, drop_all, drop_oldest)"
    )
    assert str(capacity.value) == "a ring needs room\n  got:    capacity 0\n  wanted: 1 or more"
