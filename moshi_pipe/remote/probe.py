"""A conversation that is begun and ended at once: is there a server, and which?"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import SessionError
from moshi_pipe.remote.connection import RUST_HANDSHAKE_BYTES, Connection, connect
from moshi_pipe.remote.failures import LostError, ResumeRefusedError
from moshi_pipe.server.messages import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moshi_pipe.models.remote import RemoteOptions

_WAIT_S: Final = 5.0
_INTRODUCTION_S: Final = 1.0  # a server that says what it is does so at once


@dataclass(frozen=True, slots=True)
class Probe:
    """What answered.

    Attributes:
        url: Of the server, without what may be secret.
        began_s: From connecting to the handshake.
        what: The server, in a few words.
    """

    url: str
    began_s: float
    what: str


def probe(options: RemoteOptions) -> Probe:
    """Begin a conversation and end it.

    Raises:
        BackendError: There is no such server, or it lets nobody in.
        ConfigError: A variable of the environment, or a file, is not there.
        SessionError: It holds no conversation now.
    """
    return asyncio.run(_probe(replace(options, wait_s=min(options.wait_s, _WAIT_S))))


async def _probe(options: RemoteOptions) -> Probe:
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    query = {} if options.audio == "ogg_opus" else {"audio": options.audio}
    try:
        connection = await connect(options, query, lambda _: None)
    except (LostError, ResumeRefusedError) as error:
        raise SessionError(
            "the server ended the conversation before it began", got=error.why
        ) from error
    began_s = loop.time() - start_s
    try:
        with suppress(asyncio.TimeoutError, LostError):
            await asyncio.wait_for(_introduction(connection), _INTRODUCTION_S)
    finally:
        await connection.close()
    return Probe(connection.url, began_s, _what(connection.facts))


async def _introduction(connection: Connection) -> None:
    while not connection.is_ours:
        message = await connection.receive()
        if message.kind is Kind.METADATA:
            connection.read_metadata(message.payload)


def _what(facts: Mapping[str, Any]) -> str:
    session = facts.get("session")
    if session is not None:
        return f"{str(session.get('server'))[:60]}, model {str(session.get('model'))[:60]}"
    if facts["handshake"] == RUST_HANDSHAKE_BYTES:
        return "it speaks as the Rust servers"
    return "it speaks as the Python server"
