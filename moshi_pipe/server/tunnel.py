"""A public address for a server that nobody outside reaches: ``server.tunnel=ngrok``.

The service sees all that goes through it. What comes out of the tunnel reaches the server from the
loopback, as of one address.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, ConfigError, closest

if TYPE_CHECKING:
    from moshi_pipe.server.options import ServerOptions

TUNNELS: Final = ("ngrok",)
"""Services that there are; gradio's needs a program that no package brings."""

_TOKEN: Final = "NGROK_AUTHTOKEN"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel that is open.

    Attributes:
        url: Its public address, which belongs into ``server.origins``.
    """

    url: str
    _listener: Any

    async def close(self) -> None:
        """Close it."""
        await self._listener.close()


def check_tunnel(options: ServerOptions) -> None:
    """Refuse a tunnel that there is not, and one that would let strangers in unasked.

    Raises:
        ConfigError: Says what to do.
    """
    if options.tunnel is None:
        return
    if options.tunnel not in TUNNELS:
        raise ConfigError(
            f"there is no tunnel '{options.tunnel}'", wanted=closest(options.tunnel, TUNNELS)
        )
    if options.token_env is None and not options.open:
        raise ConfigError(
            f"server.tunnel={options.tunnel} would let in anyone who finds the address",
            got="no server.token_env",
            fix="set server.token_env to the name of a variable that holds a token, "
            "or server.open=true if that is meant",
        )


async def open_tunnel(options: ServerOptions, port: int) -> Tunnel | None:
    """Open the tunnel that the options name; None where they name none.

    Args:
        options: Of the server.
        port: Where it listens.

    Raises:
        ConfigError: There is no such tunnel, or it would let strangers in unasked.
        BackendError: Its package is not installed, or the service does not let it open.
    """
    check_tunnel(options)
    if options.tunnel is None:
        return None
    try:
        import ngrok
    except ImportError as error:
        raise BackendError(
            "server.tunnel=ngrok needs a package that is not installed",
            got="no ngrok",
            fix="pip install 'moshi-pipe[tunnel]'",
        ) from error
    if not os.environ.get(_TOKEN):
        raise BackendError(
            "ngrok does not open tunnels for strangers",
            got=f"{_TOKEN} is not set",
            fix=f"set {_TOKEN} to the token of your account, see dashboard.ngrok.com",
        )
    scheme = "http" if options.tls_cert is None else "https"
    host = options.host if options.host not in ("", "0.0.0.0", "::") else "127.0.0.1"
    target = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        listener = await ngrok.forward(target, authtoken_from_env=True, verify_upstream_tls=False)
    except Exception as error:  # of many kinds, none of which the package names
        raise BackendError(
            "ngrok did not open a tunnel",
            got=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            fix=f"check {_TOKEN}, and that the service can be reached",
        ) from error
    return Tunnel(str(listener.url()), listener)
