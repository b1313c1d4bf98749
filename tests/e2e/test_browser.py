"""The softphone page in a real Chromium: a person hears a person, in each direction, and only after the pick-up."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from loadtest.simulator.state import Call
from tests.support.harness.browser import chromium, listen, log_in
from tests.support.harness.running import KEYS, Running, running
from tests.support.harness.waiting import until

# What a browser hears does not depend on the gateway's loop; users run uvloop.
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(90),
    pytest.mark.asyncio(loop_factories=["uvloop"]),
]

MICROPHONE_HZ = 1000
USER_HZ = 440
RINGBACK_HZ = 425
SILENCE_DB = -90.0
HH_MM = "[0-9]{2}:[0-9]{2}"


@asynccontextmanager
async def page_of_ana(run: Running, folder: Path, *, locale: str = "en-US") -> AsyncIterator[Page]:
    """The page, logged in; a script error or a console error fails the test."""
    errors: list[str] = []
    async with chromium(folder, tone_hz=MICROPHONE_HZ) as browser:
        context = await browser.new_context(locale=locale)
        page = await context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        await log_in(page, run.url, operator="ana", key=KEYS["ana"])
        yield page
    assert errors == []


async def both_hear(page: Page, call: Call) -> None:
    """Wait until the user hears the microphone's tone and the page plays the user's."""
    await until(lambda: call.media.ear.hears_tone(MICROPHONE_HZ))
    await page_plays(page, USER_HZ)


async def page_plays(page: Page, wanted_hz: float) -> None:
    """Wait until the page plays this tone."""
    async with asyncio.timeout(10):
        while True:
            hz, level = await listen(page)
            if abs(hz - wanted_hz) < 10 and level > -60:
                return
            await asyncio.sleep(0.1)


async def nobody_hears(page: Page, call: Call) -> None:
    """Look for half a second, long enough for audio to come through if it could."""
    for _ in range(3):
        _, level = await listen(page)
        assert level < SILENCE_DB
        assert call.media.measured()["packets"] == 0
        await asyncio.sleep(0.2)


async def test_a_users_call_is_answered_in_a_browser(database: str, tmp_path: Path) -> None:
    async with running(database) as run, page_of_ana(run, tmp_path) as page:
        call = run.ana.call()
        await expect(page.get_by_test_id("incoming-name")).to_contain_text("Ana")
        await nobody_hears(page, call)
        await page.get_by_test_id("answer").click()
        await expect(page.get_by_test_id("call-timer")).to_be_visible()
        await both_hear(page, call)
        (number,) = run.gateway.parts.numbers
        slots = page.get_by_test_id(f"slots-{number.id}-incoming")
        await expect(slots).to_have_attribute("data-used", "1")
        run.ana.hang_up()
        await expect(page.get_by_test_id("recent-list")).to_contain_text("Ana")
        await expect(slots).to_have_attribute("data-used", "0")
        assert run.sim.state()["violations"] == []


async def test_an_operators_call_from_a_browser_reaches_whatsapp(database: str, tmp_path: Path) -> None:
    async with running(database) as run, page_of_ana(run, tmp_path) as page:
        await page.get_by_test_id("dial-input").fill("+55 11 90000-0001")
        await page.get_by_test_id("dial-check").click()
        answer = page.get_by_test_id("gate-answer")
        await expect(answer).to_have_attribute("data-reason", "no_permission")
        await expect(answer.locator(".rule")).to_have_text("Rule contact/permission (guide R2, R6, R10, R11)")
        await page.get_by_test_id("ask-permission").click()
        await run.sim.until(run.ana.is_asked)
        run.ana.answer_permission(accept=True)
        await expect(answer).to_have_attribute("data-allowed", "true")
        await page.get_by_test_id("dial-call").click()
        await run.sim.until(lambda: run.ana.current_call is not None)
        call = run.ana.current_call
        assert call is not None
        await page_plays(page, RINGBACK_HZ)
        assert call.media.measured()["packets"] == 0
        run.ana.accept()
        await both_hear(page, call)
        await page.get_by_test_id("hangup").click()
        await run.sim.until(lambda: run.ana.current_call is None)
        assert run.sim.state()["violations"] == []


async def check_ana(page: Page) -> None:
    await page.get_by_test_id("dial-input").fill("+55 11 90000-0001")
    await page.get_by_test_id("dial-check").click()


@pytest.mark.parametrize(
    ("locale", "sentence"),
    [
        ("en-US", f"You may ask again (tomorrow|today) at {HH_MM}; this person declined (today|yesterday) at {HH_MM}."),
        ("pt-BR", f"pedir de novo a partir de (amanhã|hoje) às {HH_MM}; esta pessoa recusou (hoje|ontem) às {HH_MM}."),
    ],
)
async def test_after_a_decline_the_page_says_when_one_may_ask_again(
    database: str, tmp_path: Path, locale: str, sentence: str
) -> None:
    async with running(database) as run, page_of_ana(run, tmp_path, locale=locale) as page:
        await check_ana(page)
        await page.get_by_test_id("ask-permission").click()
        await run.sim.until(run.ana.is_asked)
        run.ana.answer_permission(accept=False)
        await expect(page.get_by_test_id("ask-hint")).to_have_text(re.compile(sentence))
        await expect(page.get_by_test_id("ask-permission")).to_be_disabled()


async def test_after_two_unanswered_calls_the_page_warns_and_after_four_it_offers_to_ask(
    database: str, tmp_path: Path
) -> None:
    async with running(database) as run, page_of_ana(run, tmp_path) as page:
        run.ana.grant()
        await check_ana(page)
        answer = page.get_by_test_id("gate-answer")
        for unanswered in range(1, 5):
            await expect(answer).to_have_attribute("data-allowed", "true")
            await page.get_by_test_id("dial-call").click()
            await run.sim.until(lambda: run.ana.current_call is not None)
            await expect(page.get_by_test_id("call-state")).to_contain_text("Ringing")
            await page.get_by_test_id("hangup").click()
            await run.sim.until(lambda: run.ana.current_call is None)
            if unanswered in (2, 3):
                await expect(answer).to_contain_text(
                    f"{unanswered} calls in a row were not answered. Meta has asked this person whether calls are "
                    "welcome; at 4 the permission ends."
                )
        await expect(answer).to_have_attribute("data-reason", "permission_revoked")
        await expect(answer).to_contain_text("4 calls in a row were not answered; the permission ends at 4.")
        await expect(page.get_by_test_id("ask-permission")).to_be_enabled()
        assert run.sim.state()["violations"] == []


async def test_the_keypad_reaches_the_user(database: str, tmp_path: Path) -> None:
    async with running(database) as run, page_of_ana(run, tmp_path) as page:
        call = run.ana.call()
        await page.get_by_test_id("answer").click()
        await both_hear(page, call)
        await page.keyboard.press("4")
        await page.keyboard.press("2")
        await until(lambda: call.media.measured()["digits"] == "42")


async def test_the_page_works_with_the_keyboard_alone_and_in_portuguese(database: str, tmp_path: Path) -> None:
    async with running(database) as run, page_of_ana(run, tmp_path, locale="pt-BR") as page:
        call = run.ana.call()
        await expect(page.get_by_test_id("answer")).to_contain_text("Atender")
        await page.keyboard.press("a")
        await both_hear(page, call)
        await page.keyboard.press("h")
        await run.sim.until(lambda: run.ana.current_call is None)


async def test_a_closed_tab_ends_the_call(database: str, tmp_path: Path) -> None:
    async with running(database) as run:
        run.gateway.parts.hub.resume_s = 2.0
        async with page_of_ana(run, tmp_path) as page:
            call = run.ana.call()
            await page.get_by_test_id("answer").click()
            await both_hear(page, call)
        await until(lambda: run.ana.current_call is None and run.slots == (0, 0), timeout_s=25)
