"""A second model that writes down what the user says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.audio import write_babble

from moshi_pipe.cli import main
from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.graph import Ports
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.models.spec import CodecSpec, MimiSpec
from moshi_pipe.nodes.options import SttOptions
from moshi_pipe.nodes.stt_node import SttNode
from moshi_pipe.testing import check_node

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = ["seed=5", "model=embedded", "device=cpu"]


@pytest.fixture(scope="module")
def stt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "stt"
    make_checkpoint(folder, preset="tiny", kind="stt", seed=3, dtype="float32")
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def converse(stt: Path, *words: str) -> int:
    chosen = f"graph.nodes.stt.options.path={stt}"
    return main([*WORDS, "graph=dialogue_stt", chosen, *words])


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def test_it_hears_what_a_run_of_its_own_hears(stt: Path, tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.8)
    sinks = "sink=[file,transcript,user_transcript]"

    assert converse(stt, "source.path=a.wav", sinks, "output_dir=both") == 0
    alone = ["model=local", f"model.path={stt}", "graph=transcribe", "sink=[transcript]"]
    assert main(["seed=5", "device=cpu", *alone, "source.path=a.wav", "output_dir=alone"]) == 0

    heard = lines("both/a.user.jsonl")
    assert heard == lines("alone/a.jsonl")
    assert heard
    assert Path("both/a.jsonl").read_text("utf-8") != Path("both/a.user.jsonl").read_text("utf-8")


def test_the_answer_is_that_of_a_conversation_without_it(stt: Path, tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.8)
    delay_s = json.loads((stt / "config.json").read_text())["stt_config"]["audio_delay_seconds"]

    assert converse(stt, "source.path=a.wav", "sink=[file]", "output_dir=both") == 0
    tail = f"tail_s={delay_s + 1}"
    assert main([*WORDS, "source.path=a.wav", "sink=[file]", tail, "output_dir=plain"]) == 0

    assert Path("both/a.wav").read_bytes() == Path("plain/a.wav").read_bytes()


def test_sessions_side_by_side_are_heard_as_alone(stt: Path, tmp_path: Path) -> None:
    for i, seconds in enumerate((0.4, 0.8, 0.3)):
        write_babble(tmp_path / "talks" / f"{i}.wav", seconds)
    sinks = "sink=[user_transcript]"

    assert converse(stt, "source.path=talks", sinks, "engine.slots=4", "output_dir=many") == 0
    one = ("source.path=talks/1.wav", sinks, "engine.slots=4", "output_dir=one")
    assert converse(stt, *one) == 0

    assert lines("many/1.user.jsonl") == lines("one/1.user.jsonl")


def test_what_the_user_says_is_measured(stt: Path, tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.8)

    words = ("source.path=a.wav", "metric=words", "sink=[file,user_transcript]")
    assert converse(stt, *words, "sink.metrics.vad=energy") == 0

    record = json.loads(Path("moshi-out/a.metrics.json").read_text())
    heard = lines("moshi-out/a.user.jsonl")
    assert [text for _, _, text in record["words"]["user"]] == [word["text"] for word in heard]
    assert record["metrics"]["user_words"]["value"] == len(heard)
    assert record["words"]["model"]


def test_changed_weights_make_results_anew(stt: Path, tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.2)
    other = tmp_path / "other"
    make_checkpoint(other, preset="tiny", kind="stt", seed=3, dtype="float32")

    def status() -> str:
        assert converse(other, "source.path=a.wav", "sink=[user_transcript]") == 0
        report = json.loads(Path("moshi-out/run.json").read_text())
        return str(report["sessions"][0]["status"])

    assert (status(), status()) == ("done", "skipped")
    make_checkpoint(other, preset="tiny", kind="stt", seed=4, dtype="float32")
    assert status() == "done"


def codec(**changes: Any) -> CodecSpec:
    return replace(MimiSpec().codec, **changes)


def test_a_model_that_speaks_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "moshi", preset="tiny", seed=3)

    with pytest.raises(ConfigError, match="writes down nothing that it hears"):
        SttNode(SttOptions(path=str(tmp_path / "moshi"))).fit(codec())


def test_a_model_of_other_frames_is_refused(stt: Path) -> None:
    with pytest.raises(ConfigError, match="hears other frames"):
        SttNode(SttOptions(path=str(stt))).fit(codec(sample_rate=48_000))


def test_the_released_model_is_checked_without_a_network() -> None:
    node = SttNode(SttOptions())

    node.fit(codec())

    ports = Ports(node.inputs, node.outputs)
    assert list(ports.inputs) == ["audio"]
    assert list(ports.outputs) == ["text"]


def test_a_wrong_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words: Sequence[str] = ["source=silence", "graph=dialogue_stt"]

    assert main([*WORDS, *words, "+graph.nodes.stt.options.pth=x"]) != 0

    assert "graph.nodes.stt.options.pth is unknown" in capsys.readouterr().err


def test_a_graph_without_it_has_no_words_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "source=silence", "sink=[user_transcript]"]) != 0

    assert "needs the output 'user_text'" in capsys.readouterr().err


def test_it_keeps_the_promises_of_a_node(stt: Path) -> None:
    def make() -> SttNode:
        return SttNode(SttOptions(path=str(stt), device="cpu"))

    check_node(make, codec=codec(), num_slots=4, frames=3)
