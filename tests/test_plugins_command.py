"""``moshi-pipe plugins``, ``plugin new``, and what plugins add to the configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moshi_pipe.assembly import assemble, wire
from moshi_pipe.cli import main
from moshi_pipe.compose import load_run
from moshi_pipe.errors import ConfigError, MoshiPipeError
from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import BatchedNode, Tick, Value
from moshi_pipe.guide import group_help_text, help_text
from moshi_pipe.hooks import OwnedRegistry, hookimpl
from moshi_pipe.overrides import prepare
from moshi_pipe.plugin_new import KINDS, write_plugin
from moshi_pipe.plugins import DIRS_VARIABLE, PLUGINS_VARIABLE, Plugins, load_plugins
from moshi_pipe.plugins_command import FAIL, examine, requirements

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.models.spec import CodecSpec

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class GainOptions:
    """How much louder.

    Attributes:
        gain_db: In dB.
        limit: Clip beyond [-1, 1].
    """

    gain_db: float = 0.0
    limit: bool = True


class Gain(BatchedNode):
    """Louder."""

    def __init__(self, options: GainOptions) -> None:
        self.options = options

    def fit(self, codec: CodecSpec) -> None:
        form = Audio(codec.sample_rate, codec.frame_size)
        self.inputs = {"audio": form}
        self.outputs = {"audio": form}

    def join(self, slot: int, settings: Any) -> None:
        pass

    def step(self, inputs: Mapping[str, Value], tick: Tick) -> dict[str, Value]:
        return {"audio": inputs["audio"]}


class Plain(Gain):
    """Without options."""

    def __init__(self) -> None:
        super().__init__(GainOptions())


@dataclass
class RuntimeOptions:
    """Of the runtime.

    Attributes:
        lanes: How many.
        name: Of the runtime.
    """

    lanes: int = 2
    name: str = "???"


GRAPH = {
    "nodes": {
        "encode": {"kind": "codec.encode"},
        "decode": {"kind": "codec.decode"},
        "gain": {"kind": "gain", "options": {"gain_db": 6}},
    },
    "inputs": ["user_audio"],
    "links": [
        "user_audio -> encode.audio",
        "encode.codes -> decode.codes",
        "decode.audio -> gain.audio",
    ],
    "outputs": {"audio": "gain.audio"},
}


class GainPlugin:
    """Everything that goes into the configuration."""

    @hookimpl
    def register_nodes(self, registry: OwnedRegistry) -> None:
        registry.add("node", "gain", Gain, GainOptions)
        registry.add("node", "plain", Plain)
        registry.add_backend("fast", RuntimeOptions)
        registry.add_graph("gained", GRAPH, "Codec round trip, louder.")


@pytest.fixture(autouse=True)
def no_plugins_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PLUGINS_VARIABLE, raising=False)
    monkeypatch.delenv(DIRS_VARIABLE, raising=False)


@pytest.fixture
def plugins() -> Plugins:
    return load_plugins([("gain", GainPlugin())], installed=False)


def run_of(plugins: Plugins, *words: str) -> Any:
    return load_run(prepare(["source=silence", *words]), plugins.nodes)


# ---- options of nodes


def test_a_nodes_options_are_typed_by_its_dataclass(plugins: Plugins) -> None:
    config = run_of(plugins, "graph=gained", "graph.nodes.gain.options.limit=false")

    assert config.graph["nodes"]["gain"]["options"] == GainOptions(gain_db=6.0, limit=False)


def test_the_node_is_made_with_them(plugins: Plugins) -> None:
    config = run_of(plugins, "graph=gained", "graph.nodes.gain.options.gain_db=-3")
    assembly = assemble(config.model, config.graph, config.backend, plugins)
    schedule = assembly.schedule()

    models = assembly.open_models(schedule)
    nodes = assembly.make_nodes(schedule, models, guided=False, max_candidates=1)

    made: Any = nodes["gain"]
    assert made.node.options == GainOptions(gain_db=-3.0)
    assert made.plugin == "gain"


def test_options_may_be_plain_where_a_graph_is_given_in_python(plugins: Plugins) -> None:
    config = run_of(plugins, "graph=codec")

    graph, _, _ = wire(config.model, GRAPH, plugins)

    assert graph.options == {"gain": {"gain_db": 6}}
    assert str(graph.ports["gain"].outputs["audio"]) == "audio 24000 Hz, 1 ch, 1920 samples a frame"


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("graph.nodes.gain.options.gain_db=much", "graph.nodes.gain.options.gain_db has the wrong"),
        ("graph.nodes.gain.options.gain=1", "graph.nodes.gain.options.gain is unknown"),
        ("+graph.nodes.gain.option=1", "graph 'gained': node 'gain' has an unknown key 'option'"),
    ],
)
def test_wrong_options_of_a_node_are_refused(plugins: Plugins, word: str, what: str) -> None:
    def check() -> None:
        config = run_of(plugins, "graph=gained", word)
        wire(config.model, config.graph, plugins)

    with pytest.raises(ConfigError) as caught:
        check()

    assert str(caught.value).startswith(what)


def test_a_node_without_options_takes_none(plugins: Plugins) -> None:
    words = ["graph=gained", "graph.nodes.gain.kind=plain"]

    with pytest.raises(ConfigError, match="kind 'plain' has no options"):
        run_of(plugins, *words)


def test_a_plugins_graph_is_chosen_by_name_and_shown_in_the_help(plugins: Plugins) -> None:
    assert run_of(plugins, "graph=gained").graph["name"] == "gained"
    assert "gained" in help_text([], plugins.nodes)
    assert "louder. From the plugin gain." in group_help_text("graph=gained", plugins.nodes)


def test_the_help_shows_kinds_of_nodes_and_their_options(plugins: Plugins) -> None:
    assert "kinds of nodes that plugins give to graphs: gain, plain" in help_text([], plugins.nodes)
    shown = group_help_text("node=gain", plugins.nodes)
    assert "graph.nodes.NAME.options.gain_db=0.0" in shown
    assert "graph.nodes.NAME.options.limit=true" in shown


def test_a_plugin_cannot_take_the_name_of_our_graph() -> None:
    class Greedy:
        @hookimpl
        def register_nodes(self, registry: OwnedRegistry) -> None:
            registry.add_graph("dialogue", GRAPH)

    plugins = load_plugins([("greedy", Greedy())], installed=False)

    assert "registers the graph 'dialogue', which comes with" in str(plugins.infos[-1].error)
    assert plugins.nodes.graphs() == []


@pytest.mark.parametrize("what", ["graph", "backend"])
def test_a_name_that_a_plugin_has_is_refused_with_both_owners(what: str) -> None:
    class One:
        @hookimpl
        def register_nodes(self, registry: OwnedRegistry) -> None:
            if what == "graph":
                registry.add_graph("x", GRAPH)
            else:
                registry.add_backend("x", RuntimeOptions)

    plugins = load_plugins([("one", One()), ("two", One())], installed=False)

    assert f"two plugins register the {what} 'x'" in str(plugins.infos[-1].error)
    assert "one has it, two wants it too" in str(plugins.infos[-1].error)
    assert "-p no:one" in str(plugins.infos[-1].fix)


# ---- options of backends


def test_options_of_a_backend_are_typed_and_reach_the_hook(plugins: Plugins) -> None:
    words = ["backend=fast", "backend_options.fast.lanes=4", "backend_options.fast.name=x"]

    config = run_of(plugins, *words)

    assert config.backend.own == {"fast": RuntimeOptions(lanes=4, name="x")}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["backend=fast"], "backend_options.fast.name is not set"),
        (
            ["backend_options.fast.lanes=few", "backend_options.fast.name=x"],
            "backend_options.fast.lanes has the wrong type",
        ),
        (["backend_options.slow.lanes=1"], "backend_options.slow is unknown"),
        (["backend_options.fast=4"], "backend_options.fast is no mapping"),
    ],
)
def test_wrong_options_of_a_backend_are_refused(
    plugins: Plugins, words: list[str], what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(plugins, *words)

    assert what in str(caught.value)


def test_a_run_that_is_repeated_keeps_the_options(plugins: Plugins, tmp_path: Path) -> None:
    from moshi_pipe.compose import load_written, resolve

    config = run_of(plugins, "graph=gained", "backend_options.fast.name=x")
    written = tmp_path / "config.yaml"
    written.write_text(config.composed, encoding="utf-8")

    again = resolve(load_written(written, plugins.nodes), plugins.nodes)

    assert again.graph == config.graph
    assert again.backend.own == config.backend.own


# ---- the command


def test_the_list_is_json_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list", "--json", "-p", "no:torch"]) == 0

    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert "source file" in rows["nodes"]["offers"]
    assert rows["torch"]["blocked"]


def test_one_plugin_is_shown_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "nodes"]) == 0

    shown = capsys.readouterr().out
    assert "  sink file\n" in shown
    assert "      bits=16  Per sample: 16, or 32" in shown
    assert "hook open_lm" not in shown
    assert main(["plugins", "show", "torch"]) == 0
    assert "hook open_lm\n      called when: Before the first session" in capsys.readouterr().out


def test_our_own_plugins_are_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "doctor", "--json"]) == 0

    rows = json.loads(capsys.readouterr().out)
    assert {row["plugin"] for row in rows} >= {"nodes", "torch"}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["plugins", "lst"], "`moshi-pipe plugins` cannot 'lst'"),
        (["plugins", "show"], "cannot read the words after `moshi-pipe plugins`"),
        (["plugins", "show", "tone"], "there is no plugin 'tone'"),
        (["plugins", "--jason"], "there is no flag '--jason'"),
        (["plugins", "--plugins-dir="], "--plugins-dir names no folder"),
        (["plugin"], "cannot read the words after `moshi-pipe plugin`"),
        (["plugin", "new"], "cannot read the words after `moshi-pipe plugin`"),
        (["plugin", "new", "x", "--kind"], "--kind needs a word after it"),
        (["plugin", "new", "x", "--kind", "cloud"], "there is no kind 'cloud' of plugin"),
        (["plugin", "new", "x", "--folder", "a"], "there is no flag '--folder'"),
    ],
)
def test_a_mistake_is_named(
    capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"moshi-pipe: {what}")


@dataclass
class SilentOptions:
    """Says nothing of its field."""

    loud: bool = True


@dataclass
class UntypableOptions:
    """A type that no configuration can hold.

    Attributes:
        what: Anything that has a length.
    """

    what: complex = 1j


class Nameless(Gain):
    __doc__ = None


@pytest.mark.parametrize(
    ("cls", "options", "found"),
    [
        ("nowhere:Gain", None, "ModuleNotFoundError"),
        (Nameless, None, "its class says nothing of itself"),
        (Gain, SilentOptions, "nothing is said of loud"),
        (Gain, UntypableOptions, "Unexpected type annotation: complex"),
        (Gain, Gain, "the options of node 'flawed' cannot be used"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_found(cls: Any, options: Any, found: str) -> None:
    class Flawed:
        @hookimpl
        def register_nodes(self, registry: OwnedRegistry) -> None:
            registry.add("node", "flawed", cls, options)

    plugins = load_plugins([("flawed", Flawed())], installed=False)

    failed = [row for row in examine(plugins, plugins.infos[-1]) if row.status == FAIL]
    assert len(failed) == 1
    assert found in failed[0].found


def test_only_installed_plugins_are_requirements() -> None:
    assert requirements(load_plugins(installed=False).infos) == []


# ---- plugin new


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_own_tests_and_ours(kind: str, tmp_path: Path) -> None:
    folder, files = write_plugin("my_part", kind, tmp_path)

    names = {str(file.relative_to(folder)) for file in files}
    assert {"pyproject.toml", "README.md", "LICENSE", "moshi_pipe_my_part/__init__.py"} <= names
    assert not any("$" in file.read_text(encoding="utf-8") for file in files)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_written_in_our_style(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("ruff")
    folder, _ = write_plugin("tone2", kind, tmp_path)
    rules = ["--select", "E,F,UP,B,D", "--ignore", "D105,D107,D103", "--line-length", "100"]
    rules += ["--isolated", "--config", "lint.pydocstyle.convention='google'"]

    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *rules, "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("My-Part", "a plugin cannot be called 'My-Part'"),
        ("2fast", "a plugin cannot be called '2fast'"),
        ("class", "a plugin cannot be called 'class'"),
        ("file", "a plugin cannot be called 'file': something has this name"),
        ("torch", "a plugin cannot be called 'torch': something has this name"),
    ],
)
def test_a_bad_name_is_refused(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        write_plugin(name, "source", tmp_path)

    assert str(caught.value).startswith(what)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "moshi-pipe-mine" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine", encoding="utf-8")

    with pytest.raises(ConfigError, match="is there already"):
        write_plugin("mine", "source", tmp_path)
    assert [path.name for path in kept.parent.iterdir()] == ["kept.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(MoshiPipeError, match=r"^cannot write .*moshi-pipe-mine"):
        write_plugin("mine", "source", tmp_path / "file")


# ---- completion


def test_completion_knows_plugins_that_the_line_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tone.py").write_text(
        "from moshi_pipe.hooks import hookimpl\n"
        "@hookimpl\ndef register_nodes(registry): registry.add('source', 'my_tone', 'x:X')\n",
        encoding="utf-8",
    )
    line = f"moshi-pipe --plugins-dir {tmp_path} source=my"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))

    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["source=my_tone"]
