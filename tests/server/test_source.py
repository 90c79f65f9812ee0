"""What a server refuses before it serves."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from typing import Any

import pytest

from moshi_pipe.errors import BackendError, ConfigError, InputError
from moshi_pipe.server import source
from moshi_pipe.server.listening import is_loopback, listen, url
from moshi_pipe.server.options import EdgeOptions, ServerOptions, WebsocketOptions
from moshi_pipe.server.source import WebsocketSource


def make(edge: EdgeOptions | None = None, **options: Any) -> WebsocketSource:
    server = replace(ServerOptions(), **options)
    return WebsocketSource(WebsocketOptions(server, edge or EdgeOptions()))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_this_machine_alone_needs_no_token(host: str) -> None:
    make(host=host)
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "example.org"])
def test_strangers_come_in_only_when_that_is_meant(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"^server.host={host} lets strangers in\n") as caught:
        make(host=host)
    assert "server.token_env" in str(caught.value)
    assert "server.open=true" in str(caught.value)
    make(host=host, open=True)
    monkeypatch.setenv("WORD", "x" * 16)
    make(host=host, token_env="WORD")


def test_a_token_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("", " "):
        monkeypatch.setenv("WORD", word)
        with pytest.raises(ConfigError, match=r"^the environment variable WORD holds no token\n"):
            make(token_env="WORD")
    monkeypatch.delenv("WORD")
    with pytest.raises(ConfigError, match=r"^the environment variable WORD holds no token\n"):
        make(token_env="WORD")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"port": 70_000}, "server.port cannot be 70000"),
        ({"max_s": 0.0}, "server.max_s cannot be 0.0"),
        ({"max_s": float("nan")}, "server.max_s cannot be nan"),
        ({"max_waiting": -1}, "server.max_waiting cannot be -1"),
        ({"tls_cert": "/nowhere"}, "a certificate and its key belong together"),
        ({"tls_cert": "/nowhere", "tls_key": "/nowhere"}, "server.tls_cert is no file"),
        ({"origins": ["*", "example.org"]}, "server.origins holds what is no origin"),
        ({"edge": EdgeOptions(0)}, "edge.processes cannot be 0"),
    ],
)
def test_what_cannot_be_served_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(what)}\n"):
        make(**options)


def test_a_port_in_use_is_said_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"^cannot listen on 127.0.0.1, port {port}\n"):
            make(port=port).num_sessions()


def test_a_host_of_several_addresses_has_one_port() -> None:
    sockets = listen("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
    finally:
        for one in sockets:
            one.close()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ServerOptions(), "http://127.0.0.1:8998"),
        (ServerOptions(self_signed=True), "https://127.0.0.1:8998"),
        (ServerOptions(host="::1"), "http://[::1]:8998"),
        (ServerOptions(host="0.0.0.0"), f"http://{socket.gethostname()}:8998"),
    ],
)
def test_the_address_is_one_that_a_browser_opens(options: ServerOptions, expected: str) -> None:
    assert url(options, options.port) == expected


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(BackendError, match=r"^source=websocket needs packages") as caught:
        make()
    assert "no uvicorn" in str(caught.value)
    assert "pip install 'moshi-pipe[server]'" in str(caught.value)
