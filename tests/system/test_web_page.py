"""The web page in Chromium, with a server that does what the test says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from support.browser import (
    DESKTOP,
    PHONE,
    accessibility_faults,
    notice,
    npm_file,
    open_browser,
    open_page,
    phase,
    saved,
    talk,
    until,
    why_none,
    words,
)

from moshi_pipe.server.messages import Close

pytest.importorskip("websockets")

from support.mock_server import MockServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Literal

    import numpy.typing as npt
    from playwright.sync_api import Browser, Page, Playwright

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(why_none()), reason=why_none()),
    pytest.mark.timeout(120),
]

AXE = npm_file("axe-core/axe.min.js")
RATE = 24_000
SHORT = (740, 360)  # a phone on its side
NARROW = (320, 568)


@pytest.fixture
def server() -> Iterator[MockServer]:
    with MockServer() as running:
        running.behaviour.word_s = 0.05
        yield running


@pytest.fixture
def page(browser: Browser, server: MockServer) -> Iterator[Page]:
    with open_page(browser, server.url) as opened:
        yield opened


def echo(late: npt.NDArray[np.float32], early: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Of the second that is most alike: how much later it comes, in s, and how alike, 0 to 1."""
    found = [(0.0, 0.0)]
    for start in range(2 * RATE, len(late) - RATE, RATE // 2):
        heard, said = late[start : start + RATE], early[start - 2 * RATE : start + RATE]
        size = 4 * RATE
        match = np.fft.irfft(np.fft.rfft(said, size) * np.conj(np.fft.rfft(heard, size)), size)
        power = np.concatenate([[0.0], np.cumsum(said.astype(np.float64) ** 2)])
        energy = power[RATE:] - power[:-RATE]
        alike = match[: energy.size] / np.sqrt(energy * np.sum(heard**2) + 1e-3)
        best = int(np.argmax(alike))
        found.append((2 - best / RATE, float(alike[best])))
    return max(found, key=lambda one: one[1])


# Talking.


@pytest.mark.parametrize("audio", ["ogg_opus", "pcm_s16le"])
def test_one_click_and_both_sides_are_heard(
    page: Page, server: MockServer, tmp_path: Path, audio: str
) -> None:
    if audio == "pcm_s16le":
        page.click("#open-settings")
        page.select_option("#audio", audio)
        page.click("#settings .done")
    talk(page)
    words(page, "and the path is easy.")
    page.locator("#delay", has_text="ms").wait_for()
    page.click("#talk")
    phase(page, "over")

    seen = server.seen[0]
    assert seen.query["audio"] == audio
    assert seen.audio[0].startswith(b"OggS") == (audio == "ogg_opus")
    pcm, rate = soundfile.read(saved(page, "#save-audio", tmp_path), dtype="float32")
    assert rate == RATE
    assert np.abs(pcm[:, 0]).max() > 0.05
    delay_s, alike = echo(pcm[:, 1], pcm[:, 0])
    assert delay_s > 0.2  # the server waits so long
    assert alike > 0.7


def test_levels_move_while_both_speak(page: Page) -> None:
    talk(page)

    level = "id => Number(document.getElementById(id).style.getPropertyValue('--level'))"
    for disc in ("disc-you", "disc-moshi"):
        until(page, lambda disc=disc: page.evaluate(level, disc) > 0.5)  # type: ignore[misc]


def test_the_delay_is_the_sum_of_its_parts(page: Page) -> None:
    talk(page)
    parts = page.locator(
        "#parts", has_text=re.compile(r"server 31 \+ network \d+ \+ playback \d+ ms")
    )
    parts.wait_for()

    shown = page.evaluate("() => [parts.textContent, delay.textContent]")

    numbers = [int(number) for number in re.findall(r"\d+", shown[0])]
    assert sum(numbers) == pytest.approx(int(shown[1].split()[0]), abs=2)


def test_dropped_audio_is_shown_in_seconds(page: Page, server: MockServer) -> None:
    server.behaviour.stats.update(dropped_frames=10, skipped_frames=5)
    talk(page)

    page.locator("#dropped", has_text="1.20 s").wait_for()


def test_muted_sends_silence_and_says_so(page: Page, server: MockServer) -> None:
    page.click("#open-settings")
    page.select_option("#audio", "pcm_s16le")
    page.click("#settings .done")
    talk(page)
    page.keyboard.press("m")
    page.locator("#status", has_text="Muted").wait_for()
    sent = len(server.seen[0].audio)
    until(page, lambda: len(server.seen[0].audio) > sent + 30)

    assert page.get_attribute("#mute", "aria-pressed") == "true"
    assert not np.frombuffer(b"".join(server.seen[0].audio[sent + 20 :]), "<i2").any()


def test_stopping_closes_the_connection_and_the_microphone(page: Page, server: MockServer) -> None:
    talk(page)
    page.click("#talk")
    phase(page, "over")

    until(page, lambda: server.seen[0].close is not None)
    assert server.seen[0].close == Close.DONE
    assert page.inner_text("#talk-label") == "Talk again"


def test_leaving_the_page_ends_the_conversation(page: Page, server: MockServer) -> None:
    talk(page)
    page.goto("about:blank")

    until(page, lambda: server.seen[0].close is not None)
    assert server.seen[0].close in (Close.DONE, Close.GOING_AWAY)


def test_the_screen_stays_on_as_long_as_it_lasts(page: Page) -> None:
    page.evaluate("""() => {
        globalThis.locks = 0;
        const request = async () => (++locks, { release: async () => --locks });
        Object.defineProperty(navigator, "wakeLock", { value: { request } });
    }""")
    talk(page)
    until(page, lambda: page.evaluate("() => locks") == 1)
    page.click("#talk")
    until(page, lambda: page.evaluate("() => locks") == 0)


# Keeping it.


def test_the_words_are_saved_with_their_times(page: Page, tmp_path: Path) -> None:
    talk(page)
    words(page, "an hour on foot, and the path is easy.")
    page.click("#talk")

    lines = saved(page, "#save-text", tmp_path).read_text(encoding="utf-8").splitlines()

    assert lines[0].startswith("embedded, ")
    assert lines[2] == "[0:00] Hey, how are you doing?"
    assert re.fullmatch(r"\[0:0\d\] I was just thinking about the sea\. .*", lines[3])


# Lines that break.


def test_a_lost_connection_is_resumed(browser: Browser, server: MockServer) -> None:
    with open_page(browser, server.url) as page:
        talk(page)
        words(page, "how are you doing?")
        token = server.tokens[-1]
        server.cut()
        phase(page, "lost")
        assert page.inner_text("#status").startswith("Connection lost. Trying again for ")
        phase(page, "live")
        page.locator("#status", has_text="Reconnected. Go on").wait_for()

        assert server.seen[1].query["resume"] == token
        assert page.locator("#log", has_text="how are you doing?").count() == 1
        until(page, lambda: bool(server.seen[1].audio))
        assert server.seen[1].audio[0].startswith(b"OggS")
        words(page, "You can hear it from the old mill")


def test_a_conversation_that_cannot_be_resumed_is_over(page: Page, server: MockServer) -> None:
    talk(page)
    server.behaviour.accept_resume = False
    server.cut()

    assert notice(page).startswith("The conversation could not be continued")
    assert page.inner_text("#talk-label") == "Talk again"


def test_a_server_that_stops_says_goodbye(page: Page, server: MockServer) -> None:
    talk(page)
    server.tell(type="ending", reason="shutdown", in_s=9.5)
    page.locator("#status", has_text="The server stops: the conversation ends in").wait_for()
    server.end(Close.GOING_AWAY, "shutdown")

    assert notice(page).startswith("The server is stopping")


def test_time_that_runs_out_is_counted_down(page: Page, server: MockServer) -> None:
    server.behaviour.left_s = 10.0
    server.behaviour.ending_s = 9.9
    talk(page)
    page.locator("#left", has_text=re.compile(r"0:0\d left")).wait_for()
    assert "The longest length is reached" in page.inner_text("#status")
    server.end(Close.DONE, "time_limit")

    assert notice(page).startswith("Time is up")


# Ways to be refused.


def test_the_place_in_the_queue_is_shown(page: Page, server: MockServer) -> None:
    server.behaviour.queue, server.behaviour.queue_s = (3, 1), 1.0
    page.click("#talk")
    phase(page, "waiting")
    page.locator("#status", has_text="Place 3 of 3 in the queue").wait_for()
    assert page.inner_text("#queue") == "3"
    page.locator("#status", has_text="You are next").wait_for()
    phase(page, "live")


def test_a_full_server_is_told_plainly(page: Page, server: MockServer) -> None:
    server.behaviour.refuse = ("at_capacity: all 4 slots are in use", Close.TRY_LATER)
    page.click("#talk")

    assert notice(page).startswith("All places are taken")
    assert page.is_enabled("#talk")
    assert page.inner_text("#talk-label") == "Talk"


def test_without_permission_it_says_where_to_give_it(
    playwright: Playwright, server: MockServer
) -> None:
    with open_browser(playwright, permit=False) as strict, open_page(strict, server.url) as page:
        page.click("#talk")

        assert notice(page).startswith("The microphone is not permitted")
        assert page.is_enabled("#talk")
        assert server.seen == []


def test_an_insecure_address_is_explained_at_once(
    playwright: Playwright, server: MockServer
) -> None:
    url = f"http://elsewhere.test:{server.port}/"
    mapped = "--host-resolver-rules=MAP elsewhere.test 127.0.0.1"
    quiet = "Cross-Origin-Opener-Policy"  # Chromium says that it ignores it without https
    with (
        open_browser(playwright, mapped) as insecure,
        open_page(insecure, url, size=NARROW, expected=quiet) as page,
    ):
        box = page.locator("#notice").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= NARROW[0]
        assert f"ssh -L {server.port}:localhost:{server.port} elsewhere.test" in notice(page)
        assert page.is_disabled("#talk")


def test_a_token_is_asked_for_and_kept(browser: Browser, server: MockServer) -> None:
    server.behaviour.token = "right"
    with open_page(browser, server.url, expected="401") as page:
        page.click("#talk")
        page.fill("#token", "wrong")
        page.click("#token-form .done")
        page.locator("#token-error", has_text="does not take this token").wait_for()
        page.fill("#token", "right")
        page.keyboard.press("Enter")
        phase(page, "live")
        page.reload()
        talk(page)

    assert [seen.query["token"] for seen in server.seen] == ["right", "right"]


def test_a_token_in_the_address_is_taken_out_of_it(browser: Browser, server: MockServer) -> None:
    server.behaviour.token = "right"
    with open_page(browser, server.url + "?token=right") as page:
        assert page.url == server.url
        talk(page)


# Settings.


def test_settings_have_the_ranges_of_the_server_and_are_kept(
    page: Page, server: MockServer
) -> None:
    page.click("#open-settings")
    field = page.locator("#audio_topk")
    assert [field.get_attribute(name) for name in ("min", "max")] == ["1", "250"]
    field.fill("40")
    page.fill("#seed", "7")
    page.check("#record")
    page.click("#settings .done")
    talk(page)
    asked = server.seen[0].query
    assert {name: asked[name] for name in ("audio_topk", "seed", "record")} == {
        "audio_topk": "40",
        "seed": "7",
        "record": "1",
    }
    assert "text_topk" not in asked  # what was not changed is the server's to choose

    page.reload()
    page.click("#open-settings")
    assert page.input_value("#audio_topk") == "40"
    assert not page.is_checked("#record")  # consent is asked for anew


# Keyboard, screen readers, phones.


def test_a_keyboard_is_enough(page: Page) -> None:
    for wanted in ("open-settings", "theme", "talk"):
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.id") == wanted
    page.keyboard.press("Enter")
    phase(page, "live")
    page.keyboard.press("m")
    page.locator("#mute[aria-pressed=true]").wait_for()
    page.keyboard.press("Space")  # on the button
    phase(page, "over")
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("Space")  # anywhere
    phase(page, "live")


def test_the_settings_are_a_dialog_for_the_keyboard(page: Page) -> None:
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    page.locator("#settings[open]").wait_for()
    page.focus("#audio_temperature")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#audio_temperature") == "0.85"
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    page.locator("#settings:not([open])").wait_for(state="attached")
    assert page.evaluate("() => document.activeElement.id") == "open-settings"


def test_the_theme_is_the_systems_until_it_is_chosen(page: Page) -> None:
    paper = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    assert light != dark
    page.click("#theme")
    assert page.evaluate(paper) == light
    page.reload()
    assert page.evaluate(paper) == light


@pytest.mark.parametrize("size", [PHONE, NARROW, SHORT, DESKTOP], ids=lambda size: f"{size[0]}px")
def test_it_fits(browser: Browser, server: MockServer, size: tuple[int, int]) -> None:
    with open_page(browser, server.url, size=size) as page:
        for state in ("idle", "live"):
            if state == "live":
                talk(page)
                words(page, "You can hear it from the old mill")
            wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, state
            button = page.locator("#talk").bounding_box()
            assert button is not None
            assert button["height"] >= 44
            assert button["y"] + button["height"] <= size[1], state


@pytest.mark.skipif(AXE is None, reason="axe-core is not here: npm install -g axe-core")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_serious_fault(
    browser: Browser, server: MockServer, size: tuple[int, int], theme: Literal["light", "dark"]
) -> None:
    assert AXE is not None
    faults = {}
    with open_page(browser, server.url, size=size, theme=theme) as page:
        faults["idle"] = accessibility_faults(page, AXE)
        page.click("#open-settings")
        faults["settings"] = accessibility_faults(page, AXE)
        page.keyboard.press("Escape")
        server.behaviour.queue, server.behaviour.queue_s = (2, 1), 1.0
        page.click("#talk")
        phase(page, "waiting")
        faults["waiting"] = accessibility_faults(page, AXE)
        phase(page, "live")
        words(page, "You can hear it from the old mill")
        faults["live"] = accessibility_faults(page, AXE)
        page.keyboard.press("m")
        page.locator("#mute[aria-pressed=true]").wait_for()
        faults["muted"] = accessibility_faults(page, AXE)
        server.behaviour.accept_resume = False
        server.cut()
        notice(page)
        faults["notice"] = accessibility_faults(page, AXE)
        page.evaluate("() => document.getElementById('token-dialog').showModal()")
        faults["token"] = accessibility_faults(page, AXE)

    assert {state: found for state, found in faults.items() if found} == {}
