"""A model that runs elsewhere: where its server is, and how it is spoken to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from moshi_pipe.errors import ConfigError, closest

DEFAULT_PATH: Final = "/api/chat"
"""Where the reference's servers, and ours, hold conversations."""

AUDIO_FORMATS: Final = ("ogg_opus", "pcm_s16le", "pcm_f32le")

_SCHEMES: Final = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


@dataclass
class RemoteOptions:
    """Where a remote model is, and how it is spoken to.

    Attributes:
        name: How the model is called in messages.
        url: Its server, such as ``ws://host:8998``; without a path ``/api/chat`` is meant.
        audio: ``ogg_opus``, or ``pcm_s16le`` or ``pcm_f32le`` where the server is moshi-pipe.
        pace: How fast recordings are sent, in seconds of audio per second; None sends as fast as
            answers come, for servers that lose nothing (``engine.late=slow_down``).
        verify: Whether the server's certificate must be good; or a PEM file to check it with.
        token_env: Environment variable that holds the token of a moshi-pipe server.
        api_key_env: Environment variable that holds the key of a moshi-server.
        max_s: Longest conversation to ask for, in seconds; None leaves it to the server.
        wait_s: Longest wait for the server to begin, in seconds.
        silence_s: Seconds without a message after which the connection counts as lost.
        reconnect: Attempts to connect again after a connection was lost; 0 ends the session.
    """

    name: str = "remote"
    url: str = "ws://127.0.0.1:8998"
    audio: str = "ogg_opus"
    pace: float | None = 1.0
    verify: Any = True
    token_env: str | None = None
    api_key_env: str | None = None
    max_s: float | None = None
    wait_s: float = 120.0
    silence_s: float = 10.0
    reconnect: int = 5

    @property
    def place(self) -> str:
        """The whole address, for people: without what may be secret."""
        return shown_url(whole_url(self.url))

    def problems(self) -> list[str]:
        """What is wrong with the values, a sentence each."""
        found = []
        if self.audio not in AUDIO_FORMATS:
            found.append(
                f"model.audio cannot be '{self.audio}': {closest(self.audio, AUDIO_FORMATS)}"
            )
        for key in ("pace", "max_s", "wait_s", "silence_s"):
            number = getattr(self, key)
            if number is not None and not number > 0:
                found.append(f"model.{key} cannot be {number}: above 0")
        if self.reconnect < 0:
            found.append(f"model.reconnect cannot be {self.reconnect}: at least 0")
        if not isinstance(self.verify, bool | str):
            found.append(f"model.verify cannot be {self.verify}: true, false, or a PEM file")
        try:
            whole_url(self.url)
        except ConfigError as error:
            found.append(f"model.url cannot be '{self.url}': {error.wanted}")
        return found


def whole_url(url: str, query: dict[str, str] | None = None) -> str:
    """Address of the websocket that a user means.

    Args:
        url: ``ws://``, ``wss://``, ``http://`` or ``https://``, or only ``host:port``.
        query: Parameters to add to those that it has.

    Raises:
        ConfigError: It is no such address.
    """
    wanted = "an address such as ws://127.0.0.1:8998 or wss://host:8998"
    try:
        parts = urlsplit(url if "://" in url else f"ws://{url}")
        port_is_right = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ConfigError(
            f"cannot read the address '{url}'", got=str(error), wanted=wanted
        ) from error
    if parts.scheme not in _SCHEMES or not parts.hostname or not port_is_right or parts.fragment:
        raise ConfigError(f"cannot read the address '{url}'", wanted=wanted)
    path = parts.path if parts.path not in ("", "/") else DEFAULT_PATH
    pairs = [*parse_qsl(parts.query, keep_blank_values=True), *(query or {}).items()]
    return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, path, urlencode(pairs), ""))


def shown_url(url: str) -> str:
    """An address for people and records: without what may be secret, its query and its user."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
