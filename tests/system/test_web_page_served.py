"""The web page in Chromium, served by the command, with the model that is in the package."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile
from support.browser import notice, open_page, phase, saved, talk, until, why_none
from support.proxy import Proxy
from support.serving import Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(why_none()), reason=why_none()),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    words = ["device=cpu", "engine.slots=1", "server.max_waiting=1", f"output_dir={folder}/out"]
    with Server(folder, *words) as running:
        yield running


def said(page: Page) -> int:
    """Letters of the transcript."""
    return sum(map(len, page.locator("#log > p span").all_inner_texts()))


def test_a_conversation_breaks_off_goes_on_and_is_saved(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    with Proxy(server.url) as proxy, open_page(browser, proxy.url) as page:
        talk(page)
        until(page, lambda: said(page) > 40)
        page.locator("#delay", has_text="ms").wait_for()

        proxy.cut()
        phase(page, "lost")
        phase(page, "live")
        page.locator("#status", has_text="Reconnected. Go on").wait_for()
        before = said(page)
        until(page, lambda: said(page) > before + 20)

        page.click("#talk")
        phase(page, "over")
        pcm, rate = soundfile.read(saved(page, "#save-audio", tmp_path), dtype="float32")
        text = saved(page, "#save-text", tmp_path).read_text(encoding="utf-8")

    assert rate == 24_000
    assert np.abs(pcm).max(axis=0).min() > 0.01  # both sides are in it
    assert text.startswith("embedded, ")
    assert "[0:0" in text


def test_the_settings_are_those_of_the_server(browser: Browser, server: Server) -> None:
    with urlopen(f"{server.url}/api/info") as answer:
        info: dict[str, Any] = json.load(answer)
    ranges = {name: one for name, one in info["settings"].items() if "min" in one}

    with open_page(browser, server.url) as page:
        page.click("#open-settings")
        shown = {
            name: {
                key: float(page.locator(f"#{name}").get_attribute(what) or "nan")
                for key, what in (("min", "min"), ("max", "max"), ("default", "value"))
            }
            for name in ranges
        }
        badge = page.locator("#random").is_visible()
        page.fill("#audio_topk", "40")
        page.fill("#repetition_penalty", "1.15")
        page.fill("#seed", str(2**63 - 1))
        page.check("#record")
        page.click("#settings .done")
        talk(page)
        until(page, lambda: said(page) > 0)

    assert shown == ranges
    assert badge


def test_who_comes_second_waits_and_who_comes_third_is_told(
    browser: Browser, server: Server
) -> None:
    with (
        open_page(browser, server.url) as first,
        open_page(browser, server.url) as second,
        open_page(browser, server.url) as third,
    ):
        talk(first)
        second.click("#talk")
        phase(second, "waiting")
        second.locator("#status", has_text="You are next").wait_for()
        third.click("#talk")
        assert notice(third).startswith("All places are taken")
        first.click("#talk")
        phase(second, "live")


def test_a_server_that_is_stopped_says_goodbye(browser: Browser, tmp_path: Path) -> None:
    words = ["device=cpu", "server.drain_s=1", f"output_dir={tmp_path}/out"]
    with Server(tmp_path, *words) as server, open_page(browser, server.url) as page:
        talk(page)
        assert server.stop() in (0, 130, 143)

        assert notice(page).startswith("The server is stopping")
