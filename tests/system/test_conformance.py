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


@pytest.mark.parametrize("late", ["drop_oldest", "slow_down"])
def test_our_server_does_all_of_the_protocol(
    late: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["device=cpu", "engine.slots=2", f"engine.late={late}", f"output_dir={tmp_path}/out"]
    with Server(tmp_path, *words) as server:
        code = main([server.url.replace("http", "ws", 1), "--within", "20"])
    said = capsys.readouterr().out
    assert code == 0, said
