"""Who may come in, and how much they may do: tokens, origins, connections, rates, log lines."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import socket
from collections import Counter, deque
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from moshi_pipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from moshi_pipe.server.options import ServerOptions

MAX_BAD: Final = 10
"""Messages that are none, within :data:`BAD_S`, before a client is sent away."""

BAD_S: Final = 10.0

_LOG_LINES: Final = 20  # at once, and within
_LOG_S: Final = 10.0
_LOG_CHARS: Final = 300
_SPARE_SOCKETS: Final = 64  # beside those of conversations: pages, probes, metrics


class Bucket:
    """A rate that bursts are taken from: so much per second, so much at once.

    Args:
        per_s: What comes back every second.
        burst: What there is at most, and at the beginning.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._at_s: float | None = None

    def take(self, now_s: float, count: float = 1) -> bool:
        """Take, if there is enough."""
        if self._at_s is not None:
            self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < count:
            return False
        self._left -= count
        return True

    def wait_s(self, count: float = 1) -> float:
        """Seconds after the last :meth:`take` until there is enough."""
        return max(0.0, (count - self._left) / self._per_s)


class BadMessages:
    """Counts messages that are none, and says when it is enough."""

    def __init__(self) -> None:
        self._at_s: deque[float] = deque(maxlen=MAX_BAD + 1)

    def too_many(self, now_s: float) -> bool:
        """Count one; whether it is one too many."""
        self._at_s.append(now_s)
        return len(self._at_s) > MAX_BAD and now_s - self._at_s[0] <= BAD_S


class Connections:
    """Counts connections, in all and by address; of IPv6, by network of 64 bits.

    Args:
        in_all: Most at once.
        per_address: Most at once from one address.
    """

    def __init__(self, in_all: int, per_address: int) -> None:
        self._in_all = in_all
        self._per_address = per_address
        self._counts: Counter[str] = Counter()
        self.total = 0

    @classmethod
    def of_sockets(cls, options: ServerOptions) -> Connections:
        """Of connections of every kind: some more than those that may converse."""
        return cls(
            options.max_connections + _SPARE_SOCKETS,
            options.connections_per_address + _SPARE_SOCKETS,
        )

    def enter(self, address: str) -> str | None:
        """Count one in; or say why not: ``address`` or ``all``."""
        key = _network(address)
        if self.total >= self._in_all:
            return "all"
        if self._counts[key] >= self._per_address:
            return "address"
        self._counts[key] += 1
        self.total += 1
        return None

    def leave(self, address: str) -> None:
        """Count one out that was let in."""
        key = _network(address)
        self.total -= 1
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]


class Doorman:
    """Checks tokens and origins.

    Args:
        options: Of the server.
        token: What clients must bring; None asks for nothing.
        names: Names of this machine, besides addresses and ``localhost``.
    """

    def __init__(
        self, options: ServerOptions, token: str | None, names: frozenset[str] = frozenset()
    ) -> None:
        self._token = None if token is None else token.encode()
        self._any = "*" in options.origins
        self._origins = {parse_origin(one) for one in options.origins}
        self._names = names | {"localhost", options.host.lower()}

    @property
    def asks(self) -> bool:
        """Whether a token is needed."""
        return self._token is not None

    def knows(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """Whether the token comes along: ``Authorization: Bearer TOKEN``, or ``?token=TOKEN``."""
        if self._token is None:
            return True
        scheme, _, brought = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            brought = query.get("token", "")
        return hmac.compare_digest(brought.strip().encode(errors="replace"), self._token)

    def trusts(self, origin: str | None, host: str | None) -> bool:
        """Whether a web page of this origin may connect; what is no browser sends none.

        A page of the server's own host may, where that is an address or a name of this machine. A
        foreign name that leads here may be a page that waits for the browser to look it up anew
        (DNS rebinding), so it is trusted only where a token is asked for.

        Args:
            origin: ``Origin`` of the request.
            host: ``Host`` of the request, with its port.
        """
        if origin is None or self._any:
            return True
        asked = parse_origin(origin)
        if asked is None:
            return False
        if asked in self._origins:
            return True
        scheme, name, _ = asked
        if not host or parse_origin(f"{scheme}://{host}") != asked:
            return False
        return self.asks or name in self._names or _is_address(name)


def read_token(options: ServerOptions, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token that clients must bring; None where none is asked for.

    Raises:
        ConfigError: The variable that should hold it is not set.
    """
    if options.token_env is None:
        return None
    token = environment.get(options.token_env, "").strip()
    if not token:
        raise ConfigError(f"the environment variable {options.token_env} holds no token")
    return token


def machine_names() -> frozenset[str]:
    """Names of this machine."""
    name = socket.gethostname().lower()
    return frozenset({name, f"{name}.local", name.partition(".")[0]} - {""})


def escaped(text: str, limit: int = _LOG_CHARS) -> str:
    """What a client sent, as one line of ASCII that is fit for a log."""
    line = text[:limit].encode("unicode_escape").decode("ascii")
    return line[:limit] + ("..." if len(text) > limit or len(line) > limit else "")


class LogLines(logging.Handler):
    """Hands log lines on: escaped, short, and not too many.

    Args:
        send: Takes the level's name and the line.
        now_s: The time, in seconds.
    """

    def __init__(self, send: Callable[[str, str], None], now_s: Callable[[], float]) -> None:
        super().__init__(logging.WARNING)
        self._send = send
        self._now_s = now_s
        self._bucket = Bucket(_LOG_LINES / _LOG_S, _LOG_LINES)
        self._left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on."""
        if not self._bucket.take(self._now_s()):
            self._left_out += 1
            return
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                error = record.exc_info[1]
                text = f"{text.strip()}: {type(error).__name__}: {error}"
        except Exception as error:  # a record that cannot be put together must not end a client
            text = f"{record.msg}: {error}"
        if self._left_out:
            text = f"{text} ({self._left_out} lines before it were left out)"
            self._left_out = 0
        self._send(record.levelname.lower(), escaped(text, 4 * _LOG_CHARS))


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def parse_origin(text: str) -> tuple[str, str, int] | None:
    """Scheme, name and port of an origin; None if it is none, such as ``null``."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return parts.scheme, parts.hostname.lower(), port or (443 if parts.scheme == "https" else 80)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
