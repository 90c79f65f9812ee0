"""The command line: what reaches the runner, what a person reads, what the shell gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.model import RANDOM

from moshi_pipe.cli import main
from moshi_pipe.errors import BackendError, CheckpointError, InputError, OutputError, SessionError

if TYPE_CHECKING:
    from support.build import FakeBuild

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_no_words_show_one_screen_with_five_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0

    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 24
    assert max(map(len, shown.splitlines())) <= 100
    assert sum(line.startswith("  moshi-pipe") for line in shown.splitlines()) == 5


def test_help_names_every_group_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    shown = capsys.readouterr().out
    for word in ("source=", "sink=", "model=", "graph=", "engine=", "output_dir=", "plan", "130"):
        assert word in shown
    assert "file*" in shown


def test_help_of_a_group_shows_its_keys_with_units(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help", "source"]) == 0

    shown = capsys.readouterr().out
    assert "source.path=???" in shown
    assert "source.sample_rate=24000" in shown
    assert "Hz" in shown
    assert "node" not in shown.split()


def test_help_of_an_unknown_group_gives_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help", "sorce"]) == 2

    assert "did you mean 'source'?" in capsys.readouterr().err


def test_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0

    assert capsys.readouterr().out.startswith("moshi-pipe ")


def test_plugins_lists_what_is_built_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0

    shown = capsys.readouterr().out
    assert "  source file\n" in shown
    assert "  hook open_lm\n" in shown


def test_a_run_gets_typed_options(build: FakeBuild, tmp_path: Path) -> None:
    assert main(["source.path=a.wav", "sink=[file]", "engine.slots=4", "seed=7"]) == 0

    (config,) = build.configs
    assert config.source.options.path == "a.wav"
    assert [sink.label for sink in config.sinks] == ["file"]
    assert config.engine.slots == 4
    assert config.seed == 7
    assert config.output_dir == tmp_path / "moshi-out"


def test_a_run_makes_no_folder_and_stays_where_it_is(build: FakeBuild, tmp_path: Path) -> None:
    main(["source.path=a.wav"])

    assert list(tmp_path.iterdir()) == []


def test_a_list_of_sinks_stays_addressable(build: FakeBuild) -> None:
    words = ["source=silence", "sink=[file,transcript]", "sink.file.format=flac"]

    assert main([*words, "sink.transcript.formats=[srt,vtt]"]) == 0

    file, transcript = build.configs[0].sinks
    assert file.options.format == "flac"
    assert list(transcript.options.formats) == ["srt", "vtt"]


def test_no_sink_at_all_is_a_choice(build: FakeBuild) -> None:
    assert main(["source=silence", "sink=[]"]) == 0

    assert build.configs[0].sinks == ()


def test_an_experiment_changes_several_groups(build: FakeBuild) -> None:
    assert main(["experiment=transcribe", "source.path=a.wav"]) == 0

    (config,) = build.configs
    assert config.model.name == "stt_1b_en_fr"
    assert config.graph["name"] == "transcribe"
    assert [sink.label for sink in config.sinks] == ["transcript"]


def test_open_mappings_take_any_key(build: FakeBuild) -> None:
    words = ["source=silence", "model.overrides.context=750", "conditions={description: good}"]

    assert main(words) == 0

    assert build.configs[0].model.overrides == {"context": 750}
    assert build.configs[0].conditions == {"description": "good"}


LITERALS = [
    "My file (1), été=x.wav",
    "[a].wav",
    "{a}.wav",
    "it's.wav",
    'say "hi".wav',
    "123",
    "1e5",
    "true",
    " leading and trailing ",
    "${oc.env:HOME}.wav",
    "$HOME/a.wav",
    "back\\slash\\",
    "back\\'slash.wav",
    "\\${x}",
    "a=b=c",
    "~/talk.wav",
    "a,b.wav",
    "# no comment",
    "100 %.wav",
    "日本語.wav",
    "a: b",
    "?.wav",
    "talks/*.wav",
]


@pytest.mark.parametrize("text", LITERALS)
def test_a_path_is_taken_literally(build: FakeBuild, text: str) -> None:
    assert main([f"source.path={text}", f"sink.file.path={text}"]) == 0

    assert build.configs[0].source.options.path == text
    assert build.configs[0].sinks[0].options.path == text


@pytest.mark.parametrize("text", LITERALS)
def test_the_written_configuration_gives_the_whole_path(build: FakeBuild, text: str) -> None:
    from omegaconf import OmegaConf

    main([f"source.path={text}"])

    whole = os.path.abspath(os.path.expanduser(text))
    assert OmegaConf.create(build.configs[0].composed).source.path == whole


def test_an_output_folder_with_spaces_is_literal(build: FakeBuild, tmp_path: Path) -> None:
    assert main(["source=silence", "output_dir=My results (2)"]) == 0

    assert build.configs[0].output_dir == tmp_path / "My results (2)"


def test_null_stays_null(build: FakeBuild) -> None:
    assert main(["source=silence", "model.path=null"]) == 0

    assert build.configs[0].model.path is None


def test_a_multirun_runs_each_value_into_a_folder_of_its_own(
    build: FakeBuild, tmp_path: Path
) -> None:
    assert main(["-m", "source.path=My a.wav,b.wav", "seed=1,2"]) == 0

    assert [(c.source.options.path, c.seed) for c in build.configs] == [
        ("My a.wav", 1),
        ("My a.wav", 2),
        ("b.wav", 1),
        ("b.wav", 2),
    ]
    folders = [config.output_dir for config in build.configs]
    assert folders == [tmp_path / "moshi-out" / str(i) for i in range(4)]


def test_a_multirun_takes_an_existing_file_with_a_comma_as_one(
    build: FakeBuild, tmp_path: Path
) -> None:
    (tmp_path / "a,b.wav").touch()

    assert main(["-m", "source.path=a,b.wav"]) == 0

    assert [config.source.options.path for config in build.configs] == ["a,b.wav"]


def test_a_multirun_goes_on_after_a_failed_job(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    build.error = InputError("cannot read a.wav")

    assert main(["-m", "source.path=a.wav,b.wav"]) == 3

    assert len(build.configs) == 2
    assert "[2/2] source.path='b.wav': failed: cannot read a.wav" in capsys.readouterr().err


def test_cfg_job_prints_the_configuration_and_runs_nothing(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["source.path=a b.wav", "--cfg", "job"]) == 0

    assert build.configs == []
    assert "path: a b.wav" in capsys.readouterr().out


def test_info_shows_where_configs_come_from() -> None:
    # In a process of its own: Hydra turns its logging on for good.
    command = [sys.executable, "-m", "moshi_pipe", "--info", "searchpath"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert "file://" in done.stdout + done.stderr


def test_completion_offers_choices_and_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", "moshi-pipe source=si")
    monkeypatch.setenv("COMP_POINT", "20")

    assert main(["-sc", "query=bash"]) == 0

    assert "source=silence" in capsys.readouterr().out


WRONG = [
    (["sourc=file"], "there is no key 'sourc'", "did you mean 'source'?"),
    (["source=fil"], "there is no source 'fil'", "did you mean 'file'?"),
    (["sink=[fle]"], "there is no sink 'fle'", "did you mean 'file'?"),
    (["model=moshi"], "there is no model 'moshi'", "did you mean 'moshiko'?"),
    (["source.pth=x"], "there is no key 'source.pth'", "did you mean 'source.path'?"),
    (["engine.slot=4"], "there is no key 'engine.slot'", "did you mean 'engine.slots'?"),
    (["sink.file.formt=x"], "there is no key 'sink.file.formt'", "'sink.file.format'?"),
    (["+model.rep=x", "source.path=x"], "there is no key 'model.rep'", "did you mean 'repo'?"),
    (["+source.pat=x", "source.path=x"], "source.pat is unknown", "did you mean 'path'?"),
    (["engine.slots=many"], "engine.slots has the wrong type", "a whole number"),
    (["engine.slots=0", "source.path=x"], "engine.slots cannot be 0", "wanted: at least 1"),
    (["dtype=bf16", "source.path=x"], "dtype cannot be 'bf16'", "bfloat16"),
    (["first_frame=x", "source.path=x"], "first_frame cannot be 'x'", "duplicate"),
    (["source=silence", "source.count=x"], "source.count has the wrong type", "whole number"),
    (["source.path=x", "seed=9223372036854775808"], "seed cannot be", "wanted: at most 2^63 - 1"),
    (["source.path=x", "tail_s=inf"], "tail_s cannot be inf", "wanted: a finite number"),
    (["source.path=x", "sink.transcript.formats=srt"], "sink.transcript.formats has", "a list"),
    (["source.path=x", "sink.file.stereo=maybe"], "sink.file.stereo has the", "true or false"),
    (["source.path=x", "graph=null"], "a group cannot be null", "graph=null"),
    (["seed=[1"], "cannot read what was given", "key=value"),
    (["source.path=x", "talk.wav"], "cannot read the word 'talk.wav'", "key=value"),
    (["plugns"], "there is no command 'plugns'", "did you mean 'plugins'?"),
    (["--confg", "job"], "there is no flag '--confg'", "did you mean '--cfg'?"),
    (["plan", "engine.slot=4"], "there is no key 'engine.slot'", "did you mean 'engine.slots'?"),
    (["make-checkpoint"], "make-checkpoint needs one folder", "FOLDER"),
    (["make-checkpoint", "d", "sze=tiny"], "there is no key 'sze'", "did you mean 'size'?"),
]


@pytest.mark.parametrize(("words", "what", "help_text"), WRONG, ids=lambda v: str(v)[:30])
def test_a_mistake_is_named_with_what_was_wanted(
    build: FakeBuild,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    what: str,
    help_text: str,
) -> None:
    assert main(words) == 2

    said = capsys.readouterr().err
    assert said.startswith(f"moshi-pipe: {what}")
    assert help_text in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 8
    assert build.configs == []


def test_a_value_that_must_be_given_is_named_before_anything_runs(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sink=[file]"]) == 2

    assert capsys.readouterr().err == (
        "moshi-pipe: source.path is not set\n  do:     add source.path=VALUE\n"
    )
    assert build.configs == []


def test_several_mistakes_are_listed_together(
    build: FakeBuild, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model=local", "numerics=exact", "tail_s=-1"]) == 2

    said = capsys.readouterr().err
    assert "the configuration has 4 mistakes" in said
    for key in ("model.path", "source.path", "numerics", "tail_s"):
        assert key in said


def test_a_file_given_as_a_command_says_how_to_use_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "talk.wav").touch()

    assert main(["talk.wav"]) == 2

    assert "moshi-pipe source.path=talk.wav" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 3),
        (OutputError("x"), 4),
        (CheckpointError("x"), 5),
        (BackendError("x"), 6),
        (SessionError("x"), 7),
        (ZeroDivisionError("x"), 1),
    ],
    ids=lambda value: str(value),
)
def test_an_error_gives_its_exit_code_and_no_traceback(
    build: FakeBuild, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    build.error = error

    assert main(["source=silence"]) == code

    said = capsys.readouterr().err
    assert "x" in said
    assert "Traceback" not in said
    assert "Error executing job" not in said


def test_verbose_shows_the_traceback(build: FakeBuild, capsys: pytest.CaptureFixture[str]) -> None:
    build.error = InputError("cannot read a.wav")

    assert main(["source=silence", "--verbose"]) == 3

    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_gives_130(build: FakeBuild, capsys: pytest.CaptureFixture[str]) -> None:
    build.error = KeyboardInterrupt()

    assert main(["source=silence"]) == 130

    assert "what was written is kept" in capsys.readouterr().err


def test_the_report_decides_the_exit_code(build: FakeBuild) -> None:
    build.exit_code = 7

    assert main(["source=silence"]) == 7


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["--config-dir=mine"]])
def test_a_graph_of_ones_own_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    (tmp_path / "mine" / "graph").mkdir(parents=True)
    (tmp_path / "mine" / "graph" / "short.yaml").write_text(
        "name: short\nnodes: {encode: {kind: codec.encode}}\ninputs: [user_audio]\n"
        "links: [user_audio -> encode.audio]\noutputs: {codes: encode.codes}\n"
    )

    assert main(["graph", *flag, "graph=short"]) == 0
    assert "encode: codec.encode" in capsys.readouterr().out

    assert main(["graph", "--config-dir", "nowhere", "graph=short"]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_a_broken_graph_is_refused_by_the_command_that_draws_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["graph", "graph.nodes.lm.kind=lmm"]) == 2

    assert "lmm" in capsys.readouterr().err


def test_plan_says_whether_the_embedded_model_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RANDOM, "device=cpu"]) == 0

    assert "fits: needs" in capsys.readouterr().out


def test_plan_fails_when_the_model_cannot_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "device=cpu", "model=moshiko", "engine.slots=100000"]) == 6

    assert "does not fit" in capsys.readouterr().out


def test_make_checkpoint_writes_a_folder_and_says_how_to_use_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["make-checkpoint", "my model", "size=tiny", "seed=1"]) == 0

    assert (tmp_path / "my model" / "config.json").is_file()
    assert f"model=local model.path={tmp_path / 'my model'}" in capsys.readouterr().out


CHEAP = [
    ("", "hydra omegaconf torch numpy rich"),
    ("--help", "hydra omegaconf torch numpy rich"),
    ("--help source", "hydra omegaconf torch numpy rich"),
    ("--version", "hydra omegaconf torch numpy rich"),
    ("plugins", "hydra omegaconf torch numpy rich"),
    ("plan", "torch numpy soundfile sphn sentencepiece huggingface_hub"),
    ("graph", "torch numpy soundfile sphn sentencepiece huggingface_hub"),
    ("source.path=a --cfg job", "torch numpy soundfile sphn sentencepiece huggingface_hub"),
    ("source=fle", "torch numpy soundfile sphn sentencepiece huggingface_hub"),
]


@pytest.mark.parametrize(("words", "heavy"), CHEAP, ids=[words for words, _ in CHEAP])
def test_what_only_answers_imports_nothing_heavy(words: str, heavy: str) -> None:
    code = (
        "import sys\n"
        "from moshi_pipe.cli import main\n"
        f"main({words.split()!r})\n"
        f"sys.stderr.write('loaded:' + ','.join(m for m in {heavy.split()!r} if m in sys.modules))"
    )

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stderr.rpartition("loaded:")[2] == ""


def test_a_written_configuration_is_repeated_into_a_folder_beside_it(
    build: FakeBuild, tmp_path: Path
) -> None:
    main(["source.path=[a] ${b}.wav", "seed=3", "sink=[file]", "sink.file.format=flac"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(build.configs[0].composed, encoding="utf-8")

    assert main(["repeat", "out", "engine.slots=4"]) == 0

    first, second = build.configs
    assert second.source.options.path == str(tmp_path / first.source.options.path)
    assert second.sinks[0].options == first.sinks[0].options
    assert second.seed == 3
    assert second.engine.slots == 4
    assert second.output_dir == tmp_path / "out" / "repeat"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["repeat"], "repeat needs one config.yaml"),
        (["repeat", "no.yaml"], "cannot read "),
        (["repeat", "file:///out"], "repeat takes a path, not an address\n  got:    file:///out\n"),
        (["repeat", "other.yaml"], "is no configuration of a run"),
    ],
)
def test_repeat_needs_what_a_run_wrote(
    build: FakeBuild,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    what: str,
) -> None:
    (tmp_path / "other.yaml").write_text("a: 1\n")

    assert main(words) == 2

    assert what in capsys.readouterr().err
    assert build.configs == []
