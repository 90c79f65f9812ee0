"""One connection to a server of Moshi's protocol, whichever server it is.

What differs between servers is found out, not configured: a handshake of 1 byte (Python) or of 9
(Rust: then two little-endian u32, the versions of protocol and model), metadata before or after it,
Opus in pages of 40 ms or others, kinds that are not known.

Source: kyutai-labs/moshi@e6a55d2 rust/protocol.md, rust/moshi-backend/src/stream_both.rs and
moshi/moshi/server.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, ConfigError, SessionError
from moshi_pipe.models.remote import shown_url, whole_url
from moshi_pipe.remote.failures import cannot_connect, judge_close
from moshi_pipe.server.messages import (
    Control,
    Kind,
    Message,
    MessageError,
    build,
    parse,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from moshi_pipe.models.remote import RemoteOptions

_OPEN_S: Final = 10.0
_CLOSE_S: Final = 2.0
_LONG_WAIT_S: Final = 5.0
_MAX_MESSAGE: Final = 1 << 20
_MAX_WAITING: Final = 64  # messages not yet read; then the server is held back
_RUST_HANDSHAKE: Final = struct.Struct("<II")

RUST_HANDSHAKE_BYTES: Final = 1 + _RUST_HANDSHAKE.size  # 9; the Python server's is 1

ANSWER_OFFSET: Final = 1
"""Frames of a conversation that have no answer. Source: kyutai-labs/moshi@e6a55d2
moshi/moshi/server.py: the model ignores what it hears in its first step."""

_RUST_ANSWER_OFFSET: Final = 2
"""As above. Source: the crate moshi 0.6.4, lm_generate_multistream.rs: Config::v0_1, which
moshi-backend takes unless it is told otherwise, holds all codes back by two steps."""


class Connection:
    """A conversation's websocket, after the handshake.

    Attributes:
        url: Of the server, without the query.
        facts: What the server said of itself: ``handshake`` (bytes), ``protocol``, ``metadata``.
        ignored: Messages that could not be used, by why.
    """

    def __init__(self, url: str, socket: Any) -> None:
        self.url = url
        self.facts: dict[str, Any] = {}
        self.ignored: Counter[str] = Counter()
        self._socket = socket
        self._said = ""  # the server's last error message

    @property
    def is_ours(self) -> bool:
        """Whether the server speaks the whole protocol: it is told of the end of the input."""
        return self.facts.get("session") is not None

    @property
    def answer_offset(self) -> int:
        """Frames of a new conversation that get no answer."""
        rust = self.facts.get("handshake") == RUST_HANDSHAKE_BYTES
        return _RUST_ANSWER_OFFSET if rust else ANSWER_OFFSET

    async def send(self, kind: Kind, payload: bytes) -> None:
        """Send a message; waits while the connection is full.

        Raises:
            LostError: The connection ended.
            SessionError: The server ended the conversation.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            await self._socket.send(build(kind, payload))
        except ConnectionClosed as error:
            raise self._judge(error) from error

    async def end_turn(self) -> None:
        """Tell the server that the input has ended."""
        await self.send(Kind.CONTROL, bytes([Control.END_TURN]))

    async def receive(self) -> Message:
        """The next message of a known kind.

        Raises:
            LostError: The connection ended.
            SessionError: The server ended the conversation.
        """
        from websockets.exceptions import ConnectionClosed

        while True:
            try:
                message = parse(await self._socket.recv())
            except ConnectionClosed as error:
                raise self._judge(error) from error
            except MessageError as error:
                self.ignored[error.code] += 1
                continue
            if message.kind is Kind.ERROR:
                self._said = message.payload.decode("utf-8", errors="replace")[:500]
            return message

    async def close(self) -> None:
        """End the connection, politely if the server lets us."""
        with suppress(Exception):  # nothing hangs on it any more
            await asyncio.wait_for(self._socket.close(1000), _CLOSE_S)
        self._socket.transport.abort()  # a server that only talks never hears a goodbye

    def closed_well(self) -> bool:
        """Whether the server closed the connection as one does after the last word."""
        return bool(self._socket.close_code == 1000)

    async def shake_hands(self, options: RemoteOptions, tell: Callable[[str], None]) -> None:
        """Wait until the server begins.

        Args:
            options: How long.
            tell: Given a sentence about the wait, for people.

        Raises:
            SessionError: It did not in time, or refused.
            LostError: The connection ended.
        """
        loop = asyncio.get_running_loop()
        began_s, place = loop.time(), ""
        told = False
        waiting = asyncio.ensure_future(self.receive())
        try:
            while True:
                waited_s = loop.time() - began_s
                limit_s = options.wait_s - waited_s
                if limit_s <= 0:
                    raise SessionError(
                        f"the server at {self.url} did not begin",
                        got=f"no handshake within {options.wait_s:g} s{place}",
                        fix="it may serve somebody else: try again later, or set model.wait_s",
                    )
                limit_s = limit_s if told else min(limit_s, _LONG_WAIT_S)
                await asyncio.wait({waiting}, timeout=limit_s)
                if not waiting.done():
                    if not told:
                        told = True
                        tell("connected; the server has not begun, it may serve somebody else")
                    continue
                message = waiting.result()
                if message.kind is Kind.HANDSHAKE:
                    self._read_handshake(message.payload)
                    return
                if message.kind is Kind.METADATA:
                    values = self.read_metadata(message.payload)
                    if values.get("type") == "queue":
                        told = True
                        place = f"; place {values.get('position')} of {values.get('waiting')}"
                        tell(f"waiting at the server{place}".replace(";", ","))
                waiting = asyncio.ensure_future(self.receive())
        finally:
            waiting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await waiting

    def read_metadata(self, payload: bytes) -> Mapping[str, Any]:
        """A JSON object; empty where it is none. Remembers what the server is."""
        try:
            values = json.loads(payload)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            self.ignored["bad_metadata"] += 1
            return {}
        if values.get("type") == "session":
            self.facts["session"] = values
        elif "type" not in values:  # the Rust servers describe themselves so
            self.facts["metadata"] = {
                str(k)[:64]: str(v)[:200] for k, v in list(values.items())[:32]
            }
        return values

    def _read_handshake(self, payload: bytes) -> None:
        self.facts["handshake"] = 1 + len(payload)
        if len(payload) == _RUST_HANDSHAKE.size:
            protocol, model = _RUST_HANDSHAKE.unpack(payload)
            self.facts |= {"protocol": protocol, "model_version": model}

    def _judge(self, closed: Any) -> Exception:
        frame = closed.rcvd
        code = None if frame is None else int(frame.code)
        return judge_close(self.url, code, "" if frame is None else frame.reason, self._said)


