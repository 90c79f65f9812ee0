"""Source ``telephone``: a websocket server that speaks Twilio's media streams."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.engine.clock import Clock, SystemClock
from moshi_pipe.errors import ConfigError, InputError
from moshi_pipe.graph.node import SessionInput, Source
from moshi_pipe.units import NS_PER_SECOND
from moshi_pipe_telephone import messages
from moshi_pipe_telephone.messages import CallError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from moshi_pipe_telephone.call import Call
    from moshi_pipe_telephone.options import TelephoneOptions

_MAX_UNKNOWN: Final = 8  # connections beyond max_calls that have not said yet what they are
_LINE_S: Final = 0.5  # that a call waits for another to end
_BEARER: Final = "bearer "
_log = logging.getLogger("moshi_pipe.telephone")  # what it says is shown above the live view


class TelephoneSource(Source):
    """One session per call, until :meth:`stop`.

    Whatever the other side does wrong ends its own connection with a close code that says so, and
    is counted in :attr:`refused`.

    Args:
        options: Where it listens.
        clock: That of the engine.
        on_ready: Called with the port once calls are taken.

    Attributes:
        refused: Number of connections that were refused or cut, by reason.

    Raises:
        ConfigError: An option is out of bounds, or the token is not there.
    """

    live = True
    takes = ("audio",)

    def __init__(
        self,
        options: TelephoneOptions,
        clock: Clock | None = None,
        on_ready: Callable[[int], None] | None = None,
    ) -> None:
        _check(options)
        self._options = options
        self._token = _token(options)
        self._clock = clock or SystemClock()
        self._on_ready = on_ready
        self._calls: set[Call] = set()
        self._num_unknown = 0
        self._num_calls = 0
        self._admitted: asyncio.Queue[Call | None] | None = None
        self._freed = asyncio.Event()
        self._stopped = False
        self.refused: Counter[str] = Counter()

    async def sessions(self) -> AsyncIterator[SessionInput]:
        """Listen, and give a session per call.

        Raises:
            InputError: The address cannot be listened on.
        """
        from websockets.asyncio.server import serve

        from moshi_pipe_telephone.call import CLOSE_S

        options = self._options
        self._admitted = asyncio.Queue()
        try:
            server = await serve(
                self._answer,
                options.host,
                options.port,
                process_request=self._look_at,
                max_size=messages.MAX_BYTES,
                max_queue=64,
                compression=None,
                ping_interval=None,  # a call that is silent for long is ended anyhow
                open_timeout=options.start_s,
                close_timeout=CLOSE_S,
                logger=logging.Logger("moshi_pipe_telephone", logging.CRITICAL + 1),
            )
        except OSError as error:
            raise InputError(
                f"cannot listen on {options.host}, port {options.port}",
                got=error.strerror or str(error),
                fix="choose another with source.port= and source.host=",
            ) from error
        try:
            port = server.sockets[0].getsockname()[1]
            _log.info("calls come in at ws://%s:%d%s", options.host, port, options.path)
            if self._on_ready is not None:
                self._on_ready(port)
            while not self._stopped and (call := await self._admitted.get()) is not None:
                yield call
        finally:
            server.close(close_connections=False)  # those that talk are told good-bye by their sink
            while not self._admitted.empty():  # those that nobody took have none
                if (call := self._admitted.get_nowait()) is not None:
                    call.done.set()

    def stop(self) -> None:
        """Take no further call, and end the input of those that last."""
        self._stopped = True
        for call in self._calls:
            call.hang_up("stopped")
        if self._admitted is not None:
            self._admitted.put_nowait(None)

    def _look_at(self, connection: Any, request: Any) -> Any:
        """Refuse before the handshake what can be refused then."""
        if request.path.partition("?")[0] != self._options.path:
            self._count("wrong path")
            return connection.respond(404, "no such path\n")
        if self._num_unknown >= _MAX_UNKNOWN:
            self._count("busy")
            return connection.respond(503, "busy\n")
        return None

    async def _answer(self, connection: Any) -> None:
        """Serve one connection to its end."""
        from websockets.exceptions import ConnectionClosed

        call: Call | None = None
        try:
            call = await self._begin(connection)
            await self._listen(connection, call)
        except CallError as error:
            self._refuse(call, error.reason)
            await self._close(connection, call, error)
        except ConnectionClosed as error:
            if error.sent is not None and error.sent.code == messages.TOO_LARGE:
                self._refuse(call, "too large")
            elif call is None:
                self._count("no start")
        finally:
            self._freed.set()
            if call is not None:
                call.hang_up("closed")  # unless there was a reason before
                try:
                    await call.done.wait()
                finally:
                    self._calls.discard(call)

    async def _begin(self, connection: Any) -> Call:
        """Wait for the start of a call, and admit it.

        Raises:
            CallError: It does not begin as a call does, or may not.
        """
        from moshi_pipe_telephone.call import Call

        self._num_unknown += 1
        try:
            start = await asyncio.wait_for(_start(connection), self._options.start_s)
        except asyncio.TimeoutError as error:
            raise CallError(messages.NOT_ALLOWED, "no start") from error
        finally:
            self._num_unknown -= 1
        self._check_token(connection, start)
        await self._wait_for_line()
        if self._stopped or self._admitted is None:
            raise CallError(messages.BUSY, "busy")
        self._num_calls += 1
        name = f"call-{time.strftime('%Y%m%d-%H%M%S')}-{self._num_calls}"
        behind_ms = self._options.max_behind_ms
        call = Call(name, start, connection, self._clock, max_behind_ms=behind_ms)
        call.refused = self.refused
        self._calls.add(call)
        self._admitted.put_nowait(call)
        return call

    async def _wait_for_line(self) -> None:
        """Return when a line is free; who calls as another hangs up need not call again.

        Raises:
            CallError: None is for a while.
        """
        until_s = self._now_s() + _LINE_S
        while sum(call.ended is None for call in self._calls) >= self._options.max_calls:
            left_s = until_s - self._now_s()
            if left_s <= 0:
                raise CallError(messages.BUSY, "busy")
            self._freed.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._freed.wait(), left_s)

    async def _listen(self, connection: Any, call: Call) -> None:
        """Read until the call ends.

        Raises:
            CallError: The other side does what it may not.
            ConnectionClosed: It is gone.
        """
        options, now_s = self._options, self._now_s
        ends_s = now_s() + (options.duration_s or float("inf"))
        idle_s = now_s() + options.idle_s
        while call.ended is None:
            left_s = min(ends_s, idle_s) - now_s()
            try:
                message = messages.parse(await asyncio.wait_for(connection.recv(), left_s))
            except asyncio.TimeoutError:
                call.hang_up("limit" if now_s() >= ends_s else "idle")
                return
            if call.hear(message):
                idle_s = now_s() + options.idle_s

    def _check_token(self, connection: Any, start: messages.Start) -> None:
        if self._token is None:
            return
        header = connection.request.headers.get("Authorization", "")
        bearer = header[len(_BEARER) :] if header.lower().startswith(_BEARER) else ""
        for given in (bearer, start.parameters.get("token", "")):
            if hmac.compare_digest(given.encode(errors="replace"), self._token):
                return
        raise CallError(messages.NOT_ALLOWED, "wrong token")

    def _refuse(self, call: Call | None, reason: str) -> None:
        self._count(reason)
        if call is not None:
            call.warnings.append(f"the call was cut: {reason}")
            call.hang_up(reason)

    def _count(self, reason: str) -> None:
        self.refused[reason] += 1
        if self.refused[reason] == 1:  # strangers may try all day
            _log.warning("a call was refused: %s; further ones are only counted", reason)

    async def _close(self, connection: Any, call: Call | None, error: CallError) -> None:
        """Say why; a call that has begun is not sent to any more."""
        if call is not None:
            call.outbox.end()
        await connection.close(error.code, error.reason)

    def _now_s(self) -> float:
        return self._clock.now_ns() / NS_PER_SECOND


async def _start(connection: Any) -> messages.Start:
    """Read up to the start of a call.

    Raises:
        CallError: Something else comes first.
    """
    while True:
        message = messages.parse(await connection.recv())
        if isinstance(message, messages.Start):
            return message
        if not (isinstance(message, messages.Other) and message.event == "connected"):
            raise CallError(messages.NOT_ALLOWED, "start expected")


def _token(options: TelephoneOptions) -> bytes | None:
    """The token that calls must bring.

    Raises:
        ConfigError: It is not where the options say, or strangers could call without one.
    """
    if options.token_env:
        token = os.environ.get(options.token_env, "")
        if not token:
            raise ConfigError(
                f"the environment variable {options.token_env} holds no token",
                fix=f"set it, such as {options.token_env}=$(openssl rand -hex 16)",
            )
        return token.encode()
    if not _is_local(options.host):
        raise ConfigError(
            f"source.host={options.host} lets strangers call",
            wanted="127.0.0.1, or a token",
            fix="set source.token_env to the name of a variable that holds one",
        )
    return None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(options: TelephoneOptions) -> None:
    """Refuse what no call could meet.

    Raises:
        ConfigError: Names the option.
    """
    if not 0 <= options.port < 65536:
        raise ConfigError(f"source.port cannot be {options.port}", wanted="0 to 65535")
    if not options.path.startswith("/"):
        raise ConfigError(f"source.path cannot be '{options.path}'", wanted="a path such as /media")
    if options.max_calls < 1:
        raise ConfigError(f"source.max_calls cannot be {options.max_calls}", wanted="1 or more")
    for name in ("start_s", "idle_s", "duration_s", "max_behind_ms"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"source.{name} cannot be {value}", wanted="above 0")
