from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from moshi_pipe.cli import main
from moshi_pipe.completion import asks_for_completion, completions

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = ("plan", "client", "plugins", "plugin")
FLAGS = ("--help", "--version", "--verbose")


@pytest.mark.parametrize(
    ("line", "found", "rest"),
    [
        ("moshi-pipe ", sorted(COMMANDS), "moshi-pipe "),
        ("moshi-pipe pl", ["plan", "plugin", "plugins"], "moshi-pipe pl"),
        ("moshi-pipe source=", [], "moshi-pipe source="),
        ("moshi-pipe source=mic cl", [], "moshi-pipe source=mic cl"),
        ("moshi-pipe plan model=mo", [], "moshi-pipe model=mo"),
        ("moshi-pipe client ws://h:1 se", [], "moshi-pipe model=remote se"),
        ("moshi-pipe client ws://h:1 ", [], "moshi-pipe model=remote "),
        ("moshi-pipe --ve", ["--version", "--verbose"], None),
        ("moshi-pipe plan --ve", ["--version", "--verbose"], None),
        ("moshi-pipe --verbose so", [], "moshi-pipe so"),
        ("moshi-pipe", sorted(COMMANDS), "moshi-pipe "),
    ],
)
def test_commands_and_flags_are_completed(line: str, found: list[str], rest: str | None) -> None:
    assert completions(line, COMMANDS, FLAGS) == (found, rest)


def test_a_shell_asks_in_hydras_words() -> None:
    assert asks_for_completion(["-sc", "query=bash"])
    assert asks_for_completion(["--shell-completion", "query=fish"])
    assert not asks_for_completion(["-sc", "install=bash"])
    assert not asks_for_completion(["-sc"])
    assert not asks_for_completion(["source=file"])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("moshi-pipe cli", ["client"]),
        ("moshi-pipe client ws://h:1 model.to", ["model.token_env="]),
        ("moshi-pipe rin", ["ring_home"]),
        ("moshi-pipe convert --", None),
    ],
)
def test_a_shell_is_told_commands_of_plugins_too(
    line: str,
    told: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "home.py").write_text(
        "from moshi_pipe.hooks import Command, hookimpl\n"
        "@hookimpl\n"
        "def register_commands(): return [Command('ring_home', 'call', lambda words: 0)]\n",
        encoding="utf-8",
    )
    line = line.replace("moshi-pipe", f"moshi-pipe --plugins-dir {tmp_path}")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))

    assert main(["-sc", "query=bash"]) == 0

    shown = capsys.readouterr()
    assert shown.err == ""
    assert told is None or shown.out.split() == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-sc", "install=bsh"], "did you mean 'install=bash'?"),
        (["-sc"], "got:    nothing"),
        (["-sc", "query=bash"], "no COMP_LINE"),
    ],
)
def test_what_no_shell_asks_is_refused(
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("COMP_LINE", raising=False)

    assert main(words) == 2

    assert told in capsys.readouterr().err
