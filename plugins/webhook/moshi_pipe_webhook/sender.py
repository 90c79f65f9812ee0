"""Posts messages in order, on a thread of its own."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from moshi_pipe_webhook.options import WebhookOptions

SIGNATURE: Final = "X-Moshi-Pipe-Signature"
"""Header with ``sha256=`` and the HMAC-SHA256 of the body, in hex."""

_AGAIN: Final = (408, 425, 429)  # of 4xx, those that may pass
_MAX_ANSWER: Final = 65_536  # bytes of an answer that are read, to use the connection again


@dataclass(slots=True)
class Counts:
    """What became of messages.

    Attributes:
        messages: Put.
        delivered: Answered with 2xx.
        retries: Tries beyond the first.
        dropped: Forgotten because too many waited.
        failed: Refused, or given up after the last try.
        unsent: Not delivered when the time was up; the last of them may have arrived all the same.
        last_error: What went wrong last; None while nothing did.
    """

    messages: int = 0
    delivered: int = 0
    retries: int = 0
    dropped: int = 0
    failed: int = 0
    unsent: int = 0
    last_error: str | None = None

    @property
    def lost(self) -> int:
        """Messages that were not delivered."""
        return self.dropped + self.failed + self.unsent


class Sender:
    """Posts each message until it is taken, given up or the time is up.

    :meth:`put` never waits. What the network or the other side does is counted, never raised.

    Args:
        options: Where to, and how often.
        secret: Signs bodies; None signs none.
    """

    def __init__(self, options: WebhookOptions, secret: bytes | None = None) -> None:
        self._options = options
        self._secret = secret
        self._waiting: deque[tuple[bytes, str]] = deque()
        self._busy = False
        self._ended = False
        self._changed = threading.Condition()
        self._given_up = threading.Event()
        self._counts = Counts()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def put(self, body: bytes, key: str) -> None:
        """Queue a message.

        Args:
            body: JSON.
            key: Names it among all messages; the same at every try.
        """
        with self._changed:
            self._counts.messages += 1
            if len(self._waiting) >= self._options.queue_size:
                self._waiting.popleft()
                self._counts.dropped += 1
            self._waiting.append((body, key))
            self._changed.notify()

    def counts(self) -> Counts:
        """What became of the messages so far."""
        with self._changed:
            return replace(self._counts)

    def close(self, timeout_s: float) -> Counts:
        """Post what waits, for so long at most; may be called from any thread but the loop's."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._given_up.set()
            self._counts.unsent += len(self._waiting) + self._busy
            self._waiting.clear()
            return replace(self._counts)

    def _run(self) -> None:
        import urllib3

        options = self._options
        timeout = urllib3.Timeout(connect=options.timeout_s, read=options.timeout_s)
        with urllib3.PoolManager(num_pools=1, timeout=timeout, retries=False) as pool:
            while (message := self._next()) is not None:
                delivered = self._deliver(pool, *message)
                with self._changed:
                    self._busy = False
                    if not self._given_up.is_set():  # else it was counted as unsent
                        self._counts.delivered += delivered
                        self._counts.failed += not delivered

    def _next(self) -> tuple[bytes, str] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return None
            self._busy = True
            return self._waiting.popleft()

    def _deliver(self, pool: Any, body: bytes, key: str) -> bool:
        """Try until it is taken, refused or given up."""
        pause_s = self._options.backoff_s
        for left in range(self._options.retries, -1, -1):
            status, error, wait_s = self._post(pool, body, key)
            if 200 <= status < 300:
                return True
            with self._changed:
                self._counts.last_error = error
            refused = 0 < status < 500 and status not in _AGAIN
            if refused or not left:
                return False
            if self._given_up.wait(min(max(pause_s, wait_s), self._options.max_backoff_s)):
                return False
            pause_s *= 2
            with self._changed:
                self._counts.retries += 1
        return False

    def _post(self, pool: Any, body: bytes, key: str) -> tuple[int, str, float]:
        """Try once.

        Returns:
            Status, 0 when there was no answer; what went wrong; seconds that the other side asks
            for.
        """
        from urllib3.exceptions import HTTPError

        headers = {
            "Content-Type": "application/json",
            "User-Agent": "moshi-pipe-webhook",
            "Idempotency-Key": key,
        }
        if self._secret is not None:
            headers[SIGNATURE] = sign(body, self._secret)
        try:
            response = pool.request(
                "POST",
                self._options.url,
                body=body,
                headers=headers,
                redirect=False,
                preload_content=False,
            )
            try:
                response.read(_MAX_ANSWER)
            finally:
                response.close()
        except (HTTPError, OSError, ValueError) as error:  # ValueError: a host that is no name
            return 0, f"{type(error).__name__}: {error}", 0.0
        asked = response.headers.get("Retry-After", "")
        status = int(response.status)
        return (
            status,
            f"status {status}",
            float(asked) if asked.isascii() and asked.isdigit() else 0.0,
        )


def sign(body: bytes, secret: bytes) -> str:
    """What :data:`SIGNATURE` holds for a body."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
