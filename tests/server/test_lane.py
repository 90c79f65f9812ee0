import os
import subprocess
import sys
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moshi_pipe.server.lane import (
    CAPACITY,
    MAX_TEXT_BYTES,
    Down,
    LaneError,
    Lanes,
    Up,
    make_memory,
    map_memory,
)

N = 4


def lanes(count: int = 2) -> Lanes:
    return Lanes(bytearray(Lanes.size(count, N)), count, N)


@given(st.lists(st.booleans(), max_size=300))
def test_what_is_put_is_taken_in_order_and_never_more_than_there_is_room_for(
    puts: list[bool],
) -> None:
    both = lanes()
    writer, reader = both.up_writer(1), both.up_reader(1)
    expected: deque[int] = deque()
    for put in puts:
        assert writer.room(reader.num_taken) == CAPACITY - len(expected)
        assert reader.waiting(writer.num_put) == len(expected)
        if put and writer.room(reader.num_taken):
            number = writer.num_put
            assert writer.put(Up(number, np.full(N, number, np.float32))) == number + 1
            expected.append(number)
        elif not put:
            taken = reader.take(writer.num_put)
            if taken is None:
                assert not expected
            else:
                assert taken.delivered_ns == taken.pcm_N[0] == expected.popleft()


def test_an_answer_arrives_as_it_was_sent() -> None:
    both = lanes()
    writer, reader = both.down_writer(0), both.down_reader(0)
    sent = Down(7, 123, np.arange(N, dtype=np.float32), " é", 3, 4)
    taken = reader.take(writer.put(sent))
    assert taken is not None
    assert taken.audio_N is not None
    np.testing.assert_array_equal(taken.audio_N, sent.audio_N)
    assert (taken.frame, taken.delivered_ns, taken.text) == (7, 123, " é")
    assert (taken.dropped, taken.late) == (3, 4)


def test_an_answer_may_have_neither_audio_nor_text() -> None:
    both = lanes()
    assert both.down_reader(0).take(both.down_writer(0).put(Down(0, 0))) == Down(0, 0)


def test_what_was_taken_stays_as_it_is_when_its_row_is_used_again() -> None:
    both = lanes()
    writer, reader = both.up_writer(0), both.up_reader(0)
    first = reader.take(writer.put(Up(0, np.zeros(N, np.float32))))
    for _ in range(CAPACITY):
        reader.take(writer.put(Up(1, np.ones(N, np.float32))))
    assert first is not None
    assert not first.pcm_N.any()


def test_lanes_do_not_touch_each_other() -> None:
    both = lanes(3)
    for _ in range(CAPACITY):
        both.up_writer(1).put(Up(1, np.ones(N, np.float32)))
        both.down_writer(1).put(Down(1, 1, np.ones(N, np.float32), "x" * 120))
    for lane in (0, 2):
        up, down = both.up_reader(lane).take(1), both.down_reader(lane).take(1)
        assert up is not None
        assert not up.pcm_N.any()
        assert down == Down(0, 0)


@given(st.text(max_size=200))
def test_text_that_is_too_long_is_cut_between_characters(text: str) -> None:
    both = lanes()
    taken = both.down_reader(0).take(both.down_writer(0).put(Down(0, 0, None, text)))
    assert taken is not None
    assert text.startswith(taken.text)
    assert len(taken.text.encode()) <= MAX_TEXT_BYTES
    if len(text.encode()) > MAX_TEXT_BYTES:
        assert len(taken.text.encode()) > MAX_TEXT_BYTES - 4
    else:
        assert taken.text == text


def test_counts_that_cannot_be_are_refused() -> None:
    both = lanes()
    with pytest.raises(LaneError, match=r"^1 rows were taken of 0 that were put$"):
        both.up_writer(0).room(1)
    with pytest.raises(LaneError, match=r"^27 rows were put where 0 were taken$"):
        both.up_reader(0).take(CAPACITY + 1)


def test_another_process_sees_the_same_memory() -> None:
    size = Lanes.size(1, N)
    descriptor = make_memory(size)
    try:
        mine = Lanes(map_memory(descriptor), 1, N)
        program = (
            "import sys, numpy as np\n"
            "from moshi_pipe.server.lane import Lanes, Up, map_memory\n"
            f"lanes = Lanes(map_memory(int(sys.argv[1])), 1, {N})\n"
            f"lanes.up_writer(0).put(Up(5, np.full({N}, 0.5, np.float32)))\n"
        )
        subprocess.run(
            [sys.executable, "-c", program, str(descriptor)],
            pass_fds=[descriptor],
            check=True,
            timeout=60,
        )
    finally:
        os.close(descriptor)
    taken = mine.up_reader(0).take(1)
    assert taken is not None
    assert taken.delivered_ns == 5
    assert (taken.pcm_N == 0.5).all()
