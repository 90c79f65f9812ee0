"""Plugins that do what they should not: the run goes on, or says whose fault it is and what to do.

Each plugin is a file in a folder, as users drop them, and each run is a whole command.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.model import RANDOM

from moshi_pipe.cli import main
from moshi_pipe.plugins import DIRS_VARIABLE, PLUGINS_VARIABLE, load_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = [RANDOM, "source=silence", "source.duration_s=0.4", "seed=1", "graph=codec", "sink=[file]"]

HEAD = """
from dataclasses import dataclass

from moshi_pipe.graph.format import Audio
from moshi_pipe.graph.node import BatchedNode, Sink, Source, Value
from moshi_pipe.hooks import hookimpl
"""

RAISES_AT_IMPORT = "raise RuntimeError('not today')"
LEAVES_AT_IMPORT = "import sys\nsys.exit('goodbye')"
LACKS_A_PACKAGE = "import a_package_that_nobody_has"
IS_NO_PYTHON = "def on_frame(:"
RAISES_AT_REGISTRATION = (
    HEAD
    + """
@hookimpl
def register_nodes(registry):
    registry.add("source", "lost", "nowhere:Lost")
    raise RuntimeError('not today')
"""
)
IS_NEWER = "moshi_pipe_api = 2\nraise_nothing = True"
HAS_NO_HOOK = "greeting = 'hello'"
WRAPS = (
    HEAD
    + """
@hookimpl(wrapper=True)
def open_codec(checkpoint, options, progress):
    return (yield)
"""
)
GIVES_NO_COMMANDS = (
    HEAD
    + """
@hookimpl
def register_commands():
    return ["sing"]
