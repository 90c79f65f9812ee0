"""Sources without files: arrays and silence."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.audio import babble

from moshi_pipe.errors import ConfigError, InputError
from moshi_pipe.nodes.array_source import (
    ArrayInput,
    ArraySource,
    SilenceSource,
)
from moshi_pipe.nodes.options import SilenceSourceOptions

if TYPE_CHECKING:
    import numpy.typing as npt

    from moshi_pipe.graph.node import SessionInput, Source


def inputs(source: Source) -> list[SessionInput]:
    async def collect() -> list[SessionInput]:
        found = [item async for item in source.sessions()]
        assert source.num_sessions() == len(found)
        return found

    return asyncio.run(collect())


def read(item: SessionInput) -> npt.NDArray[np.float32]:
    async def collect() -> list[npt.NDArray[np.float32]]:
        return [piece async for piece in item.chunks()]

    return np.concatenate(asyncio.run(collect()), axis=1)


def test_arrays_become_sessions_in_order() -> None:
    arrays = {"b": babble(2.5), "a": np.stack([babble(0.5), babble(0.5, seed=1)])}
    first, second = inputs(ArraySource(arrays, 24_000))
    assert [(item.id, item.meta) for item in (first, second)] == [
        ("b", {"stem": "b", "index": 0}),
        ("a", {"stem": "a", "index": 1}),
    ]
    assert (first.sample_rate, first.num_samples, first.seed) == (24_000, 60_000, None)
    np.testing.assert_array_equal(read(first)[0], arrays["b"])
    np.testing.assert_array_equal(read(second), arrays["a"])


def test_other_floats_are_converted_and_seeds_kept() -> None:
    item = ArrayInput("x", babble(0.1).astype(np.float64), 16_000, seed=5)
    assert item.seed == 5
    assert read(item).dtype == np.float32
    assert read(ArrayInput("x", [0.0, 0.5], 16_000)).tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize(
    ("pcm", "got"),
    [
        (np.zeros(0), "an array [0] of float64"),
        (np.zeros((2, 0)), "an array [2, 0] of float64"),
        (np.zeros((1, 2, 3)), "an array [1, 2, 3] of float64"),
        (0.5, "an array [] of float64"),
        (np.zeros(10, dtype=np.int16), "an array [10] of int16"),
        (np.zeros((24_000, 2)), "24000 channels of 2 samples"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(pcm: Any, got: str) -> None:
    with pytest.raises(InputError) as caught:
        ArraySource({"talk": pcm}, 24_000)
    assert caught.value.what == "the audio of session talk cannot be used"
    assert caught.value.got == got


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="has no sample rate"):
        ArrayInput("x", [0.0], 0)


def test_silence_is_as_long_and_as_often_as_asked() -> None:
    options = SilenceSourceOptions(duration_s=2.51, count=2, sample_rate=16_000)
    first, second = inputs(SilenceSource(options))
    assert [first.id, second.id] == ["silence-0", "silence-1"]
    assert (first.sample_rate, first.num_samples) == (16_000, 40_160)
    pcm_CN = read(second)
    assert pcm_CN.shape == (1, 40_160)
    assert not pcm_CN.any()


@pytest.mark.parametrize("name", ["duration_s", "count", "sample_rate"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_silence_of_no_length_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"source\.{name} must be above zero"):
        SilenceSource(SilenceSourceOptions(**{name: value}))  # type: ignore[arg-type]
