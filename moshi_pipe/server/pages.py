"""The web page: its files, read once, and the headers that every answer carries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

WEB: Final = Path(__file__).resolve().parent.parent / "web"
"""Where the page's files are."""

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",  # the address may hold a token
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer over HTTP."""


@dataclass(frozen=True, slots=True)
class Page:
    """A file of the web page.

    Attributes:
        body: Its bytes.
        media_type: Of them.
        etag: Changes with them.
    """

    body: bytes
    media_type: str
    etag: str


def read_pages(folder: Path = WEB) -> dict[str, Page]:
    """Files by the path of their address; ``/`` is ``index.html``.

    What a client asks for is only looked up here, it never becomes a path. Files of other kinds
    than a page is made of, and hidden ones, are left out.
    """
    pages = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith((".", "_")) for part in name.parts)
        if hidden or file.suffix not in _TYPES or not file.is_file():
            continue
        body = file.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        pages[f"/{name.as_posix()}"] = Page(body, _TYPES[file.suffix], etag)
    if "/index.html" in pages:
        pages["/"] = pages["/index.html"]
    return pages


class SecureHeaders:
    """Adds :data:`HEADERS` to the answers of an application.

    Args:
        app: The application.
        headers: What to add.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        await self._app(scope, receive, send_with_headers)
