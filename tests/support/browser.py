"""Chromium with a microphone that is a file, for tests and pictures of the web page."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright

ROOT = Path(__file__).resolve().parents[2]

SPEECH = ROOT / "examples" / "question.wav"
"""What the microphone hears, over and over."""

DESKTOP = (1240, 780)
PHONE = (390, 844)

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    next(map(str, Path.home().glob(".cache/ms-playwright/chromium-*/chrome-linux*/chrome")), ""),
)
"""The browser: the system's, or else that of ``playwright install``; empty if there is none."""

ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]
"""What it starts with, besides the microphone's file and how its permission is answered."""

NPM = [
    ROOT / "build" / "npm" / "node_modules",
    *(Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder),
    Path("/usr/local/lib/node_modules"),
    Path("/usr/lib/node_modules"),
]
"""Folders of npm's packages: that of ``.ci/run``, then those of ``npm install --global``."""


def npm_file(name: str) -> Path | None:
    """A file of an npm package, such as ``axe-core/axe.min.js``; None if it is not installed."""
    return next((folder / name for folder in NPM if (folder / name).is_file()), None)


def why_none() -> str:
    """Why there can be no browser; empty if there can."""
    if not CHROMIUM:
        return "Chromium is not here: apt-get install chromium"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not here: pip install playwright"
    return ""


@contextmanager
def open_browser(
    playwright: Playwright, *more: str, speech: Path = SPEECH, permit: bool = True
) -> Iterator[Browser]:
    """A headless browser.

    Args:
        playwright: That starts it; there can be only one in a thread.
        more: Arguments of its command.
        speech: WAV file that its microphone hears.
        permit: Answer to the question for the microphone.
    """
    arguments = [
        *ARGUMENTS,
        f"--use-file-for-fake-audio-capture={speech}",
        "--use-fake-ui-for-media-stream" + ("" if permit else "=deny"),
        *more,
    ]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def open_page(
    browser: Browser,
    url: str,
    *,
    size: tuple[int, int] = DESKTOP,
    theme: Literal["dark", "light"] = "light",
    expected: str = "",
) -> Iterator[Page]:
    """The page, ready, in a context of its own.

    Args:
        browser: Where.
        url: The server's.
        size: Width and height, in pixels.
        theme: What the system prefers.
        expected: Part of what its console may say.

    Raises:
        AssertionError: At the end, its console has said something else.
    """
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, accept_downloads=True
    )
    try:
        page = context.new_page()
        page.set_default_timeout(15_000)
        said = _complaints(page)
        page.goto(url)
        page.wait_for_selector("#talk[data-ready]")
        yield page
    finally:
        context.close()
    unexpected = [one for one in said if not expected or expected not in one]
    assert not unexpected, f"the console says {unexpected}"


def _complaints(page: Page) -> list[str]:
    """Errors and warnings of its console, and what nobody caught; grows while the page is open."""
    said: list[str] = []

    def take(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            said.append(f"{message.type}: {message.text}")

    page.on("console", take)
    page.on("pageerror", lambda error: said.append(f"uncaught: {error}"))
    return said


def phase(page: Page, name: str) -> None:
    """Wait until the conversation is in a phase."""
    page.wait_for_selector(f"body[data-phase={name}]", state="attached")


def talk(page: Page) -> None:
    """Press the button, and wait until the server listens."""
    page.click("#talk")
    phase(page, "live")


def words(page: Page, text: str) -> None:
    """Wait until Moshi has said it."""
    page.locator("#log", has_text=text).wait_for()


def notice(page: Page) -> str:
    """What it says is in the way; waits for it."""
    page.wait_for_selector("#notice:not([hidden])")
    return str(page.locator("#notice").inner_text())


def until(page: Page, happened: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait for what is not on the page; it goes on meanwhile."""
    for _ in range(int(within_s / 0.02)):
        if happened():
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"it did not happen within {within_s:g} s")


def saved(page: Page, button: str, folder: Path) -> Path:
    """Press a button that saves, and keep what it gives."""
    with page.expect_download() as waiting:
        page.click(button)
    path = folder / str(waiting.value.suggested_filename)
    waiting.value.save_as(path)
    return path


AXE = """axe => axe.run({resultTypes: ["violations"]}).then(found => found.violations
    .filter(fault => ["serious", "critical"].includes(fault.impact))
    .map(fault => `${fault.id}: ${fault.help}: ${fault.nodes.map(node => node.target).join(", ")}`)
)"""


def accessibility_faults(page: Page, axe: Path) -> list[str]:
    """What axe-core calls serious or critical on the page as it is now."""
    page.evaluate(axe.read_text(encoding="utf-8"))
    return list(page.evaluate_handle("() => globalThis.axe").evaluate(AXE))
