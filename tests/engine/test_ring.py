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
            assert accepted == (not is_full or policy == "drop_oldest")
            dropped += is_full and policy != "block"
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


def test_what_is_put_is_copied() -> None:
    ring = make_ring()
    value = np.ones(2, np.float32)
    ring.put(0, {"a": value})
    value[:] = 5
    out = np.zeros(2, np.float32)

    assert ring.take_into("a", out) == 0
    assert out.tolist() == [1, 1]
    assert ring.take_into("a", out) is None


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
    assert ring.counters.longest <= 4


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'block'"):
        make_ring("blok")
    with pytest.raises(ConfigError, match="capacity 0"):
        make_ring(capacity=0)
