"""The report in Chromium, from a file: it asks for nothing, fits, plays, and is safe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.browser import AXE, npm_file, until
from support.runs import write_run

from moshi_pipe.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.system

DESKTOP, PHONE = (1240, 800), (390, 844)
EVIL = "</text></script><script>alert(1)</script><img src=x onerror=alert(2)>"
METRICS = {"metrics": {"response": {"value": 0.4, "unit": "s"}}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    words = [(0.4 * i + 2.4, 0.4 * i + 2.8, word) for i, word in enumerate(("a", EVIL, "b", "c"))]
    for temperature in (0.5, 0.8):
        for seed in (1, 2):
            place = folder / "sweep" / f"{temperature}-{seed}"
            write_run(place, seed=seed, temperature=temperature, words=words, metrics=METRICS)
    assert main(["report", str(folder / "sweep"), f"out={folder}/page.html", f"title={EVIL}"]) == 0
    return folder / "page.html"


@pytest.fixture(params=[(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")], ids=str)
def page(report: Path, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    (width, height), theme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, bypass_csp=False
    )
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    opened.on(
        "request",
        lambda asked: said.append(asked.url) if not asked.url.startswith("data:") else None,
    )
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert said == [report.as_uri()]


def test_it_fits_the_window(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_both_sides_play_and_move_along_the_drawing(page: Page) -> None:
    talk = page.locator(".talk").first
    talk.scroll_into_view_if_needed()

    talk.locator(".together").click()

    times = "talk => [...talk.querySelectorAll('audio')].map(sound => sound.currentTime)"
    until(page, lambda: min(talk.evaluate(times)) > 0.1)
    shown = "head => head.style.visibility === 'visible'"
    until(page, lambda: talk.locator(".strip .head").first.evaluate(shown))
    talk.locator(".together").click()
    until(page, lambda: talk.locator(".together").inner_text() == "Play both")


def test_a_click_on_the_drawing_plays_from_there(page: Page) -> None:
    strip = page.locator(".talk .strip").first
    strip.scroll_into_view_if_needed()

    strip.click(position={"x": 250, "y": 30})

    times = "() => [...document.querySelectorAll('.talk audio')].map(sound => sound.currentTime)"
    until(page, lambda: max(page.evaluate(times)) > 2)


def test_words_from_files_are_only_shown(page: Page) -> None:
    assert page.locator("h1").inner_text() == EVIL
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0


def test_it_is_accessible(page: Page) -> None:
    axe = npm_file("axe-core/axe.min.js")
    if axe is None:
        pytest.skip("axe-core is not here: npm install axe-core")
    page.evaluate(axe.read_text(encoding="utf-8"))

    assert page.evaluate_handle("() => globalThis.axe").evaluate(AXE) == []


def test_it_prints(report: Path, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())

    printed = page.pdf(format="A4")

    assert printed.startswith(b"%PDF")
    page.close()
