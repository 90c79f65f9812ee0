"""Plays a case against a server, and says what it did wrong."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from moshi_pipe.errors import BackendError
from moshi_pipe.server.conformance.notation import show
from moshi_pipe.server.messages import METADATA, AudioFormat, Kind
from moshi_pipe.server.opus import make_decoder

if TYPE_CHECKING:
    from moshi_pipe.server.conformance.case import Case, Step

FRAME_SAMPLES: Final = 1_920
"""Samples of a frame that a server sends."""

_FROM_SERVER: Final = (Kind.HANDSHAKE, Kind.AUDIO, Kind.TEXT, Kind.METADATA, Kind.ERROR, Kind.PING)
_LONGEST_LINE: Final = 50


class Wrong(Exception):
    """The server did what it should not, or not what it should."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server that is looked at.

    Attributes:
        url: ``ws://`` or ``wss://``, host and port.
        token: That it wants; None where it wants none.
        reference: Whether it is one of those that do only what all do.
        within_s: Seconds that it may take for anything.
        verify: Whether its certificate must be right.
    """

    url: str
    token: str | None = None
    reference: bool = False
    within_s: float = 10.0
    verify: bool = True

    def address(self, scheme: str, path: str) -> str:
        """A path of the server."""
        secure = urlsplit(self.url).scheme in ("wss", "https")
        return f"{scheme}{'s' if secure else ''}://{urlsplit(self.url).netloc}{path}"

    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def context(self) -> ssl.SSLContext | None:
        """For TLS; None without."""
        if urlsplit(self.url).scheme not in ("wss", "https"):
            return None
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


async def play(case: Case, target: Target) -> str | None:
    """Play a case; returns what the server did wrong, None if nothing.

    Raises:
        BackendError: A library is missing.
    """
    player = _Player(target)
    for number, step in enumerate(case.steps, start=1):
        try:
            await player.take(step)
        except Wrong as wrong:
            await player.leave()
            return f"step {number} ({step.verb}): {wrong}"
        except (OSError, EOFError) as error:
            await player.leave()
            return f"step {number} ({step.verb}): {error or type(error).__name__}"
    await player.leave()
    return None


class _Talk:
    """One connection, and what came on it."""

    def __init__(self, socket: Any, query: str, target: Target) -> None:
        self.socket = socket
        self.frames = 0.0
        self.session: dict[str, Any] = {}
        self._target = target
        form = parse_qs(query).get("audio", [AudioFormat.OGG_OPUS.value])[0]
        known = form in [one.value for one in AudioFormat]
        self._decoder = make_decoder(AudioFormat(form) if known else AudioFormat.OGG_OPUS)

    async def receive(self) -> bytes | None:
        """The next message, checked by what holds for all; None when the connection is closed."""
        from websockets.exceptions import ConnectionClosed

        try:
            message = await asyncio.wait_for(self.socket.recv(), self._target.within_s)
        except asyncio.TimeoutError:
            raise Wrong(f"nothing came for {self._target.within_s:g} s") from None
        except ConnectionClosed:
            return None
        if isinstance(message, str):
            raise Wrong("it sent a message that is text")
        self._check(message)
        return bytes(message)

    def _check(self, message: bytes) -> None:
        if not message or message[0] not in [kind.value for kind in _FROM_SERVER]:
            raise Wrong(f"servers do not send this: {show(message)}")
        kind, payload = Kind(message[0]), message[1:]
        if kind is Kind.AUDIO:
            self.frames += self._decoder.push(payload).size / FRAME_SAMPLES
            if self._decoder.num_faults:
                raise Wrong(f"its audio cannot be decoded: {show(message)}")
        elif kind in (Kind.TEXT, Kind.ERROR):
            try:
                payload.decode()
            except UnicodeDecodeError:
                raise Wrong(f"its text is not UTF-8: {payload!r}") from None
        elif kind is Kind.METADATA:
            values = read_json(payload)
            if values.get("type") == "session":
                self.session = values
            if values.get("type") not in METADATA and not self._target.reference:
                raise Wrong(f"there is no such metadata: {show(message)}")


class _Player:
    def __init__(self, target: Target) -> None:
        self._target = target
        self._talks: dict[str, _Talk] = {}
        self._token = ""

    async def take(self, step: Step) -> None:
        """Do a step.

        Raises:
            Wrong: The server did otherwise.
        """
        if step.verb == "connect":
            await self._connect(step)
        elif step.verb == "http":
            await self._http(step)
        else:
            await getattr(self, f"_{step.verb}")(self._talks[step.client], step)

    async def leave(self) -> None:
        """Close what is open."""
        for talk in self._talks.values():
            with suppress(Exception):
                await asyncio.wait_for(talk.socket.close(), self._target.within_s)

    async def _connect(self, step: Step) -> None:
        try:
            from websockets.asyncio.client import connect
            from websockets.exceptions import InvalidHandshake
        except ImportError as error:
            raise BackendError(
                "conformance needs the package websockets", fix="pip install 'moshi-pipe[server]'"
            ) from error
        query = str(step.value or "").format(token=self._token)
        path = "/api/chat" + (f"?{query}" if query else "")
        context = self._target.context()
        try:
            socket = await connect(
                self._target.address("ws", path),
                additional_headers=self._target.headers(),
                compression=None,
                max_size=None,
                open_timeout=self._target.within_s,
                **({} if context is None else {"ssl": context}),
            )
        except InvalidHandshake as error:
            raise Wrong(f"it does not let a client in: {error}") from error
        self._talks[step.client] = _Talk(socket, query, self._target)

    async def _begin(self, talk: _Talk, step: Step) -> None:
        for _ in range(_LONGEST_LINE):
            message = await talk.receive()
            if message is None:
                raise Wrong(f"it closed instead of a handshake, with {_close_of(talk)}")
            if message[0] == Kind.HANDSHAKE:
                break
            in_line = message[0] == Kind.METADATA and (
                self._target.reference or read_json(message[1:]).get("type") == "queue"
            )
            if not in_line:
                raise Wrong(f"before the handshake came {show(message)}")
        else:
            raise Wrong("there is no end to the line")
        if self._target.reference:
            return
        if message != b"\x00":
            raise Wrong(f"the handshake is not one byte: {show(message)}")
        message = await talk.receive()
        if message is None or message[0] != Kind.METADATA:
            raise Wrong(f"after the handshake came no metadata but {show(message or b'')}")
        _compare({"type": "session", **(step.value or {})}, read_json(message[1:]))

    async def _send(self, talk: _Talk, step: Step) -> None:
        message: bytes = step.value
        cut = step.options.get("cut")
        messages = [message] * int(step.options.get("times", 1))
        if cut:
            parts = range(1, len(message), int(cut))
            messages = [message[:1] + message[at : at + int(cut)] for at in parts]
        from websockets.exceptions import ConnectionClosed

        for one in messages:
            try:
                await talk.socket.send(one)
            except ConnectionClosed:
                return  # why, the next step asks
            await asyncio.sleep(float(step.options.get("every_ms", 0)) / 1000)

    async def _send_text(self, talk: _Talk, step: Step) -> None:
        await talk.socket.send(str(step.value))

    async def _next(self, talk: _Talk, step: Step) -> None:
        message = await talk.receive()
        if message is None:
            raise Wrong(f"it closed with {_close_of(talk)} instead of {step.value.text}")
        if not step.value.matches(message):
            raise Wrong(f"it sent {show(message)} instead of {step.value.text}")
        if "json" in step.options:
            _compare(step.options["json"], read_json(message[1:]))

    async def _eventually(self, talk: _Talk, step: Step) -> None:
        while True:
            message = await talk.receive()
            if message is None:
                raise Wrong(f"it closed with {_close_of(talk)} before {step.value.text}")
            if step.value.matches(message):
                with_json = step.options.get("json")
                if with_json is None or _agrees(with_json, read_json(message[1:])):
                    return

    async def _audio(self, talk: _Talk, step: Step) -> None:
        while talk.frames < float(step.value):
            if await talk.receive() is None:
                came = f"{talk.frames:g} of {step.value} frames"
                raise Wrong(f"it closed with {_close_of(talk)} after {came}")

    async def _no_more_than(self, talk: _Talk, step: Step) -> None:
        if talk.frames > float(step.value):
            raise Wrong(f"it sent {talk.frames:g} frames, not {step.value}")

    async def _remember(self, talk: _Talk, _: Step) -> None:
        self._token = str(talk.session.get("resume", {}).get("token", ""))
        if not self._token:
            raise Wrong("the session has no token")

    async def _drop(self, talk: _Talk, _: Step) -> None:
        talk.socket.transport.abort()
        await talk.socket.wait_closed()

    async def _close(self, talk: _Talk, step: Step) -> None:
        await talk.socket.close(int(step.value))
        if talk.socket.protocol.close_rcvd is None:
            raise Wrong("it did not answer the close")

    async def _closed(self, talk: _Talk, step: Step) -> None:
        while await talk.receive() is not None:
            pass
        code, reason = step.value
        got = talk.socket.protocol.close_rcvd
        if got is None or got.code != code or not got.reason.startswith(reason):
            raise Wrong(f"it closed with {_close_of(talk)}, not {code} {reason}".rstrip())

    async def _http(self, step: Step) -> None:
        path, status, pattern = step.value
        got, body = await asyncio.to_thread(self._get, path)
        wanted = status.replace("x", "")
        if not str(got).startswith(wanted):
            raise Wrong(f"{path} answers {got}, not {status}")
        if not pattern.matches(body):
            raise Wrong(f"{path} answers {body[:100]!r}, not {pattern.text}")
        if "json" in step.options:
            _compare(step.options["json"], read_json(body))

    def _get(self, path: str) -> tuple[int, bytes]:
        request = urllib.request.Request(
            self._target.address("http", path), headers=self._target.headers()
        )
        try:
            with urllib.request.urlopen(
                request, timeout=self._target.within_s, context=self._target.context()
            ) as answer:
                return int(answer.status), bytes(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


def read_json(payload: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Wrong: It is none.
    """
    try:
        values = json.loads(payload)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise Wrong(f"this is no JSON object: {payload[:100]!r}")
    return values


def _agrees(wanted: Any, got: Any) -> bool:
    """Whether a value is what is wanted, or, of an object, has it."""
    if isinstance(wanted, dict):
        return isinstance(got, dict) and all(
            key in got and _agrees(one, got[key]) for key, one in wanted.items()
        )
    return bool(wanted == got)


def _compare(wanted: dict[str, Any], got: dict[str, Any]) -> None:
    for key, one in wanted.items():
        if not _agrees(one, got.get(key)):
            raise Wrong(f"{key} is {got.get(key)!r}, not {one!r}")


def _close_of(talk: _Talk) -> str:
    got = talk.socket.protocol.close_rcvd
    return "no close" if got is None else f"{got.code} {got.reason}".rstrip()