async def connect(
    options: RemoteOptions, query: dict[str, str], tell: Callable[[str], None]
) -> Connection:
    """Connect, and wait until the server begins.

    Args:
        options: Which server.
        query: Parameters of the conversation.
        tell: Given sentences about a wait, for people.

    Raises:
        BackendError: There is no such server, or it lets nobody in.
        ConfigError: A variable of the environment, or a file, is not there.
        SessionError: It refused this conversation.
        LostError: The connection ended before the handshake.
    """
    client = _websockets()
    url = whole_url(options.url, query)
    shown = shown_url(url)
    keywords: dict[str, Any] = {
        "additional_headers": headers(options),
        "compression": None,  # Opus does not get smaller
        "max_size": _MAX_MESSAGE,
        "max_queue": _MAX_WAITING,
        "open_timeout": _OPEN_S,
        "close_timeout": _CLOSE_S,
    }
    if url.startswith("wss:"):
        keywords["ssl"] = tls_context(options)
    try:
        # Awaited, it tries once; used as an iterator it would try for ever.
        socket = await client.connect(url, **keywords)
    except Exception as error:  # each layer below has its own
        raise cannot_connect(shown, options, error) from error
    connection = Connection(shown, socket)
    try:
        await connection.shake_hands(options, tell)
    except BaseException:
        await connection.close()
        raise
    return connection


def headers(options: RemoteOptions) -> dict[str, str]:
    """What lets us in: a token of moshi-pipe, or a key of moshi-server.

    Raises:
        ConfigError: The environment lacks it.
    """
    made = {}
    for key, name, form in (
        ("token_env", "Authorization", "Bearer {}"),
        ("api_key_env", "kyutai-api-key", "{}"),
    ):
        variable = getattr(options, key)
        if variable is None:
            continue
        value = os.environ.get(variable)
        if not value:
            raise ConfigError(
                f"model.{key} names a variable that is not set",
                got=variable,
                fix=f"export {variable}=...",
            )
        made[name] = form.format(value)
    return made


def tls_context(options: RemoteOptions) -> ssl.SSLContext:
    """How the server's certificate is checked.

    Raises:
        ConfigError: The file of ``model.verify`` cannot be read.
    """
    import ssl

    if options.verify is False:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        file = options.verify if isinstance(options.verify, str) else None
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        raise ConfigError(
            "model.verify cannot be read",
            got=f"{options.verify}: {error.strerror or error}",
            wanted="true, false, or a PEM file of certificates",
        ) from error


def _websockets() -> Any:
    try:
        from websockets.asyncio import client
    except ImportError as error:
        raise BackendError(
            "a remote model needs the package websockets",
            fix="pip install 'moshi-pipe[client]'",
        ) from error
    return client
