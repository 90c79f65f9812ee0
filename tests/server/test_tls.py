"""Certificates that are made on demand."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from moshi_pipe.errors import BackendError
from moshi_pipe.server.options import ServerOptions
from moshi_pipe.server.tls import prepare_tls

if TYPE_CHECKING:
    from pathlib import Path


def test_without_the_package_that_makes_certificates_its_name_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(BackendError, match=r"^server.self_signed=true needs a package") as caught:
        prepare_tls(ServerOptions(self_signed=True), tmp_path)
    assert "pip install 'moshi-pipe[server]'" in str(caught.value)
