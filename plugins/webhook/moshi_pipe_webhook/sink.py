"""Sink ``webhook``: words with times, in messages that are numbered per session."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from moshi_pipe.errors import ConfigError
from moshi_pipe.graph.node import SessionEnd, SessionInfo, Sink
from moshi_pipe.nodes.words import Word, WordBuilder
from moshi_pipe_webhook.sender import Sender

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moshi_pipe.graph.packet import Packet
    from moshi_pipe_webhook.options import WebhookOptions

VERSION: Final = 1
"""Of the messages' form."""

_SENTENCE_ENDS: Final = (".", "?", "!", "…")
_log = logging.getLogger("moshi_pipe.webhook")  # what it says is shown above the live view


class WebhookSink(Sink):
    """Posts what the model says; never waits but at the end, and never fails a session.

    Messages are of three types: ``start``, ``words`` and ``end``. They are posted in order, and
    numbered from 0, so that the other side sees a gap where one was lost.

    Args:
        options: Where to.

    Raises:
        ConfigError: An option is out of bounds, or the secret is not there.
    """

    takes = ("text",)
    realtime = True

    def __init__(self, options: WebhookOptions) -> None:
        _check(options)
        self.options = options
        self._secret = _secret(options.secret_env)
        self._session: SessionInfo | None = None
        self._words: WordBuilder | None = None
        self._sender: Sender | None = None
        self._batch: list[dict[str, Any]] = []
        self._since_frame = 0  # of the first word of the batch
        self._seq = 0
        self._num_words = 0

    async def open(self, session: SessionInfo) -> None:
        """Say that the session starts.

        Raises:
            ConfigError: The graph makes no text.
        """
        if session.tokenizer is None or "text" not in session.formats:
            raise ConfigError(
                "sink=webhook needs the output 'text', which this graph does not make",
                fix="leave it out, or choose graph=dialogue or graph=transcribe",
            )
        self._session = session
        self._words = WordBuilder(session.tokenizer)
        self._sender = Sender(self.options, self._secret)
        self._sender.start()
        self._post("start", stem=str(session.meta.get("stem", session.id)))

    async def write(self, packet: Packet) -> None:
        """Take one token."""
        if self._words is None or self._session is None:
            raise RuntimeError("the webhook was not opened")
        self._add(self._words.push(int(packet.payload), packet.frame), packet.frame)
        waited_s = (packet.frame - self._since_frame) * self._session.frame_s
        if self._batch and 1000 * waited_s >= self.options.batch_ms:
            self._flush()

    async def close(self, end: SessionEnd) -> Mapping[str, Any]:
        """Post what is left, for ``flush_s`` at most."""
        sender, words = self._sender, self._words
        if sender is None or words is None:
            return {}
        self._add(words.finish(), end.num_frames)
        self._flush()
        lost = sender.counts().lost
        self._post("end", complete=end.complete, words=self._num_words, lost_messages=lost)
        counts = await asyncio.to_thread(sender.close, self.options.flush_s)
        if counts.lost:
            _log.warning(
                "%d of %d messages did not reach %s: %s",
                counts.lost,
                counts.messages,
                _shown(self.options.url),
                counts.last_error or "the time was up",
            )
        return {"sink": "webhook", "words": self._num_words, **asdict(counts)}

    def _add(self, words: Sequence[Word], frame: int) -> None:
        session = self._session
        for word in words:
            if session is None:
                return
            if not self._batch:
                self._since_frame = frame
            self._num_words += 1
            start_s = session.text_time_s(word.first_frame)
            end_s = session.text_time_s(word.last_frame + 1)
            self._batch.append({"text": word.text, "start_s": start_s, "end_s": end_s})
            if self.options.sentences and word.text.endswith(_SENTENCE_ENDS):
                self._flush()

    def _flush(self) -> None:
        if self._batch:
            text = " ".join(word["text"] for word in self._batch)
            self._post("words", text=text, words=self._batch)
            self._batch = []

    def _post(self, kind: str, **rest: Any) -> None:
        if self._sender is None or self._session is None:
            return
        session, seq = self._session.id, self._seq
        record = {"version": VERSION, "type": kind, "session": session, "seq": seq, **rest}
        self._seq += 1
        # The name of a file may hold bytes that are no text, and a header takes ASCII alone.
        body = json.dumps(record, ensure_ascii=False).encode(errors="replace")
        self._sender.put(body, f"{quote(session, safe='', errors='replace')}/{seq}")


def _secret(name: str) -> bytes | None:
    """The secret that the options name.

    Raises:
        ConfigError: It is not there.
    """
    if not name:
        return None
    secret = os.environ.get(name, "")
    if not secret:
        raise ConfigError(
            f"the environment variable {name} holds no secret",
            fix=f"set it, such as {name}=$(openssl rand -hex 32), or leave sink.webhook.secret_env",
        )
    return secret.encode()


def _check(options: WebhookOptions) -> None:
    """Refuse what nothing can be posted with.

    Raises:
        ConfigError: Names the option.
    """
    try:
        parts = urlsplit(options.url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        usable = usable and parts.port != 0 and options.url.isascii() and options.url.isprintable()
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"sink.webhook.url cannot be '{options.url}'",
            wanted="http:// or https:// and a host, such as https://example.org/words",
        )
    for name in ("batch_ms", "retries", "backoff_s", "max_backoff_s", "flush_s"):
        if not getattr(options, name) >= 0:
            raise ConfigError(
                f"sink.webhook.{name} cannot be {getattr(options, name)}", wanted="0 or more"
            )
    for name in ("queue_size", "timeout_s"):
        if not getattr(options, name) > 0:
            raise ConfigError(
                f"sink.webhook.{name} cannot be {getattr(options, name)}", wanted="above 0"
            )


def _shown(url: str) -> str:
    """A URL without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{'' if parts.port is None else f':{parts.port}'}"
