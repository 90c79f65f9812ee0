"""Why a server did not hold a conversation, in words that say what to do."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from moshi_pipe.errors import BackendError, MoshiPipeError, SessionError
from moshi_pipe.server.messages import Close

if TYPE_CHECKING:
    from moshi_pipe.models.remote import RemoteOptions

_LOGIN: Final = (
    "name the environment variable that holds the server's token with model.token_env=NAME, or a "
    "moshi-server's key with model.api_key_env=NAME"
)
_FIXES: Final = {
    400: "there is a server, and it holds no conversations there: check the path of model.url",
    401: _LOGIN,
    403: _LOGIN,
    404: "check the path of model.url: /api/chat is usual",
    429: "this address has too many connections there: lower engine.slots",
    503: "the server is not ready: try again later",
}


class LostError(Exception):
    """A connection ended before its conversation did; connecting again may help.

    Attributes:
        why: In a few words.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


class ResumeRefusedError(Exception):
    """The server no longer knows the conversation that was to be continued.

    Attributes:
        why: In its words.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


def cannot_connect(url: str, options: RemoteOptions, error: Exception) -> MoshiPipeError:
    """What to say when no connection came about."""
    response: Any = getattr(error, "response", None)
    if response is not None:
        status = int(response.status_code)
        made: MoshiPipeError = BackendError(
            f"the server at {url} refused the connection",
            got=f"HTTP {status} {response.reason_phrase}",
            fix=_FIXES.get(status, "check that model.url is a server of Moshi's protocol"),
        )
    elif isinstance(error, ssl.SSLCertVerificationError):
        made = BackendError(
            f"the certificate of {url} is not trusted",
            got=error.verify_message,
            fix="if it is your own: model.verify=FILE.pem checks it with that file, "
            "model.verify=false does not check it",
        )
    elif isinstance(error, ssl.SSLError):
        made = BackendError(
            f"no secure connection to {url}",
            got=error.reason or str(error),
            fix="a server without TLS has an address with ws://",
        )
    elif isinstance(error, TimeoutError | ConnectionResetError):
        made = BackendError(
            f"what is at {url} does not answer",
            got="nothing in time" if isinstance(error, TimeoutError) else "it hung up",
            fix="check host and port"
            + ("; a server without TLS has an address with ws://" if "wss:" in url else ""),
        )
    elif isinstance(error, OSError):
        said = error.strerror or str(error) or type(error).__name__
        made = BackendError(
            f"no server answers at {url}",
            got=said,
            fix="start it (moshi-pipe source=websocket sink=websocket), or set model.url",
        )
    else:
        secure = url.startswith("wss:")
        made = BackendError(
            f"what answers at {url} is no websocket server",
            got=f"{type(error).__name__}: {error}",
            fix="check model.url" if secure else "a server with TLS has an address with wss://",
        )
    made.__cause__ = error
    return made


def judge_close(url: str, code: int | None, reason: str, said: str) -> Exception:
    """What an end of a connection that nobody here asked for means.

    Args:
        url: Of the server.
        code: Of the close; None or 1006 when there was none.
        reason: Given with it.
        said: The server's last error message; empty without.
    """
    why = said or reason
    word = why.partition(":")[0].strip()
    if word == "resume_failed":
        return ResumeRefusedError(why)
    if code == Close.TRY_LATER or word in ("at_capacity", "too_many_connections"):
        return SessionError(
            f"the server at {url} has no room for a further conversation",
            got=why or f"close {code}",
            fix="try again later, or lower engine.slots",
        )
    if code in (Close.POLICY, Close.TOO_LARGE):
        fix = _LOGIN if word in ("unauthorized", "forbidden") else None
        return SessionError(
            f"the server at {url} ended the conversation", got=why or f"close {code}", fix=fix
        )
    if code is None or code == 1006:
        return LostError(why or "the connection broke")
    return LostError(f"the server closed the connection ({code}{f', {why}' if why else ''})")
