"""Take the pictures of the web page: ``python scripts/web_pictures.py``, into docs/images/.

Needs Chromium, playwright and pngquant. The page talks with the server of the tests, so that the
pictures show the same words each time.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.browser import (  # noqa: E402
    DESKTOP,
    PHONE,
    open_browser,
    open_page,
    phase,
    talk,
    until,
)
from support.mock_server import MockServer  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

Theme = Literal["dark", "light"]
SIZES = {"web": DESKTOP, "web-phone": PHONE}
WORDS = 49  # that were said when the picture is taken
TRIES = 5  # to find the machine quiet
READY = """words =>
    [...document.querySelectorAll('#log > p')]
        .flatMap(paragraph => paragraph.textContent.split(' ')).length > words
    && [...document.querySelectorAll('.disc')].every(
        disc => disc.style.getPropertyValue('--level') > 0.55)"""


def main() -> None:
    """Take all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder")
    parser.add_argument("--all", action="store_true", help="also states that docs/ does not show")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, MockServer() as server, open_browser(playwright) as tab:
        server.behaviour.model, server.behaviour.random = "moshiko", False
        for name, size in SIZES.items():
            for theme in get_args(Theme):
                with open_page(tab, server.url, size=size, theme=theme) as page:
                    Camera(page, options.out, name, theme).take(server, every=options.all)


class Camera:
    """Takes pictures of one page.

    Args:
        page: The page.
        folder: Where they go.
        name: Their beginning.
        theme: Their end.
    """

    def __init__(self, page: Page, folder: Path, name: str, theme: Theme) -> None:
        self._page = page
        self._path = f"{folder}/{name}-{{}}-{theme}.png"

    def take(self, server: MockServer, *, every: bool) -> None:
        """Before and in a conversation; with ``every`` in all its states."""
        page = self._page
        self.shot("idle")
        if every:
            page.click("#open-settings")
            self.shot("settings")
            page.keyboard.press("Escape")
        for _ in range(TRIES):
            talk(page)
            page.mouse.move(0, 0)
            until(page, lambda: bool(page.evaluate(READY, WORDS)))
            self.shot("talking")
            if page.inner_text("#gaps") == page.inner_text("#dropped") == "none":
                break
            page.click("#talk")  # the machine was busy with something else
            phase(page, "over")
        else:
            talk(page)
        if every:
            page.keyboard.press("m")
            page.wait_for_timeout(600)
            self.shot("muted")
            server.cut()
            phase(page, "lost")
            self.shot("lost")
            phase(page, "live")
            page.click("#talk")
            page.wait_for_timeout(400)
            self.shot("over")

    def shot(self, state: str) -> None:
        """Take one, and make it small."""
        path = self._path.format(state)
        self._page.screenshot(path=path)
        pngquant = shutil.which("pngquant")
        if pngquant:
            small = [pngquant, "--force", "--ext", ".png", "--quality", "80-98", "--speed", "1"]
            subprocess.run([*small, "--strip", path], check=True)


if __name__ == "__main__":
    main()
