"""What a config may set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class WebhookOptions:
    """Where words are posted, and how long it is tried.

    Attributes:
        url: Takes the messages, by POST; ``http://`` or ``https://``.
        secret_env: Name of the environment variable with the secret that signs each body; empty
            signs none.
        batch_ms: How long a word may wait for others, on the session's time line; 0 posts each
            alone.
        sentences: Also post when a sentence ends.
        queue_size: Messages that wait at most; the oldest is dropped and counted.
        timeout_s: How long one try may take to connect, and to be answered.
        retries: Further tries after an error of the network, 408, 425, 429 or 5xx.
        backoff_s: Pause before the first of them; doubles each time. ``Retry-After`` is heeded.
        max_backoff_s: The longest pause.
        flush_s: How long the end of a session waits for what is not posted yet.
    """

    url: str = "???"
    secret_env: str = ""
    batch_ms: int = 1000
    sentences: bool = True
    queue_size: int = 256
    timeout_s: float = 5.0
    retries: int = 4
    backoff_s: float = 0.5
    max_backoff_s: float = 10.0
    flush_s: float = 10.0