"""
)

LEFT_OUT = {
    "raises_at_import": (RAISES_AT_IMPORT, "RuntimeError: not today", "tell its authors"),
    "leaves_at_import": (LEAVES_AT_IMPORT, "SystemExit: goodbye", "tell its authors"),
    "lacks_a_package": (
        LACKS_A_PACKAGE,
        "ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
        "install what it needs: a_package_that_nobody_has",
    ),
    "is_no_python": (IS_NO_PYTHON, "SyntaxError", "tell its authors"),
    "raises_at_registration": (
        RAISES_AT_REGISTRATION,
        "RuntimeError: not today",
        "to be told no more: -p no:raises_at_registration",
    ),
    "is_newer": (
        IS_NEWER,
        "it is written for version 2 of the plugin API, this moshi-pipe has version 1",
        "upgrade moshi-pipe, or install an older version of the plugin",
    ),
    "has_no_hook": (HAS_NO_HOOK, "it has no hook", "mark them"),
    "wraps": (WRAPS, "its hook open_codec is a wrapper", "-p no:wraps"),
    "gives_no_commands": (GIVES_NO_COMMANDS, "register_commands gives what is no command", "no:"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of plugins; the working folder is beside it."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PLUGINS_VARIABLE, raising=False)
    monkeypatch.delenv(DIRS_VARIABLE, raising=False)
    yield plugins
    for name in [name for name in sys.modules if name.startswith("moshi_pipe_dropped_")]:
        del sys.modules[name]


def drop(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_plugin_that_cannot_be_loaded_is_left_out_with_its_reason(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text, reason, fix = LEFT_OUT[name]
    drop(folder, name, text)

    assert main(["plugins", "--plugins-dir", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"{name}  ({folder / name}.py)\n  left out: {reason}" in shown
    assert fix in shown.partition("  do: ")[2]
    assert main(["plugins", "doctor", "--plugins-dir", str(folder)]) == 1
    summary = capsys.readouterr().out.splitlines()[-1]
    assert name in summary.partition("failed: ")[2].split(", ")


@pytest.mark.parametrize("name", ["raises_at_import", "raises_at_registration", "is_newer"])
def test_a_run_goes_on_without_a_broken_plugin_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text, reason, fix = LEFT_OUT[name]
    drop(folder, name, text)

    assert main([*RUN, f"--plugins-dir={folder}"]) == 0

    said = " ".join(capsys.readouterr().err.split())
    assert f"plugin {name} ({folder / name}.py) was left out: {reason}" in said
    assert fix in said
    assert Path("moshi-out/silence-0.wav").is_file()


def test_a_plugin_that_was_left_out_by_name_is_not_complained_about(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(folder, "broken", RAISES_AT_IMPORT)

    assert main([*RUN, "--plugins-dir", str(folder), "-p", "no:broken"]) == 0
    assert "broken" not in capsys.readouterr().err
    assert main(["plugins", "--plugins-dir", str(folder), "-p", "no:broken"]) == 0
    assert "left out by no:broken" in capsys.readouterr().out


def test_what_a_broken_plugin_would_have_given_is_not_there_and_the_error_says_why(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(folder, "tone", RAISES_AT_REGISTRATION)

    assert main(["source=lost", "--plugins-dir", str(folder)]) == 2

    said = capsys.readouterr().err
    assert "there is no source 'lost'" in said
    assert "plugin tone" in said
    assert "RuntimeError: not today" in said


def test_two_plugins_of_one_name_are_refused_with_both_owners(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "others"
    other.mkdir()
    ears = HEAD + "@hookimpl\ndef on_frame(packet): pass\n"
    drop(folder, "tone", ears)
    drop(other, "tone", ears)

    assert main(["plugins", "--plugins-dir", str(folder), "--plugins-dir", str(other)]) == 0

    shown = capsys.readouterr().out
    assert (
        f"two plugins are called 'tone': {folder / 'tone.py'} has the name, "
        f"{other / 'tone.py'} wants it too" in shown
    )
    assert "uninstall one of the two, or rename one" in shown


def test_a_misspelt_name_to_leave_out_is_told_of(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(folder, "tone", HEAD + "@hookimpl\ndef on_frame(packet): pass\n")

    assert main([*RUN, "--plugins-dir", str(folder), "-p", "no:tome"]) == 0

    said = " ".join(capsys.readouterr().err.split())
    assert "no plugin is called 'tome': did you mean 'tone'?" in said


def test_the_choice_of_plugins_ends_with_the_command(folder: Path) -> None:
    drop(folder, "tone", HEAD + "@hookimpl\ndef on_frame(packet): pass\n")
    main(["plugins", "--plugins-dir", str(folder), "-p", "no:torch"])

    names = [info.name for info in load_plugins().infos if info.error is None]

    assert "torch" in names
    assert "tone" not in names


def test_a_folder_of_plugins_that_is_not_there_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", "--plugins-dir", str(folder / "no")]) == 0
    shown = capsys.readouterr().out
    assert f"the folder of plugins is not there; {folder / 'no'}" in shown


IN_A_RUN = {
    "in a hook": (
        "@hookimpl\ndef on_frame(packet):\n    raise RuntimeError('not today')\n",
        [],
        0,
        ["plugin bad failed in on_frame: RuntimeError: not today", "hears nothing more"],
    ),
    "in open_codec": (
        "@hookimpl\ndef open_codec(checkpoint, options, progress):\n"
        "    raise RuntimeError('not today')\n",
        [],
        6,
        [
            "backend 'torch' of plugin bad failed in open_codec",
            "RuntimeError: not today",
            "-p no:bad",
        ],
    ),
    "making a source": (
        "class Bad(Source):\n"
        "    def __init__(self): raise RuntimeError('not today')\n"
        "    async def sessions(self): yield\n"
        "@hookimpl\ndef register_nodes(registry): registry.add('source', 'bad', Bad)\n",
        ["source=bad"],
        6,
        ["source 'bad' of plugin bad failed in being made", "RuntimeError: not today", "-p no:bad"],
    ),
    "in sessions": (
        "class Bad(Source):\n"
        "    async def sessions(self):\n"
        "        raise RuntimeError('not today')\n"
        "        yield\n"
        "@hookimpl\ndef register_nodes(registry): registry.add('source', 'bad', Bad)\n",
        ["source=bad"],
        6,
        ["the source of plugin bad failed in sessions", "RuntimeError: not today", "-p no:bad"],
    ),
    "in a sink": (
        "class Bad(Sink):\n"
        "    takes = ('audio',)\n"
        "    async def open(self, session): pass\n"
        "    async def write(self, packet): raise RuntimeError('not today')\n"
        "    async def close(self, end): return {}\n"
        "@hookimpl\ndef register_nodes(registry): registry.add('sink', 'bad', Bad)\n",
        ["sink=[file,bad]"],
        7,
        [
            "a sink of session silence-0 failed: it is of plugin bad",
            "RuntimeError: not today",
            "-p no:bad",
        ],
    ),
    "in a step": (
        "class Bad(BatchedNode):\n"
        "    def fit(self, codec):\n"
        "        form = Audio(codec.sample_rate, codec.frame_size)\n"
        "        self.inputs = self.outputs = {'audio': form}\n"
        "    def join(self, slot, settings): pass\n"
        "    def step(self, inputs, tick): raise RuntimeError('not today')\n"
        "GRAPH = {'nodes': {'bad': {'kind': 'bad'}}, 'inputs': ['user_audio'],\n"
        "         'links': ['user_audio -> bad.audio'], 'outputs': {'audio': 'bad.audio'}}\n"
        "@hookimpl\n"
        "def register_nodes(registry):\n"
        "    registry.add('node', 'bad', Bad)\n"
        "    registry.add_graph('bad', GRAPH)\n",
        ["graph=bad"],
        6,
        ["node 'bad' of plugin bad failed in step", "RuntimeError: not today", "-p no:bad"],
    ),
    "a backend, in a step": (
        "from moshi_pipe.builtin import TorchBackend\n"
        "from dataclasses import replace\n"
        "class Bad:\n"
        "    def __init__(self, codec): self.codec = codec\n"
        "    def __getattr__(self, name): return getattr(self.codec, name)\n"
        "    def encode(self, *words): raise RuntimeError('not today')\n"
        "@hookimpl\n"
        "def open_codec(checkpoint, options, progress):\n"
        "    if options.backend != 'bad': return None\n"
        "    options = replace(options, backend='torch')\n"
        "    return Bad(TorchBackend().open_codec(checkpoint, options, progress))\n",
        ["codec_backend=bad"],
        6,
        ["node 'encode' (backend 'bad') of plugin bad failed in open", "RuntimeError: not today"],
    ),
}


@pytest.mark.parametrize("where", IN_A_RUN)
def test_a_plugin_that_raises_in_a_run_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    text, words, code, wanted = IN_A_RUN[where]
    drop(folder, "bad", HEAD + text)
    run = [word for word in RUN if word.partition("=")[0] not in _keys(words)]

    assert main([*run, *words, "--plugins-dir", str(folder)]) == code

    captured = capsys.readouterr()
    said = " ".join((captured.err + captured.out).split())
    for text in wanted:
        assert text in said
    assert "Traceback" not in said


def test_where_a_session_failed_is_in_its_record(folder: Path) -> None:
    text, words, code, _ = IN_A_RUN["in a sink"]
    drop(folder, "bad", HEAD + text)

    assert main([*RUN[:-1], *words, "--plugins-dir", str(folder)]) == code

    record = json.loads(Path("moshi-out/silence-0.session.json").read_text(encoding="utf-8"))
    trace = "\n".join(record["traceback"])
    assert str(folder / "bad.py") in trace
    assert "in write" in trace


def _keys(words: list[str]) -> set[str]:
    keys: set[str] = {word.partition("=")[0] for word in words}
    if "source" in keys:
        keys.add("source.duration_s")
    return keys


def test_a_node_that_is_not_used_cannot_break_a_run(folder: Path) -> None:
    drop(
        folder,
        "unused",
        HEAD
        + "@hookimpl\ndef register_nodes(registry): registry.add('node', 'x', 'no_module:X')\n",
    )

    assert main([*RUN, "--plugins-dir", str(folder)]) == 0


def test_a_plugin_from_the_environment_is_loaded_by_its_module(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(folder, "a_module_of_mine", HEAD + "@hookimpl\ndef on_frame(packet): pass\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(PLUGINS_VARIABLE, "a_module_of_mine, no:nodes")

    infos: dict[str, Any] = {info.name: info for info in load_plugins().infos}

    assert infos["a_module_of_mine"].offers == ("hook on_frame",)
    assert infos["nodes"].blocked
