"""What Meta does to a business number reaches the gate, the operators and the API of a running gateway."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import expect

from gateway.numbers.report import ask
from loadtest.operators.softphone_bot import RequestFailed, SoftphoneBot
from loadtest.simulator.faults import read_graph_fault
from tests.support.harness.browser import chromium, log_in
from tests.support.harness.running import API_KEY, KEYS, Running, running
from tests.support.harness.waiting import until

pytestmark = pytest.mark.timeout(60)

OUT = "RESTRICTED_BUSINESS_INITIATED_CALLING"
TO = "+5511900000001"


async def post(url: str, body: dict[str, Any], **headers: str) -> Any:
    async with aiohttp.ClientSession() as http, http.post(url, json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def restrict(run: Running, seconds: int) -> None:
    await post(f"{run.sim.url}/sim/restriction", {"seconds": seconds})


async def change_settings(run: Running, **calling: Any) -> None:
    """Change the settings at Meta, as its console does."""
    url = f"{run.sim.url}/v26.0/{run.number_id}/settings"
    await post(url, {"calling": calling}, Authorization=f"Bearer {run.sim.config.access_token}")


async def shown(run: Running, method: str = "GET", path: str = "") -> dict[str, Any]:
    """The status of the number as the API shows it."""
    url, headers = f"{run.url}/v1/numbers/{run.number_id}{path}", {"Authorization": f"Bearer {API_KEY}"}
    async with aiohttp.ClientSession() as http, http.request(method, url, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return dict((await answer.json())["status"])


async def read_from_meta(run: Running) -> None:
    (number,) = run.gateway.parts.numbers
    await until(lambda: number.facts.read_at is not None)


async def ready_to_dial(run: Running, bot: SoftphoneBot) -> None:
    """The user allows calls, and the gateway knows."""
    run.ana.grant()
    await bot.wait_push("contact")


async def no_of_a_dial(run: Running, bot: SoftphoneBot) -> dict[str, Any]:
    with pytest.raises(RequestFailed) as caught:
        await bot.request("dial", number_id=run.number_id, to=TO)
    return dict(caught.value.answer["refusal"])


async def test_a_restriction_refuses_calls_until_it_ends(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        await read_from_meta(run)
        await ready_to_dial(run, bot)
        await restrict(run, 2)
        push = await bot.wait_push("number", lambda push: push["status"]["restrictions"])
        (restriction,) = push["status"]["restrictions"]
        assert restriction["type"] == OUT
        refusal = await no_of_a_dial(run, bot)
        assert (refusal["reason"], refusal["retry_at"]) == ("number_restricted", restriction["until"])
        assert not any(request.action == "connect" for request in run.sim.world.requests)
        assert run.gateway.metrics.number_restricted.labels(number=run.number_id, type=OUT)._value.get() == 1
        await bot.wait_push("number", lambda push: not push["status"]["restrictions"])
        view = await bot.request("dial", number_id=run.number_id, to=TO)
        await bot.wait_call(view["call_id"], "ringing")


async def test_a_restriction_outlives_a_restart_and_a_look_at_the_settings(database: str) -> None:
    async with running(database) as run:
        await read_from_meta(run)
        await restrict(run, 3_600)
        (number,) = run.gateway.parts.numbers
        await until(lambda: bool(number.state.restrictions))
        before = await shown(run)
    async with running(database) as run:  # this Meta lists nothing: only the webhook told
        await read_from_meta(run)
        after = await shown(run, "POST", "/refresh")
        assert after["restrictions"] == before["restrictions"]
        assert after["place"]["reason"] == "number_restricted"
        assert after["receive"] is None


async def test_calling_switched_off_and_on_at_meta(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        await read_from_meta(run)
        await change_settings(run, status="DISABLED")
        push = await bot.wait_push("number", lambda push: push["status"]["calling"] == "DISABLED")
        assert push["status"]["receive"]["reason"] == "calling_off"
        assert (await no_of_a_dial(run, bot))["reason"] == "calling_off"
        await change_settings(run, status="ENABLED")
        await bot.wait_push("number", lambda push: push["status"]["calling"] == "ENABLED")
        assert (await no_of_a_dial(run, bot))["reason"] == "no_permission"


async def test_call_hours_that_meta_does_not_announce_come_with_the_next_change(database: str) -> None:
    async with running(database) as run:
        await read_from_meta(run)
        monday = {"day_of_week": "MONDAY", "open_time": "0900", "close_time": "1800"}
        hours = {"status": "ENABLED", "timezone_id": "America/Sao_Paulo", "weekly_operating_hours": [monday]}
        await change_settings(run, call_hours=hours)
        assert (await shown(run))["hours"] is None  # no webhook speaks of hours
        await change_settings(run, call_icon_visibility="DISABLE_ALL")
        (number,) = run.gateway.parts.numbers
        await until(lambda: number.state.hours is not None)
        assert (await shown(run))["hours"]["timezone"] == "America/Sao_Paulo"
        assert (await shown(run))["place"] is None


@pytest.mark.parametrize(
    ("code", "reason"),
    [(138013, "country_excluded"), (131044, "no_payment"), (138005, "number_rate")],
)
async def test_what_meta_refuses_once_is_not_asked_twice(database: str, code: int, reason: str) -> None:
    async with running(database) as run, run.operator() as bot:
        await read_from_meta(run)
        await ready_to_dial(run, bot)
        run.sim.faults.order([read_graph_fault({"fault": "fail", "action": "connect", "code": code})], None)
        view = await bot.request("dial", number_id=run.number_id, to=TO)
        await bot.wait_call(view["call_id"], "ended")
        assert (await no_of_a_dial(run, bot))["reason"] == reason
        assert sum(request.action == "connect" for request in run.sim.world.requests) == 1
        if code != 138005:
            assert (await shown(run, "POST", "/refresh"))["place"] is None


async def test_calling_off_told_by_an_error_is_put_right_by_the_settings(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        await read_from_meta(run)
        await ready_to_dial(run, bot)
        run.sim.faults.order([read_graph_fault({"fault": "fail", "action": "connect", "code": 138000})], None)
        await bot.request("dial", number_id=run.number_id, to=TO)
        await bot.wait_push("number", lambda push: push["status"]["calling"] == "DISABLED")
        await bot.wait_push("number", lambda push: push["status"]["calling"] == "ENABLED")


async def test_placed_calls_are_counted_across_a_restart(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        await ready_to_dial(run, bot)
        view = await bot.request("dial", number_id=run.number_id, to=TO)
        await bot.wait_call(view["call_id"], "ringing")
        run.ana.decline()
        await bot.wait_call(view["call_id"], "ended")
    async with running(database) as run:
        report = await ask(run.gateway.settings.model_copy(update={"port": run.gateway.port}), run.gateway.clock)
        assert report.live
        assert report.numbers[0].placed_24h.used == 1


@pytest.mark.browser
@pytest.mark.timeout(90)
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_the_page_says_what_stands_against_a_number(database: str, tmp_path: Path) -> None:
    async with running(database) as run, chromium(tmp_path, tone_hz=1000) as browser:
        await read_from_meta(run)
        page = await (await browser.new_context(locale="en-US")).new_page()
        await log_in(page, run.url, operator="ana", key=KEYS["ana"])
        note = page.get_by_test_id(f"number-note-{run.number_id}")
        await expect(note).to_be_hidden()
        await restrict(run, 3_600)
        await expect(note).to_contain_text("No outgoing calls: Meta has restricted calls on the business number.")
        await expect(note).to_contain_text("Possible again from")
        await page.get_by_test_id("lang").select_option("pt-BR")
        await expect(note).to_contain_text("Não é possível fazer chamadas: A Meta restringiu as chamadas")
