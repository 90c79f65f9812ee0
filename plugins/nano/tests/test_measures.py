"""What the measurements count, and what the pictures show."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from moshi_pipe_nano.app import run_stage
from moshi_pipe_nano.live import Answer, loud_blocks, onset_after, spoke_between, spoken_part
from moshi_pipe_nano.options import STAGES, Options, parse_options
from moshi_pipe_nano.recognise import grammar, word_errors

from moshi_pipe.errors import ConfigError


def tone(
    start_s: float, end_s: float, length_s: float
) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    time_s = np.arange(round(length_s * 24_000)) / 24_000
    inside = (time_s >= start_s) & (time_s < end_s)
    return (0.2 * np.sin(2 * np.pi * 200 * time_s) * inside).astype(np.float32)


def test_the_onset_is_where_sound_begins_after_a_time() -> None:
    pcm = tone(1.0, 1.5, 3.0)
    assert onset_after(pcm, 0.5) == pytest.approx(1.0, abs=0.021)
    assert onset_after(pcm, 2.0) is None
    assert loud_blocks(pcm).sum() == pytest.approx(25, abs=1)


def test_speech_within_a_span_is_noticed() -> None:
    answer = Answer(pcm=tone(1.0, 1.5, 3.0))
    assert spoke_between(answer, 0.8, 1.2)
    assert not spoke_between(answer, 0.0, 0.9)


def test_what_is_said_is_cut_out_of_the_silence_around_it() -> None:
    assert len(spoken_part(tone(1.0, 1.5, 3.0))) / 24_000 == pytest.approx(0.7, abs=0.05)
    assert len(spoken_part(np.zeros(24_000, np.float32))) == 0


@pytest.mark.parametrize(
    ("wanted", "said", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a b", "a x b y", 2), ("a", "", 1)],
)
def test_word_errors_are_the_least_changes(wanted: str, said: str, errors: int) -> None:
    assert word_errors(wanted.split(), said.split()) == errors


def test_the_grammar_knows_every_form_of_the_answers() -> None:
    text = grammar()
    for form in ("plus", "comes after", "nice to meet you", "the <noun> is <colour>"):
        assert form in text


def test_unknown_options_and_stages_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown option"):
        parse_options(["lm.width=3"])
    with pytest.raises(ConfigError, match="another type"):
        parse_options(["lm.dim=wide"])
    with pytest.raises(ConfigError, match="unknown stage"):
        run_stage(Options(stage="train"))
    assert parse_options(["stage=lm", "lm.dim=64"]).lm.dim == 64


def test_the_config_says_what_the_options_say() -> None:
    yaml = pytest.importorskip("yaml")
    import moshi_pipe_nano

    conf = Path(moshi_pipe_nano.__file__).parent / "conf" / "nano.yaml"
    text = conf.read_text()
    found, options = yaml.safe_load(text), Options()
    for group in ("codec", "data", "lm"):
        assert found[group] == {k: v for k, v in vars(getattr(options, group)).items()}
    assert set(STAGES) <= set(text.replace(",", " ").replace("(", " ").split())


def test_pictures_are_drawn_of_journals(tmp_path: Path) -> None:
    rows = [{"step": 50 * i, "text": 2.0 / i, "text_right": 1 - 1 / i} for i in range(1, 5)]
    (tmp_path / "lm.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run_stage(Options(stage="plots", out=str(tmp_path)))
    for name in ("lm-loss.svg", "lm-right.svg"):
        root = ElementTree.parse(tmp_path / name).getroot()
        lines = [e for e in root.iter() if e.tag.endswith("polyline")]
        assert len(lines) == 1


def test_a_figure_beneath_its_floor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    bench = pytest.importorskip("bench_nano")

    assert bench.above("right", 0.9)
    assert not bench.above("right", 0.1)
    assert not bench.above("right", None)
    assert bench.above("answer_word_error_rate", 0.0)
    assert not bench.above("answer_word_error_rate", 1.0)
    assert set(bench.FLOORS) < set(bench.TARGETS)
