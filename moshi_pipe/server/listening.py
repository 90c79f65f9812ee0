"""Where a server listens: checks of its options, and sockets."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moshi_pipe.errors import ConfigError, InputError
from moshi_pipe.server.guard import parse_origin

if TYPE_CHECKING:
    from moshi_pipe.server.options import EdgeOptions, ServerOptions

_BACKLOG: Final = 256
_POSITIVE: Final = (
    "max_s",
    "idle_s",
    "outbox_s",
    "stall_s",
    "message_bytes",
    "messages_per_s",
    "max_connections",
    "connections_per_address",
)
_NOT_NEGATIVE: Final = ("max_waiting", "resume_s", "snapshot_mb", "drain_s")
_MOST_PROCESSES: Final = 64


def check_options(server: ServerOptions, edge: EdgeOptions) -> None:
    """Refuse what cannot be served, and what would let strangers in unasked.

    Raises:
        ConfigError: Names the option and what to do.
    """
    if not 0 <= server.port < 65536:
        raise ConfigError(f"server.port cannot be {server.port}", wanted="0 to 65535")
    for name in _POSITIVE:
        if not getattr(server, name) > 0:
            raise ConfigError(
                f"server.{name} cannot be {getattr(server, name)}", wanted="more than 0"
            )
    for name in _NOT_NEGATIVE:
        if not getattr(server, name) >= 0:
            raise ConfigError(
                f"server.{name} cannot be {getattr(server, name)}", wanted="0 or more"
            )
    if not 1 <= edge.processes <= _MOST_PROCESSES:
        raise ConfigError(
            f"edge.processes cannot be {edge.processes}", wanted=f"1 to {_MOST_PROCESSES}"
        )
    if (server.tls_cert is None) != (server.tls_key is None):
        raise ConfigError(
            "a certificate and its key belong together",
            got="one of server.tls_cert and server.tls_key",
            wanted="both, or neither",
        )
    for name in ("tls_cert", "tls_key"):
        path = getattr(server, name)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"server.{name} is no file", got=str(path), wanted="a PEM file")
    if server.self_signed and server.tls_cert is not None:
        raise ConfigError(
            "server.self_signed=true makes a certificate, and server.tls_cert gives one",
            fix="leave one of them out",
        )
    for origin in server.origins:
        if origin != "*" and parse_origin(origin) is None:
            raise ConfigError(
                "server.origins holds what is no origin",
                got=origin,
                wanted="https://example.org, or * for any",
            )
    _check_token(server)


def _check_token(server: ServerOptions) -> None:
    """Refuse to let strangers in unasked.

    Raises:
        ConfigError: Says how to ask for a token, or how to do without.
    """
    if server.token_env is not None:
        if not os.environ.get(server.token_env, "").strip():
            raise ConfigError(
                f"the environment variable {server.token_env} holds no token",
                fix=f"set it, such as {server.token_env}=$(openssl rand -hex 16)",
            )
        return
    if not is_loopback(server.host) and not server.open:
        raise ConfigError(
            f"server.host={server.host} lets strangers in",
            wanted="127.0.0.1, a token, or a word that it is meant",
            fix="set server.token_env to the name of a variable that holds one, "
            "or server.open=true",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host, at the same port.

    Args:
        host: A name or an address; empty is all.
        port: TCP port; 0 takes a free one.

    Raises:
        InputError: The port is in use, or not ours to take.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], port, *address[2:]))
            port = one.getsockname()[1]
            one.listen(_BACKLOG)
            one.setblocking(False)
    except OSError as error:
        for one in sockets:
            one.close()
        raise InputError(
            f"cannot listen on {host}, port {port}",
            got=error.strerror or str(error),
            fix="choose another with server.port= and server.host=; 0 takes a free port",
        ) from error
    return sockets


def url(server: ServerOptions, port: int) -> str:
    """What a person opens in a browser."""
    scheme = "https" if server.tls_cert is not None or server.self_signed else "http"
    host = server.host
    if host in ("", "0.0.0.0", "::"):
        host = socket.gethostname()
    if ":" in host:
        host = f"[{host}]"
    return f"{scheme}://{host}:{port}"
