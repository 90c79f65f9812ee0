"""What plugins are told of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.audio import write_babble
from support.model import RANDOM

from moshi_pipe import plugins as plugins_module
from moshi_pipe.cli import main
from moshi_pipe.hooks import hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from moshi_pipe.plugins import Plugins


class Listener:
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.words: list[tuple[str, float, float]] = []
        self.frames = 0
        self.ended: list[int] = []

    @hookimpl
    def on_text(self, text: str, start_s: float, end_s: float) -> None:
        self.words.append((text, start_s, end_s))

    @hookimpl
    def on_frame(self, packet: Any) -> None:
        self.frames += 1

    @hookimpl
    def on_session_end(self, frames: int) -> None:
        self.ended.append(frames)


class Rude:
    """Raises whenever it is called."""

    @hookimpl
    def on_frame(self) -> None:
        raise RuntimeError("no time")


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    """A plugin that listens, between two that raise."""
    heard = Listener()
    load = plugins_module.load_plugins

    def load_with(*args: Any, **named: Any) -> Plugins:
        loaded = load(*args, **named)
        loaded.manager.register(Rude(), name="rude")
        loaded.manager.register(heard, name="listener")
        loaded.manager.register(Rude(), name="ruder")
        return loaded

    monkeypatch.setattr("moshi_pipe.hydra_app.load_plugins", load_with)
    return heard


def test_a_plugin_hears_every_word_and_frame_whatever_the_sinks_take_and_others_do(
    listener: Listener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_babble(tmp_path / "a.wav", 1.6)

    assert main([RANDOM, "source.path=a.wav", "seed=5", "output_dir=out", "sink=[transcript]"]) == 0
    transcript = (tmp_path / "out" / "a.txt").read_text(encoding="utf-8").split()
    words = [text for text, _, _ in listener.words]
    assert words == transcript
    assert all(start_s < end_s for _, start_s, end_s in listener.words)
    assert listener.ended == [20]

    listener.words.clear()
    assert main([RANDOM, "source.path=a.wav", "seed=5", "output_dir=sound", "sink=[file]"]) == 0
    assert [text for text, _, _ in listener.words] == words
    assert listener.frames > 20
    shown = capsys.readouterr().err
    assert shown.count("plugin rude failed in on_frame: RuntimeError: no time") == 2
    assert shown.count("plugin ruder failed in on_frame") == 2
