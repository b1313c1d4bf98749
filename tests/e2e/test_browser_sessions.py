"""A call in a real Chromium outlives a reload and a lost line, and ends with its tab; of two tabs one rings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Page, expect

from gateway.common.ids import OperatorId
from gateway.operators.hub import LEAVING_S, RESUME_S
from loadtest.net.tcp_chaos import TcpChaos
from loadtest.simulator.state import Call
from tests.support.harness.browser import chromium, listen, log_in
from tests.support.harness.running import KEYS, Running, running
from tests.support.harness.waiting import until

# What a browser does does not depend on the gateway's loop; users run uvloop.
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(90),
    pytest.mark.asyncio(loop_factories=["uvloop"]),
]

MICROPHONE_HZ = 1000
USER_HZ = 440
READY = '[data-testid="legs-ready"][data-ready="true"]'


@asynccontextmanager
async def browser_of_ana(run: Running, folder: Path, *, url: str | None = None) -> AsyncIterator[BrowserContext]:
    """A browser in which Ana has logged in, in one tab; a script error in any tab fails the test."""
    errors: list[str] = []
    async with chromium(folder, tone_hz=MICROPHONE_HZ) as browser:
        context = await browser.new_context(locale="en-US")
        context.on("weberror", lambda error: errors.append(str(error.error)))
        await log_in(await context.new_page(), url or run.url, operator="ana", key=KEYS["ana"])
        yield context
        assert errors == []


async def both_hear(page: Page, call: Call) -> None:
    """Wait until the user hears the microphone's tone, from now on, and the page plays the user's."""
    before = call.media.measured()["packets"]
    await until(lambda: call.media.measured()["packets"] > before + 25 and call.media.ear.hears_tone(MICROPHONE_HZ))
    async with asyncio.timeout(10):
        while True:
            hz, level = await listen(page)
            if abs(hz - USER_HZ) < 10 and level > -60:
                return
            await asyncio.sleep(0.1)


async def talking(run: Running, page: Page) -> Call:
    call = run.ana.call()
    await page.get_by_test_id("answer").click()
    await both_hear(page, call)
    return call


async def test_a_page_that_is_loaded_again_has_its_call_and_its_audio(database: str, tmp_path: Path) -> None:
    async with running(database) as run, browser_of_ana(run, tmp_path) as context:
        (page,) = context.pages
        call = await talking(run, page)
        for _ in range(2):
            await page.reload()
            await page.locator(READY).wait_for(state="attached")
            await expect(page.get_by_test_id("call-timer")).to_be_visible()
            await both_hear(page, call)
        await asyncio.sleep(LEAVING_S)  # past what an operator who has left is given
        await both_hear(page, call)
        assert run.slots == (1, 0)


@pytest.mark.parametrize("ending", ["close", "elsewhere"])
async def test_a_call_ends_with_its_tab(database: str, tmp_path: Path, ending: str) -> None:
    async with running(database) as run, browser_of_ana(run, tmp_path) as context:
        (page,) = context.pages
        await talking(run, page)
        began = asyncio.get_running_loop().time()
        if ending == "close":
            await page.close(run_before_unload=True)
        else:
            await page.goto("about:blank")
        await until(lambda: run.ana.current_call is None and run.slots == (0, 0), timeout_s=RESUME_S - 3)
        assert asyncio.get_running_loop().time() - began < LEAVING_S + 3


async def test_of_two_tabs_the_last_one_rings_and_the_other_says_so(database: str, tmp_path: Path) -> None:
    async with running(database) as run, browser_of_ana(run, tmp_path) as context:
        (first,) = context.pages
        second = await context.new_page()
        await log_in(second, run.url, operator="ana", key=KEYS["ana"])
        await expect(first.locator("body")).to_have_attribute("data-screen", "elsewhere")
        call = run.ana.call()
        await expect(second.get_by_test_id("answer")).to_be_visible()
        await expect(first.get_by_test_id("incoming-card")).to_be_hidden()
        await second.get_by_test_id("answer").click()
        await both_hear(second, call)
        run.gateway.parts.hub.leaving_s = 0.5
        await first.close(run_before_unload=True)  # it has no call to take with it
        await asyncio.sleep(1)
        await both_hear(second, call)
        assert run.gateway.parts.hub.connected == 1


async def test_a_line_that_is_cut_is_said_in_words_and_the_call_goes_on(database: str, tmp_path: Path) -> None:
    async with (
        running(database) as run,
        TcpChaos(("127.0.0.1", run.gateway.port)) as cable,
        browser_of_ana(run, tmp_path, url=f"http://127.0.0.1:{cable.port}") as context,
    ):
        (page,) = context.pages
        call = await talking(run, page)
        await cable.refuse()
        await expect(page.locator("#link-down")).to_be_visible()
        await expect(page.locator("#link-down")).to_contain_text("Connection lost. Reconnecting")
        await both_hear(page, call)
        await cable.open()
        await expect(page.locator("#link-down")).to_be_hidden(timeout=10_000)
        await both_hear(page, call)
        await page.get_by_test_id("hangup").click()
        await run.sim.until(lambda: run.ana.current_call is None)


async def test_a_session_that_is_over_is_said_in_words(database: str, tmp_path: Path) -> None:
    async with running(database) as run, browser_of_ana(run, tmp_path) as context:
        (page,) = context.pages
        phone = run.gateway.parts.hub.phone(OperatorId("ana"))
        assert phone is not None
        run.gateway.parts.hub.logout(phone)  # as after a restart: nobody knows the token
        await page.reload()
        await expect(page.locator("#login-problem")).to_have_text("Your session has ended. Please log in again.")


async def test_wrong_keys_are_answered_in_words_and_cost_the_operator_nothing(database: str, tmp_path: Path) -> None:
    async with running(database) as run, browser_of_ana(run, tmp_path) as context:
        (page,) = context.pages
        await page.get_by_test_id("logout").click()
        stranger = await context.browser.new_context(locale="en-US")  # type: ignore[union-attr]
        other = await stranger.new_page()
        await other.goto(run.url + "/")
        await other.get_by_test_id("login-name").fill("ana")
        for _ in range(11):
            await other.get_by_test_id("login-key").fill("wrong")
            async with other.expect_response("**/v1/tickets") as answered:
                await other.get_by_test_id("login-submit").click()
            await answered.value
        await expect(other.locator("#login-problem")).to_have_text("Too many attempts. Wait a moment.")
        await log_in(page, run.url, operator="ana", key=KEYS["ana"])
        await expect(page.locator("body")).to_have_attribute("data-screen", "phone")
