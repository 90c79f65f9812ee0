"""What tests of the web page share: one browser, with a microphone that is a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.browser import open_browser, why_none

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Playwright


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """What starts browsers; there can be only one in a thread."""
    if why_none():
        pytest.skip(why_none())
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """A browser that is allowed the microphone."""
    with open_browser(playwright) as opened:
        yield opened
