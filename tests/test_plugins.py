"""Plugins: found, isolated when broken, refused when a name is taken."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moshi_pipe.compose import compose, load_run
from moshi_pipe.config import EngineOptions, SamplingOptions
from moshi_pipe.config_files import choice_names, conf_dir
from moshi_pipe.errors import BackendError, ConfigError
from moshi_pipe.guide import group_help_text, help_text
from moshi_pipe.hooks import (
    CONTRACT,
    BackendOptions,
    Command,
    Hooks,
    NodeRegistry,
    OwnedRegistry,
    hook_contract,
    hook_names,
    hookimpl,
)
from moshi_pipe.models.checkpoint import ModelOptions
from moshi_pipe.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class ToneOptions:
    """Options of the tone.

    Attributes:
        frequency_hz: Pitch of the tone, in Hz.
        duration_s: Seconds of the
            tone.
    """

    frequency_hz: float = 440.0
    duration_s: float = 1.0


class ToneSource:
    """A tone instead of a person."""

    def __init__(self, options: ToneOptions) -> None:
        self.options = options


class TonePlugin:
    @hookimpl
    def register_nodes(self, registry: OwnedRegistry) -> None:
        registry.add("source", "test_tone", ToneSource, ToneOptions)


class CommandPlugin:
    @hookimpl
    def register_commands(self) -> Sequence[Command]:
        return [Command("hum", "hum a tune", lambda words: len(words))]


class GreedyPlugin:
    """Wants a name that is taken."""

    @hookimpl
    def register_nodes(self, registry: OwnedRegistry) -> None:
        registry.add("source", "hers", ToneSource, ToneOptions)
        registry.add("source", "file", ToneSource, ToneOptions)


class BrokenPlugin:
    @hookimpl
    def register_nodes(self, registry: OwnedRegistry) -> None:
        raise RuntimeError("no luck today")


class MisspeltPlugin:
    @hookimpl
    def register_node(self, registry: OwnedRegistry) -> None:
        """Not a hook."""


def test_a_plugins_source_is_chosen_and_typed_like_our_own() -> None:
    plugins = load_plugins([("tone", TonePlugin())], installed=False)

    config = load_run(["source=test_tone", "source.frequency_hz=220"], plugins.nodes)

    source = config.source.make()
    assert isinstance(source, ToneSource)
    assert source.options == ToneOptions(frequency_hz=220.0)


def test_a_plugins_options_are_checked_like_our_own() -> None:
    plugins = load_plugins([("tone", TonePlugin())], installed=False)

    with pytest.raises(ConfigError, match=r"^there is no key 'source\.frequency'"):
        compose(["source=test_tone", "source.frequency=220"], plugins.nodes)
    with pytest.raises(ConfigError, match=r"^source\.frequency_hz has the wrong type"):
        load_run(["source=test_tone", "source.frequency_hz=high"], plugins.nodes)


@dataclass
class SlowOptions(EngineOptions):
    """Options of a slow engine.

    Attributes:
        patience_s: Seconds that it takes its time.
    """

    node: str = "slow"
    patience_s: float = 1.0


class SlowEngine:
    """Runs nothing, and says with what."""

    def __init__(self, options: SlowOptions) -> None:
        self.options = options

    def run(self, config: Any, ui: Any, plugins: Any, source: Any) -> Any:
        return self.options, config.source.entry.name


class SlowPlugin:
    @hookimpl
    def register_nodes(self, registry: OwnedRegistry) -> None:
        registry.add("engine", "slow", SlowEngine, SlowOptions)


class LooseOptionsPlugin:
    @hookimpl
    def register_nodes(self, registry: OwnedRegistry) -> None:
        registry.add("engine", "loose", SlowEngine, ToneOptions)


def test_a_plugins_engine_runs_a_configuration_with_its_own_keys_and_the_common_ones() -> None:
    from moshi_pipe.build import run_config
    from moshi_pipe.progress import SilentUI

    plugins = load_plugins([("slow", SlowPlugin())], installed=False)
    words = ["source=silence", "engine=slow", "engine.patience_s=3", "engine.slots=8"]

    config = load_run(words, plugins.nodes)

    answer: Any = run_config(config, SilentUI(), plugins)
    assert answer == (SlowOptions(slots=8, patience_s=3.0), "silence")
    assert "patience_s: 3.0" in config.composed
    shown = group_help_text("engine=slow", plugins.nodes)
    assert "engine.patience_s=1.0" in shown
    assert "Threads of torch on the CPU." in shown


def test_what_another_engine_ran_can_be_run_again(tmp_path: Path) -> None:
    from moshi_pipe.compose import load_written, resolve

    plugins = load_plugins([("slow", SlowPlugin())], installed=False)
    config = load_run(["source=silence", "engine=slow", "engine.patience_s=3"], plugins.nodes)
    (tmp_path / "config.yaml").write_text(config.composed)

    again = resolve(load_written(tmp_path / "config.yaml", plugins.nodes), plugins.nodes)

    assert again.engine == config.engine


def test_a_plugins_engine_is_checked_like_our_own() -> None:
    plugins = load_plugins([("slow", SlowPlugin())], installed=False)

    with pytest.raises(ConfigError, match=r"engine\.patience"):
        load_run(["source=silence", "engine=slow", "engine.patience=1"], plugins.nodes)
    with pytest.raises(ConfigError, match=r"engine\.slots cannot be 0"):
        load_run(["source=silence", "engine=slow", "engine.slots=0"], plugins.nodes)
    with pytest.raises(ConfigError, match="there is no engine 'fast'"):
        load_run(["source=silence", "engine.node=fast"], plugins.nodes)
    loose = load_plugins([("loose", LooseOptionsPlugin())], installed=False)
    with pytest.raises(ConfigError, match="the options of engine 'loose' of plugin loose"):
        load_run(["source=silence"], loose.nodes)


def test_the_help_shows_a_plugins_options_with_their_documentation() -> None:
    plugins = load_plugins([("tone", TonePlugin())], installed=False)

    shown = group_help_text("source=test_tone", plugins.nodes)

    assert "A tone instead of a person. From the plugin tone." in shown
    assert "source.frequency_hz=440.0" in shown
    assert "Seconds of the tone." in shown
    assert "test_tone" in help_text([], plugins.nodes)


def test_a_taken_name_is_refused_with_both_owners() -> None:
    plugins = load_plugins([("greedy", GreedyPlugin())], installed=False)

    info = plugins.infos[-1]
    assert info.error is not None
    assert "two plugins register the source 'file'" in info.error
    assert "nodes has it, greedy wants it too" in info.error
    assert "hers" not in plugins.nodes.names("source")


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        (BrokenPlugin(), "RuntimeError: no luck today"),
        (MisspeltPlugin(), "unknown hook 'register_node'"),
    ],
    ids=["raises", "misspelt"],
)
def test_a_broken_plugin_is_left_out_with_its_reason(plugin: object, reason: str) -> None:
    plugins = load_plugins([("bad", plugin), ("tone", TonePlugin())], installed=False)

    bad, tone = plugins.infos[-2:]
    assert bad.error is not None
    assert reason in bad.error
    assert tone.offers == ("source test_tone",)
    assert plugins.manager.get_plugin("bad") is None


def test_a_plugin_adds_a_command() -> None:
    plugins = load_plugins([("hummer", CommandPlugin())], installed=False)

    assert plugins.commands["hum"].run(["a", "b"]) == 2


def test_a_plugin_cannot_take_our_command() -> None:
    plugins = load_plugins([("hummer", CommandPlugin())], installed=False, reserved=["hum"])

    assert plugins.commands == {}
    assert "which is taken" in str(plugins.infos[-1].error)


REFUSED = [
    (BackendOptions("rust"), "backend 'rust'", "pip install ./plugins/rust"),
    (BackendOptions("rst"), "backend 'rst'", "did you mean 'rust'?"),
    (BackendOptions("torch", codec_backend="mlx"), "backend 'mlx'", "pip install ./plugins/mlx"),
    (BackendOptions("torch", quant="int5"), "quantizes to 'int5'", "int4, int8, none"),
    (BackendOptions("torch", quant="bnb-nf4"), "to 'bnb-nf4'", "./plugins/quantizers"),
]


@pytest.mark.parametrize(("options", "what", "help_text"), REFUSED)
def test_a_backend_that_nobody_can_have_is_refused_before_any_file_is_looked_for(
    options: BackendOptions, what: str, help_text: str
) -> None:
    plugins = load_plugins(installed=False)

    with pytest.raises(BackendError, match=what) as caught:
        plugins.refuse_absent(options, codec=True, lm=True)

    assert help_text in str(caught.value)


def test_what_a_plugin_might_have_is_left_to_its_hooks() -> None:
    class Opener:
        @hookimpl
        def open_lm(self, options: BackendOptions) -> None:
            return None

        @hookimpl
        def open_quantizer(self, options: BackendOptions) -> None:
            return None

    plugins = load_plugins([("opener", Opener())], installed=False)

    plugins.refuse_absent(BackendOptions("own", codec_backend="torch"), codec=True, lm=True)
    plugins.refuse_absent(BackendOptions("torch", quant="own"), codec=True, lm=True)
    with pytest.raises(BackendError, match="a codec with backend 'own'"):
        plugins.refuse_absent(BackendOptions("own"), codec=True, lm=False)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)^plugin p registers 'x'.*did you mean 'source'"):
        NodeRegistry().owned_by("p").add("sorce", "x", ToneSource)


def test_an_unknown_node_gives_the_closest() -> None:
    registry = load_plugins(installed=False).nodes

    with pytest.raises(ConfigError, match=r"(?s)^there is no sink 'transcrip'.*'transcript'"):
        registry.get("sink", "transcrip")


@pytest.mark.parametrize("name", hook_names())
def test_a_hooks_name_tells_how_answers_combine(name: str) -> None:
    manager = load_plugins(installed=False).manager
    spec = getattr(manager.hook, name).spec

    assert name.startswith(("register_", "open_", "on_"))
    assert spec.opts["firstresult"] == name.startswith("open_")


@pytest.mark.parametrize("name", hook_names())
def test_a_hook_says_all_that_an_author_must_know(name: str) -> None:
    contract = hook_contract(name)

    assert list(contract) == list(CONTRACT)
    assert all(contract.values())


@pytest.mark.parametrize("name", hook_names())
def test_a_hook_documents_its_arguments(name: str) -> None:
    documented = inspect.getdoc(getattr(Hooks, name)) or ""
    arguments = [a for a in inspect.signature(getattr(Hooks, name)).parameters if a != "self"]

    assert all(f"    {argument}: " in documented for argument in arguments)


@pytest.mark.parametrize("name", hook_names())
def test_a_plugin_uses_the_hook(name: str) -> None:
    """No hook without somebody who uses it: in the tests, a plugin, or what comes with us."""
    used = re.compile(rf"@hookimpl\n\s*def {name}\(")
    files = [*(ROOT / "tests").rglob("*.py"), *ROOT.glob("plugins/*/moshi_pipe_*/*.py")]
    files.append(ROOT / "moshi_pipe" / "builtin.py")

    assert any(used.search(path.read_text(encoding="utf-8")) for path in files)


@pytest.mark.parametrize("kind", ["source", "sink"])
def test_our_config_files_hold_the_options_of_the_classes(kind: str) -> None:
    from omegaconf import OmegaConf

    registry = load_plugins(installed=False).nodes

    assert registry.names(kind) == choice_names(kind)
    for name in registry.names(kind):
        options = registry.get(kind, name).load_options()
        in_file = OmegaConf.to_container(
            _composed(conf_dir() / kind / f"{name}.yaml"), resolve=True
        )
        in_class = OmegaConf.to_container(OmegaConf.structured(options)) if options else {}
        assert isinstance(in_class, dict)
        assert in_file == {"node": name, **in_class}


def _composed(path: Path) -> Any:
    """What a file holds, with the defaults of the groups that it takes its values from."""
    from omegaconf import OmegaConf

    config = OmegaConf.create({"it": OmegaConf.load(path)})
    for default in config.it.pop("defaults", []):
        for target, choice in default.items():
            group = str(target).lstrip("/").partition("@")[0]
            config[group] = OmegaConf.load(conf_dir() / group / f"{choice}.yaml")
    return config.it


@pytest.mark.parametrize(
    ("group", "choice", "options"),
    [
        ("model", "embedded", ModelOptions),
        ("engine", "default", EngineOptions),
        ("sampling", "model", SamplingOptions),
    ],
)
def test_our_group_files_hold_the_options_of_their_schemas(
    group: str, choice: str, options: type
) -> None:
    from omegaconf import OmegaConf

    in_file = OmegaConf.load(conf_dir() / group / f"{choice}.yaml")

    assert OmegaConf.to_container(in_file) == OmegaConf.to_container(OmegaConf.structured(options))
