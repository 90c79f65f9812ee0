"""Take the pictures of the web page: ``python scripts/web_pictures.py``, into docs/.

Needs Chromium and playwright. The page talks with the server of the tests, so that the pictures
show the same words each time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.browser import ARGUMENTS, CHROMIUM  # noqa: E402
from support.mock_server import MockServer  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

SIZES = {"web": (1240, 780), "web-phone": (390, 844)}
WORDS = 49  # that were said when the picture is taken
READY = """words =>
    [...document.querySelectorAll('#log > p')]
        .flatMap(paragraph => paragraph.textContent.split(' ')).length > words
    && [...document.querySelectorAll('.disc')].every(
        disc => disc.style.getPropertyValue('--level') > 0.55)"""


def main() -> None:
    """Take all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder")
    parser.add_argument("--all", action="store_true", help="also states that docs/ does not show")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    speech = ROOT / "examples" / "question.wav"
    with sync_playwright() as playwright, MockServer() as server:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[*ARGUMENTS, f"--use-file-for-fake-audio-capture={speech}"],
        )
        for name, (width, height) in SIZES.items():
            for theme in ("dark", "light"):
                context = browser.new_context(
                    viewport={"width": width, "height": height},
                    color_scheme=theme,
                    permissions=["microphone"],
                )
                page = context.new_page()
                take(page, server, options.out / f"{name}-{theme}.png", every=options.all)
                context.close()
        browser.close()


def take(page: Page, server: MockServer, path: Path, *, every: bool) -> None:
    """Take one, in the middle of a conversation; with ``every`` what is before and after, too."""
    server.behaviour.word_s = 0.12
    page.goto(server.url)
    page.wait_for_selector("#talk[data-ready]")

    def shot(state: str) -> None:
        page.screenshot(path=path.with_stem(f"{path.stem}-{state}"))

    if every:
        shot("idle")
        page.click("#open-settings")
        shot("settings")
        page.keyboard.press("Escape")
    page.click("#talk")
    page.mouse.move(0, 0)
    for _ in range(1000):
        if page.evaluate(READY, WORDS):
            break
        page.wait_for_timeout(20)
    page.screenshot(path=path)
    if every:
        page.keyboard.press("m")
        page.wait_for_timeout(600)
        shot("muted")
        server.cut()
        page.wait_for_selector("[data-phase=lost]")
        shot("lost")
        page.wait_for_selector("[data-phase=live]")
        page.click("#talk")
        page.wait_for_timeout(400)
        shot("over")


if __name__ == "__main__":
    main()
