"""The reference package's own server does what the corpus says that all servers do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("websockets")
pytest.importorskip("aiohttp")

from support.reference_server import ReferenceServer

from moshi_pipe.models.make_checkpoint import make_checkpoint
from moshi_pipe.server.conformance.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.parity


def test_the_reference_server_does_what_all_servers_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint(tmp_path, preset="tiny")
    with ReferenceServer(tmp_path) as server:
        code = main([server.url, "--reference", "--within", "30"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.count("ok  ") >= 10
