"""Whole runs of the command on the model in the package, in this process."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file
from support.audio import babble, write_babble
from support.model import RANDOM

import moshi_pipe
from moshi_pipe import assembly
from moshi_pipe.cli import main
from moshi_pipe.compose import load_run
from moshi_pipe.errors import CheckpointError, ConfigError, InputError
from moshi_pipe.models import plan
from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.nodes.file_sink import FileSink
from moshi_pipe.plugins import load_plugins

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "question.wav"
FRAME = 1920
SAMPLING = [RANDOM, "seed=5", "numerics=reference"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> int:
    return main([*SAMPLING, *words])


def samples(path: Path | str) -> np.ndarray:
    pcm, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000
    return np.asarray(pcm)


def read_json(path: Path | str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return loaded


def test_a_recording_becomes_an_answer_a_transcript_and_a_report() -> None:
    assert run(f"source.path={EXAMPLE}") == 0

    answer = samples("moshi-out/question.wav")
    assert np.abs(answer[4 * FRAME :]).max() > 0.001
    lines = Path("moshi-out/question.jsonl").read_text(encoding="utf-8").splitlines()
    words = [json.loads(line) for line in lines]
    assert words
    assert all(word["start_s"] < word["end_s"] for word in words)
    assert Path("moshi-out/question.txt").read_text(encoding="utf-8").strip()
    session = read_json("moshi-out/question.session.json")
    assert session["status"] == "done"
    assert session["latency_ms"] == 160.0
    report = read_json("moshi-out/run.json")
    assert report["frames"] == 60
    assert report["seed"] == 5
    assert {"moshi-pipe", "torch", "python"} <= set(report["versions"])
    assert {node["name"] for node in report["nodes"]} == {"encode", "lm", "decode"}
    assert report["numerics"] == "reference"
    assert report["timing"]["overhead"]["count"] == 60
    assert "path: " in Path("moshi-out/config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["numerics=reference"], "reference"),
        (
            ["numerics=fast", "kv_dtype=int8", "cuda_kernels=triton"],
            "fast, keys and values in int8",
        ),
        (["graph=codec"], None),
    ],
)
def test_the_report_names_what_is_not_exact(words: list[str], said: str | None) -> None:
    assert run(f"source.path={EXAMPLE}", "sink=[]", "device=cpu", *words) == 0

    assert read_json("moshi-out/run.json")["numerics"] == said


def test_a_run_that_memory_cannot_hold_is_refused_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "free_cpu_bytes", lambda: 100_000_000)
    monkeypatch.setattr(assembly, "open_checkpoint", lambda *given, **named: pytest.fail("opened"))

    assert run("source=silence", "device=cpu") == 6

    assert "does not fit" in capsys.readouterr().err
    assert not Path("moshi-out").exists()


def test_the_same_seed_repeats_bit_for_bit_and_another_does_not(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 1.2)
    for folder, seed in (("one", 5), ("two", 5), ("three", 6)):
        assert main([RANDOM, f"seed={seed}", "source.path=a.wav", f"output_dir={folder}"]) == 0

    assert Path("one/a.wav").read_bytes() == Path("two/a.wav").read_bytes()
    assert Path("one/a.txt").read_bytes() == Path("two/a.txt").read_bytes()
    assert Path("one/a.wav").read_bytes() != Path("three/a.wav").read_bytes()


def test_a_drawn_seed_is_written_down_and_repeats_the_run(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.8)
    assert main([RANDOM, "source.path=a.wav"]) == 0

    assert main(["repeat", "moshi-out"]) == 0

    first, again = Path("moshi-out/a.wav"), Path("moshi-out/repeat/a.wav")
    assert first.read_bytes() == again.read_bytes()


def test_the_order_of_files_changes_nothing(tmp_path: Path) -> None:
    names = [write_babble(tmp_path / f"{i}.wav", 0.5 + 0.3 * i, i).name for i in range(6)]
    for folder, order in (("there", names), ("back", names[::-1])):
        lines = "".join(json.dumps({"path": name}) + "\n" for name in order)
        Path(f"{folder}.jsonl").write_text(lines, encoding="utf-8")
        words = [f"source.path={folder}.jsonl", f"output_dir={folder}", "engine.slots=4"]
        assert run(*words) == 0

    for name in names:
        assert Path("there", name).read_bytes() == Path("back", name).read_bytes()


def test_a_file_alone_and_among_others_gives_the_same_result(tmp_path: Path) -> None:
    for i in range(5):
        write_babble(tmp_path / "in" / f"{i}.wav", 0.5 + 0.3 * i, i)
    assert run("source.path=in", "output_dir=all", "engine.slots=4") == 0

    assert run("source.path=in/3.wav", "output_dir=alone", "engine.slots=4") == 0

    assert Path("all/3.wav").read_bytes() == Path("alone/3.wav").read_bytes()
    assert Path("all/3.jsonl").read_bytes() == Path("alone/3.jsonl").read_bytes()


def test_what_is_done_is_skipped_and_what_changed_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        write_babble(tmp_path / "in" / f"{i}.wav", 0.4, i)
    statuses = []
    for change in (
        lambda: None,
        lambda: None,
        lambda: Path("moshi-out/1.wav").unlink(),
        lambda: write_babble(tmp_path / "in" / "0.wav", 0.6, 7),
    ):
        change()
        assert run("source.path=in") == 0
        sessions = read_json("moshi-out/run.json")["sessions"]
        statuses.append([session["status"] for session in sessions])
    assert run("source.path=in", "sampling=greedy") == 0
    greedy = read_json("moshi-out/run.json")["sessions"]
    assert run("source.path=in", "sampling=greedy", "resume=false") == 0
    forced = read_json("moshi-out/run.json")["sessions"]

    assert statuses == [
        ["done", "done"],
        ["skipped", "skipped"],
        ["skipped", "done"],
        ["done", "skipped"],
    ]
    assert [session["status"] for session in greedy] == ["done", "done"]
    assert [session["status"] for session in forced] == ["done", "done"]


def test_codes_lead_back_to_the_sound_of_the_codec_graph(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 1.0)
    assert run("graph=codec", "sink=[file]", "source.path=a.wav", "output_dir=codec") == 0
    assert run("graph=encode", "sink=[codes]", "source.path=a.wav", "output_dir=codes") == 0

    words = ["graph=decode", "source=codes", "source.path=codes/a.safetensors", "sink=[file]"]
    assert run(*words, "output_dir=sound") == 0

    codec, sound = samples("codec/a.wav"), samples("sound/a.wav")
    assert np.array_equal(codec, sound[: len(codec)])


def test_the_python_interface_gives_what_the_command_writes(tmp_path: Path) -> None:
    path = write_babble(tmp_path / "a.wav", 1.2)
    words = [RANDOM, "numerics=reference", "sampling=greedy", "source.path=a.wav", "sink=[codes]"]
    assert main(words) == 0
    written = load_file("moshi-out/a.safetensors")

    model = moshi_pipe.load("embedded", overrides={"numerics": "reference"})
    with model.session(temperature=0.0, text_temperature=0.0) as session:
        frames = list(session.run(path))
    with model.session(temperature=0.0, text_temperature=0.0) as session:
        again = list(session.run(babble(1.2), 24_000))

    assert [frame.index for frame in frames] == list(range(15))
    assert written["codes"].shape[1] == 15
    for frame, column_K, valid in zip(frames, written["codes"].T, written["valid"], strict=True):
        assert (frame.codes is not None) == bool(valid)
        if frame.codes is not None:
            assert np.array_equal(frame.codes, column_K)
    assert "".join(frame.text for frame in frames)
    assert [frame.token for frame in again] == [frame.token for frame in frames]


def test_integers_are_no_audio() -> None:
    with (
        moshi_pipe.load("embedded").session(seed=1) as session,
        pytest.raises(InputError, match=r"an array \[4000\] of int16\n  wanted: floats in"),
    ):
        list(session.run(np.zeros(4000, np.int16), 24_000))


def test_a_model_folder_that_is_not_there_is_called_a_folder() -> None:
    with pytest.raises(CheckpointError, match=r"^there is no model folder .*nope"):
        moshi_pipe.load("./nope")


def test_feeding_frames_by_hand_is_checked() -> None:
    model = moshi_pipe.load("embedded")
    with model.session(seed=1) as session:
        given = session.feed(np.zeros(model.frame_size, np.float32))
        assert given.index == 0
        with pytest.raises(InputError, match=r"got: +an array \[7\]"):
            session.feed(np.zeros(7, np.float32))
        with pytest.raises(InputError, match="NaN or infinity"):
            session.feed(np.full(model.frame_size, np.nan, np.float32))
    with pytest.raises(ConfigError, match="no setting 'temprature'"):
        model.session(temprature=0.5)


def test_one_bad_file_fails_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        write_babble(tmp_path / "in" / f"{i}.wav", 0.4, i)
    Path("in/1.wav").write_text("this is no sound")

    assert run("source.path=in", "engine.slots=4") == InputError.exit_code

    sessions = read_json("moshi-out/run.json")["sessions"]
    assert [session["status"] for session in sessions] == ["done", "failed", "done"]
    assert "1.wav" in sessions[1]["error"]
    assert not Path("moshi-out/1.wav").exists()
    assert "1.wav" in "".join(capsys.readouterr())


def test_a_single_bad_file_says_so_with_the_code_of_inputs() -> None:
    Path("a.wav").write_text("this is no sound")

    assert run("source.path=a.wav") == 3


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(f"source.path={EXAMPLE}", "device=cuda:7") == 6

    assert "cuda:7" in capsys.readouterr().err
    assert not Path("moshi-out/question.wav").exists()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_checkpoint(folder, preset="tiny", seed=3, dtype="float32")
    return folder


def damage(source: Path, folder: Path, name: str, value: Any) -> None:
    """Copy a checkpoint with one tensor of its language model replaced."""
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = load(path)
    tensors[name] = value(tensors[name])
    save_file(tensors, path)


def test_weights_that_are_not_numbers_are_named_and_nothing_is_played(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_babble(tmp_path / "a.wav", 0.5)
    damage(tiny, tmp_path / "nan", "out_norm.alpha", lambda x: x * float("nan"))

    code = run("model=local", "model.path=nan", "source.path=a.wav")

    shown = capsys.readouterr().err
    assert code in (5, 7)
    assert "finite" in shown or "NaN" in shown


def test_weights_of_another_shape_are_listed(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(tiny, tmp_path / "cut", "out_norm.alpha", lambda x: x[..., :5].contiguous())

    assert run("model=local", "model.path=cut", f"source.path={EXAMPLE}") == 5

    assert "out_norm.alpha" in capsys.readouterr().err


BAD_GRAPHS = {
    "unknown": ("nodes: {encode: {kind: codec.encoed}}", "codec.encode"),
    "cycle": (
        "nodes: {one: {kind: codec.encode}, two: {kind: codec.decode}}\n"
        "inputs: [user_audio]\n"
        "links: [two.audio -> one.audio, one.codes -> two.codes]\n"
        "outputs: {audio: two.audio}",
        "cycle",
    ),
    "mismatch": (
        "nodes: {encode: {kind: codec.encode}, lm: {kind: lm}, decode: {kind: codec.decode}}\n"
        "inputs: [user_audio]\n"
        "links:\n- user_audio -> encode.audio\n- encode.codes -> lm.user_codes\n"
        "- lm.text -> decode.codes\n"
        "outputs: {audio: decode.audio, text: lm.text}",
        "lm.text",
    ),
}


@pytest.mark.parametrize("name", BAD_GRAPHS)
def test_a_wrong_graph_is_refused_before_any_weight_is_loaded(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text, told = BAD_GRAPHS[name]
    (tmp_path / "conf" / "graph").mkdir(parents=True)
    (tmp_path / "conf" / "graph" / "mine.yaml").write_text(f"name: mine\n{text}\n")
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")

    words = ["--config-dir", "conf", "graph=mine", "model=local", "model.path=model"]
    assert run(*words, f"source.path={EXAMPLE}") == 2

    assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["stt", "hibiki"])
def test_models_of_other_kinds_run(tmp_path: Path, kind: str) -> None:
    make_checkpoint(tmp_path / kind, preset="tiny", kind=kind, seed=3, dtype="float32")
    write_babble(tmp_path / "a.wav", 1.0)
    graph = ["graph=transcribe", "sink=[transcript]"] if kind == "stt" else []

    assert (
        run("model=local", f"model.path={kind}", "source.path=a.wav", "max_tail_s=2", *graph) == 0
    )

    session = read_json("moshi-out/a.session.json")
    if kind == "stt":
        assert session["audio_s"] > 1.0 + 1.0
        assert Path("moshi-out/a.jsonl").exists()
    else:
        assert 1.0 < session["audio_s"] <= 1.04 + 2.08
        assert session["settings"]["conditions"]["description"] == "very_good"
        assert session["settings"]["end_on_text"] is not None


def test_stereo_has_the_model_on_the_left_and_the_user_on_the_right(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.8)

    assert run("source.path=a.wav", "sink=[file]", "sink.file.stereo=true", "tail_s=0.4") == 0

    both = samples("moshi-out/a.wav")
    assert both.shape == (15 * FRAME, 2)
    np.testing.assert_allclose(both[: 10 * FRAME, 1], babble(0.8), atol=1e-4)
    assert not both[10 * FRAME :, 1].any()


def test_a_multirun_repeats_with_each_value(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)

    assert main(["-m", RANDOM, "source.path=a.wav", "seed=1,2"]) == 0

    reports = [read_json(f"moshi-out/{i}/run.json") for i in range(2)]
    assert [report["seed"] for report in reports] == [1, 2]
    assert all(Path(f"moshi-out/{i}/a.wav").exists() for i in range(2))


def test_an_answer_is_as_long_as_its_recording(tmp_path: Path) -> None:
    for name, rate, seconds in (("a", 24_000, 0.777), ("b", 44_100, 1.2345)):
        write_babble(tmp_path / "in" / f"{name}.wav", seconds, 1, rate)

    assert run("source.path=in", "sink=[file]", "tail_s=0.5", "engine.slots=4") == 0

    assert len(samples("moshi-out/a.wav")) == round(1.277 * 24_000)
    assert abs(len(samples("moshi-out/b.wav")) - round(1.7345 * 24_000)) <= 1
    assert read_json("moshi-out/a.session.json")["audio_s"] == pytest.approx(1.277)


def test_a_recording_that_was_cut_off_is_told(tmp_path: Path) -> None:
    path = write_babble(tmp_path / "a.wav", 1.0)
    path.write_bytes(path.read_bytes()[:30_000])

    assert run("source.path=a.wav", "sink=[file]") == 0

    (session,) = read_json("moshi-out/run.json")["sessions"]
    assert session["status"] == "done"
    assert "is cut off: only the first 0.6 s of 1.0 s were read" in session["warnings"][0]


def test_a_recording_is_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_babble(tmp_path / "a.wav", 0.4)
    before = path.read_bytes()

    assert run("source.path=a.wav", "output_dir=.") == 4

    assert path.read_bytes() == before
    assert "would be written over it" in capsys.readouterr().err


def test_results_of_another_recording_of_the_same_name_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        write_babble(tmp_path / folder / "a.wav", 0.4)
    assert run("source.path=one/a.wav") == 0
    before, report = Path("moshi-out/a.wav").read_bytes(), Path("moshi-out/run.json").read_bytes()

    assert run("source.path=two/a.wav") == 4

    said = capsys.readouterr().err
    assert "would be written over those of" in said
    assert str(tmp_path / "one" / "a.wav") in said
    assert Path("moshi-out/a.wav").read_bytes() == before
    assert Path("moshi-out/run.json").read_bytes() == report


def test_two_sessions_cannot_write_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_babble(tmp_path / "in" / f"{name}.wav", 0.2)

    assert run("source.path=in", "sink=[file]", "sink.file.path=x") == 2

    said = capsys.readouterr().err
    assert "two sessions would write" in said
    assert "a and b" in said


@pytest.mark.parametrize(("graph", "fits"), [("codec", "file"), ("transcribe", "transcript")])
def test_a_sink_that_does_not_fit_the_graph_gives_those_that_do(
    capsys: pytest.CaptureFixture[str], graph: str, fits: str
) -> None:
    assert run(f"source.path={EXAMPLE}", f"graph={graph}") == 2

    assert f"leave this sink out: sink=[{fits}], or" in capsys.readouterr().err


def test_results_that_another_run_began_to_overwrite_are_made_anew(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert run("source.path=a.wav") == 0
    good = Path("moshi-out/a.wav").read_bytes()
    record = Path("moshi-out/a.session.json")
    told = record.read_text(encoding="utf-8")

    assert main([RANDOM, "source.path=a.wav", "seed=6", "device=cpu", "sampling=greedy"]) == 0
    assert record.read_text(encoding="utf-8") != told
    assert run("source.path=a.wav") == 0

    assert Path("moshi-out/a.wav").read_bytes() == good


def test_what_tells_of_overwritten_results_goes_before_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert run("source.path=a.wav", "sink=[file]") == 0
    metrics = Path("moshi-out/a.metrics.json")
    metrics.write_text("{}", encoding="utf-8")
    told: list[set[str]] = []
    opens = FileSink.open

    def there() -> set[str]:
        return {path.name for path in Path("moshi-out").glob("*.json")}

    async def look(self: FileSink, *given: Any) -> None:
        told.append(there())
        await opens(self, *given)

    monkeypatch.setattr(FileSink, "open", look)
    assert run("source.path=a.wav", "sink=[file]") == 0
    assert told == []  # nothing was made
    assert {"run.json", metrics.name} <= there()

    assert run("source.path=a.wav", "sink=[file]", "resume=false") == 0

    assert told == [set()]
    assert there() == {"run.json", "a.session.json"}


def test_a_changed_model_or_part_of_a_recording_makes_results_anew(
    tiny: Path, tmp_path: Path
) -> None:
    write_babble(tmp_path / "a.wav", 1.0)
    shutil.copytree(tiny, tmp_path / "model")

    def statuses(**line: Any) -> str:
        Path("list.jsonl").write_text(json.dumps({"path": "a.wav", **line}) + "\n")
        words = ["source.path=list.jsonl", "model=local", "model.path=model", "sink=[file]"]
        assert run(*words) == 0
        (session,) = read_json("moshi-out/run.json")["sessions"]
        return str(session["status"])

    assert [statuses(), statuses()] == ["done", "skipped"]
    assert [statuses(start_s=0.4), statuses(start_s=0.4)] == ["done", "skipped"]
    assert [statuses(seed=9), statuses(seed=9)] == ["done", "skipped"]
    make_checkpoint(tmp_path / "model", preset="tiny", seed=4, dtype="float32")
    assert statuses(seed=9) == "done"


def test_a_resumed_run_keeps_the_seed_that_was_drawn(tmp_path: Path) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    seeds = []
    for _ in range(2):
        assert main([RANDOM, "source.path=a.wav", "sink=[file]"]) == 0
        seeds.append(read_json("moshi-out/run.json")["seed"])

    assert seeds[0] == seeds[1]
    assert f"seed: {seeds[0]}" in Path("moshi-out/config.yaml").read_text()


def test_a_session_called_run_has_a_record_of_its_own(tmp_path: Path) -> None:
    write_babble(tmp_path / "run.wav", 0.4)

    statuses = []
    for _ in range(2):
        assert run("source.path=run.wav", "sink=[file]") == 0
        (session,) = read_json("moshi-out/run.json")["sessions"]
        statuses.append(session["status"])

    assert statuses == ["done", "skipped"]


def test_a_run_is_repeated_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_babble(tmp_path / "a.wav", 0.4)
    assert run("source.path=a.wav", "sink=[file]") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert main(["repeat", "../moshi-out"]) == 0
    again = (tmp_path / "moshi-out/repeat/a.wav").stat().st_mtime_ns
    assert main(["repeat", "../moshi-out"]) == 0

    assert (tmp_path / "moshi-out/repeat/a.wav").stat().st_mtime_ns > again
    first = (tmp_path / "moshi-out/a.wav").read_bytes()
    assert (tmp_path / "moshi-out/repeat/a.wav").read_bytes() == first
    capsys.readouterr()
    assert main(["repeat", "../moshi-out", "model=moshiko"]) == 2
    assert "a repeated run keeps its model" in capsys.readouterr().err
    assert main(["repeat", "../moshi-out", "seed=abc"]) == 2
    assert "abc" in capsys.readouterr().err


def test_a_translation_ends_at_its_end_token_whatever_the_sinks_take(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hibiki", preset="tiny", kind="hibiki", seed=3, dtype="float32")
    write_babble(tmp_path / "a.wav", 0.4)
    words = ["model=local", "model.path=hibiki", "source.path=a.wav", "max_tail_s=4"]
    assert run(*words, "output_dir=with", "sink=[file,transcript]") == 0

    assert run(*words, "output_dir=without", "sink=[file]") == 0

    with_text, without = samples("with/a.wav"), samples("without/a.wav")
    assert np.array_equal(with_text, without)


def test_a_model_that_never_falls_silent_speaks_on_until_the_cap(tmp_path: Path) -> None:
    words = ("model=embedded", "end_on_silence_s=1", "max_tail_s=0.8")

    assert run(f"source.path={EXAMPLE}", *words, "sink=[file]") == 0

    assert read_json("moshi-out/run.json")["frames"] == 60 + 10
    assert samples("moshi-out/question.wav").size == 70 * FRAME


def test_a_greeting_is_left_out_and_its_length_is_told(tmp_path: Path) -> None:
    words = (f"source.path={EXAMPLE}", "model=embedded", "drop_until_pad_s=1")

    assert run(*words, "sink=[file,transcript,codes]") == 0

    assert not samples("moshi-out/question.wav").any()  # it never stops greeting
    assert Path("moshi-out/question.jsonl").read_text("utf-8") == ""
    assert not load_file("moshi-out/question.safetensors")["valid"].any()
    assert read_json("moshi-out/question.session.json")["greeting_s"] == pytest.approx(4.8, abs=0.2)


@pytest.mark.parametrize("key", ["end_on_silence_s", "drop_until_pad_s"])
def test_a_graph_that_writes_nothing_has_no_end_of_an_answer(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"source.path={EXAMPLE}", "graph=codec", "sink=[file]", f"{key}=1") != 0

    assert f"{key} needs a model that writes down what it says" in capsys.readouterr().err


def test_a_live_session_ends_with_its_input() -> None:
    plugins = load_plugins()
    words = ["model=embedded", "end_on_silence_s=1", "source=silence"]
    config = load_run(words, plugins.nodes)
    made = assembly.assemble(config.model, config.graph, config.backend, plugins)

    assert made.settings(config).end_on_padding == 12
    assert made.settings(config, live=True).end_on_padding is None


def test_a_model_of_speech_to_text_pads_only_where_it_listens(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "stt", preset="tiny", kind="stt", seed=3, dtype="float32")
    write_babble(tmp_path / "a.wav", 0.8)

    words = ["model=local", "model.path=stt", "source.path=a.wav", "graph=codec", "sink=[file]"]
    assert run(*words) == 0

    assert len(samples("moshi-out/a.wav")) == round(0.8 * 24_000)


def test_what_is_given_to_load_holds_for_its_sessions(tmp_path: Path) -> None:
    (tmp_path / "embedded").mkdir()
    overrides = {"sampling": {"temperature": 0.0}, "first_frame": "none", "tail_s": 0.16}
    model = moshi_pipe.load("embedded", overrides=overrides)

    with model.session(text_temperature=0.0) as session:
        frames = list(session.run(babble(0.4)))

        assert session.settings.temperature == 0.0
        assert session.settings.first_frame == "none"
    assert len(frames) == 7
    with pytest.raises(ConfigError, match="no use for 'sink'"):
        moshi_pipe.load(overrides={"sink": "file"})


def test_codes_that_the_model_does_not_know_cannot_be_fed() -> None:
    model = moshi_pipe.load("embedded", graph="decode")
    with model.session() as session:
        assert session.feed(np.zeros(8, np.int64)).audio is not None
        with pytest.raises(InputError, match="0 to 255"):
            session.feed(np.full(8, 256))


def test_a_model_that_only_writes_is_told_from_one_that_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint(tmp_path / "stt", preset="tiny", kind="stt")

    assert run("source=silence", "model=local", f"model.path={tmp_path / 'stt'}") == 2

    said = capsys.readouterr().err
    assert "model 'local' writes text and does not speak" in said
    assert "graph=transcribe" in said


@pytest.mark.parametrize(
    ("word", "code", "what"),
    [
        ("source.path=", 3, "the path of the input is empty"),
        ("output_dir=", 2, "output_dir is empty"),
    ],
)
def test_an_empty_path_is_no_folder(
    capsys: pytest.CaptureFixture[str], word: str, code: int, what: str
) -> None:
    write_babble(Path("a.wav"), seconds=0.3)

    assert run("source.path=a.wav", word) == code

    assert what in capsys.readouterr().err
    assert [path.name for path in Path().iterdir() if path.suffix == ".wav"] == ["a.wav"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metric=codec"], "metric=codec compares what goes into a codec .*\n.*graph 'dialogue'"),
        (["metric=codec", "graph=encode", "sink=[codes]"], "graph 'encode', .*\n.*graph=codec"),
        (["metric=fdb"], "metric=fdb is for samples .*\n.*source=file\n.*choose source=fdb"),
        (["sink=[file,fdb]"], "sink=fdb is for samples .*\n.*source=file\n.*choose source=fdb"),
    ],
)
def test_a_measure_that_no_session_could_satisfy_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    monkeypatch.setattr(assembly, "open_checkpoint", None)

    assert run(f"source.path={EXAMPLE}", *words) == 2

    assert re.search(said, capsys.readouterr().err)
    assert not Path("moshi-out").exists()


def test_a_metric_that_the_graph_has_nothing_for_is_told_with_the_session(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(f"source.path={EXAMPLE}", "graph=encode", "sink=[codes]", "metric=words") == 0

    said = "metric=words measured nothing: the graph makes none of text, user_text"
    assert f"warning: {said}" in capsys.readouterr().err
    report = json.loads(Path("moshi-out/run.json").read_text())
    assert report["sessions"][0]["warnings"] == [said]
