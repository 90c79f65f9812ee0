"""The command's server does all that the protocol's corpus says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("websockets")

from support.serving import Server

from moshi_pipe.server.conformance.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

COMMON = ["device=cpu", "engine.slots=2"]
SECRET = "correct-horse"


def test_our_server_does_all_of_the_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(tmp_path, *COMMON, f"output_dir={tmp_path}/out") as server:
        code = main([server.url.replace("http", "ws", 1), "--within", "20"])
    said = capsys.readouterr().out
    assert code == 0, said


def test_so_it_does_behind_tls_and_a_token_when_nothing_may_be_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    words = ["engine.late=slow_down", "server.self_signed=true", "server.token_env=SECRET"]
    environment = {"SECRET": SECRET, "XDG_CACHE_HOME": str(tmp_path)}
    words += [f"output_dir={tmp_path}/out", *COMMON]
    with Server(tmp_path, *words, environment=environment) as server:
        url = server.url.replace("http", "ws", 1)
        assert url.startswith("wss://")
        monkeypatch.delenv("MOSHI_PIPE_TOKEN", raising=False)
        stranger = main([url, "--insecure", "--only", "greeted"])
        refused = capsys.readouterr().out
        monkeypatch.setenv("MOSHI_PIPE_TOKEN", SECRET)
        code = main([url, "--insecure", "--within", "20"])
    said = capsys.readouterr().out
    assert stranger == 1
    assert "HTTP 401" in refused
    assert code == 0, said
