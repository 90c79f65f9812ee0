"""The plugin as users meet it: found by name, without MLX, and in a whole run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from moshi_pipe_mlx import plugin

import moshi_pipe
from moshi_pipe.errors import BackendError
from moshi_pipe.hooks import BackendOptions
from moshi_pipe.plugins import load_plugins


def tell_nobody(done: int, total: int) -> None:
    """Nothing is loaded here."""


def test_without_mlx_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    nothing: Any = None

    for hook in (plugin.open_lm, plugin.open_codec):
        with pytest.raises(BackendError, match=r"pip install 'mlx.*>=0\.32'"):
            hook(nothing, BackendOptions(backend="mlx"), tell_nobody)


def test_models_of_other_backends_are_left_to_them() -> None:
    nothing: Any = None

    for hook in (plugin.open_lm, plugin.open_codec):
        assert hook(nothing, BackendOptions(backend="torch"), tell_nobody) is None


def test_the_plugin_is_registered_with_its_two_hooks() -> None:
    plugins = load_plugins([("mlx", plugin)], installed=False)

    info = plugins.infos[-1]
    assert info.error is None
    assert info.offers == ("hook open_codec", "hook open_lm")


def test_finding_the_plugin_imports_no_mlx() -> None:
    program = (
        "import sys, moshi_pipe_mlx.plugin; "
        "print(*(m for m in ('mlx', 'mlx.core', 'torch') if m in sys.modules))"
    )

    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )

    assert result.stdout.split() == []


def test_a_session_says_what_it_says_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codec, language model and sampling in one: codes and text are equal, sound nearly."""
    pytest.importorskip("mlx.core", reason="MLX cannot be imported", exc_type=ImportError)
    monkeypatch.setattr(
        "moshi_pipe.plugins.load_plugins", lambda: load_plugins([("mlx", plugin)], installed=False)
    )
    pcm = np.random.default_rng(0).uniform(-0.3, 0.3, (30, 1920)).astype(np.float32)

    spoken = []
    for backend in ("mlx", "torch"):
        overrides = {"backend": backend, "device": "cpu"}
        with moshi_pipe.load("embedded", overrides=overrides).session(seed=1) as session:
            spoken.append([session.feed(frame) for frame in pcm])

    heard = 0
    for mine, theirs in zip(*spoken, strict=True):
        assert (mine.token, mine.text) == (theirs.token, theirs.text)
        assert np.array_equal(mine.codes, theirs.codes)
        if mine.audio is not None and theirs.audio is not None:
            assert np.allclose(mine.audio, theirs.audio, rtol=0, atol=1e-5)
            heard += 1
    assert heard > 20
