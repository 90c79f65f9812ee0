"""Speech and silence where they are known, and silero's own function beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.speech import RATE, needs_espeak, placed, speech, tone

from moshi_pipe.errors import ConfigError
from moshi_pipe.metrics.activity import (
    Activity,
    ActivityOptions,
    EnergyDetector,
    SileroDetector,
    choose_detector,
    make_detector,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from moshi_pipe.metrics.activity import Detector
    from moshi_pipe.metrics.spans import Span

STEP_S = 0.01


def found(
    detector: Detector,
    pcm_N: npt.NDArray[np.float32],
    chunk: int = 1920,
    options: ActivityOptions | None = None,
) -> list[Span]:
    for at in range(0, pcm_N.size, chunk):
        detector.push(pcm_N[at : at + chunk])
    return detector.finish().spans(options)


def near(spans: list[Span], abs_s: float) -> list[Any]:
    return [pytest.approx(span, abs=abs_s) for span in spans]


def test_steps_become_spans_short_silence_bridged_short_sounds_left_out() -> None:
    active_T = np.zeros(100, dtype=bool)
    for start, end in ((0, 10), (15, 30), (50, 54), (80, 100)):
        active_T[start:end] = True
    options = ActivityOptions(min_silence_s=0.5, min_speech_s=0.5)

    assert Activity(active_T, 0.1, 9.95).spans(options) == [(0, 1), (1.5, 3), (8, 9.95)]


def test_no_step_is_no_speech() -> None:
    assert Activity(np.zeros(0, dtype=bool), 0.1, 0).spans() == []


def test_stretches_are_widened_inside_the_audio() -> None:
    active_T = np.zeros(100, dtype=bool)
    for start, end in ((1, 20), (30, 50), (95, 100)):
        active_T[start:end] = True
    options = ActivityOptions(min_silence_s=0.5, min_speech_s=0, pad_s=0.25)

    spans = Activity(active_T, 0.1, 9.95).spans(options)

    assert spans == near([(0, 2.25), (2.75, 5.25), (9.25, 9.95)], 1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.001], ids=["silent", "noisy"])
def test_loud_is_speech(noise: float) -> None:
    spans = [(0.5, 1.2), (2.0, 3.5), (4.5, 4.7)]
    hiss_N = noise * np.random.default_rng(0).standard_normal(6 * RATE).astype(np.float32)

    heard = found(EnergyDetector(RATE), tone(6, *spans) + hiss_N)

    assert heard == near(spans, STEP_S)


def test_pauses_inside_words_belong_to_speech_and_clicks_do_not() -> None:
    pcm_N = tone(4, (1, 1.5), (1.65, 2), (3, 3.05))

    assert found(EnergyDetector(RATE), pcm_N) == near([(1, 2)], STEP_S)


def test_speech_without_a_pause_is_speech_all_along() -> None:
    assert found(EnergyDetector(RATE), tone(3, (0, 3))) == near([(0, 3)], STEP_S)


@pytest.mark.parametrize("pcm_N", [np.zeros(RATE, np.float32), np.zeros(0, np.float32)])
def test_silence_and_nothing_are_no_speech(pcm_N: npt.NDArray[np.float32]) -> None:
    assert found(EnergyDetector(RATE), pcm_N) == []


@pytest.mark.parametrize("chunk", [1920, 777, 100_000])
def test_any_chunking_gives_the_same(chunk: int) -> None:
    pcm_N = tone(4.4321, (0.3, 1.2), (2, 4.4321))

    heard = found(EnergyDetector(RATE), pcm_N, chunk)

    assert heard == found(EnergyDetector(RATE), pcm_N)
    assert heard[-1][1] == pytest.approx(4.4321, abs=1e-4)


class Loudness:
    """Stands in for silero's model: what is loud is speech."""

    def __call__(self, window_N: Any, sample_rate: int) -> Any:
        import torch

        assert (len(window_N), sample_rate) == (512, 16_000)
        return (window_N.square().mean().sqrt() > 0.05).float() * torch.tensor(0.9)


def test_windows_of_silero_are_32_ms_at_16_khz() -> None:
    spans = [(0.5, 1.5), (2.5, 3.2)]

    heard = found(SileroDetector(RATE, load=Loudness), tone(4, *spans))

    assert heard == near(spans, 0.032)


def test_speech_goes_on_until_well_below_the_threshold() -> None:
    class Script:
        def __init__(self) -> None:
            self.values = iter([0.1, 0.45, 0.55, 0.4, 0.36, 0.34, 0.45, 0.1])

        def __call__(self, window_N: Any, sample_rate: int) -> Any:
            return np.float32(next(self.values))

    options = ActivityOptions(min_silence_s=0, min_speech_s=0)
    detector = SileroDetector(16_000, load=Script)

    assert found(detector, np.zeros(8 * 512, np.float32), options=options) == [(0.064, 0.16)]


@needs_espeak
def test_silero_hears_what_its_own_function_hears() -> None:
    silero_vad = pytest.importorskip("silero_vad")
    import torch

    question_N = speech("Good morning, how are you today?", 16_000)
    answer_N = speech("I am fine, thank you very much.", 16_000)
    pcm_N = placed(9, (1, question_N), (5.5, answer_N), rate=16_000)
    pcm_N += 0.001 * np.random.default_rng(0).standard_normal(pcm_N.size).astype(np.float32)

    options = ActivityOptions(min_silence_s=0.3)  # theirs counts a window less

    heard = found(SileroDetector(16_000), pcm_N, options=options)

    stamps = silero_vad.get_speech_timestamps(
        torch.from_numpy(pcm_N),
        silero_vad.load_silero_vad(onnx=True),
        min_silence_duration_ms=300,
        min_speech_duration_ms=90,
        speech_pad_ms=0,
    )
    theirs = [(stamp["start"] / 16_000, stamp["end"] / 16_000) for stamp in stamps]
    assert heard == near(theirs, 0.033)
    assert heard[0][0] == pytest.approx(1, abs=0.15)
    assert heard[-1][1] == pytest.approx(5.5 + answer_N.size / 16_000, abs=0.3)


def test_the_detector_is_chosen_by_name() -> None:
    assert choose_detector("energy") == "energy"
    assert choose_detector("auto") in ("energy", "silero")
    assert isinstance(make_detector("energy", RATE), EnergyDetector)
    with pytest.raises(ConfigError, match=r"^sink\.metrics\.vad has no such value"):
        choose_detector("loudness")


def test_silero_that_is_not_installed_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moshi_pipe.metrics.activity.find_spec", lambda _: None)

    assert choose_detector("auto") == "energy"
    with pytest.raises(ConfigError, match="pip install 'moshi-pipe\\[eval\\]'"):
        choose_detector("silero")
