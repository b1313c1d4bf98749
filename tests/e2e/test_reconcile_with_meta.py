"""What only Meta knows: taken over before it costs a call; and requests that leave once whatever happens."""

from typing import Any

import aiohttp
import pytest

from loadtest.simulator.faults import read_graph_fault
from loadtest.simulator.rules import Contact
from tests.support.harness.running import API_KEY, Running, running
from tests.support.harness.waiting import until

pytestmark = pytest.mark.timeout(60)

TO = "+5511900000001"


def metas(run: Running) -> Contact:
    """Ana as the simulated Meta has her on record; what is changed here, no webhook tells."""
    return run.sim.world.contact(run.sim.number, run.ana.spec)


def grant_silently(run: Running) -> None:
    metas(run).grant(permanent=False, now=run.sim.world.clock())


async def api(run: Running, method: str, path: str, **headers: str) -> tuple[int, Any]:
    url = f"{run.url}/v1/numbers/{run.number_id}/contacts/{TO}{path}"
    headers = {"Authorization": f"Bearer {API_KEY}", **headers}
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def test_a_permission_from_before_the_gateway_was_installed_lets_the_first_dial_ring(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        grant_silently(run)
        view = await bot.request("dial", number_id=run.number_id, to=TO)
        await bot.wait_call(view["call_id"], "ringing")
        assert run.ana.current_call is not None
        assert run.sim.state()["violations"] == []


async def test_a_permission_that_meta_took_away_unheard_is_gone_after_we_asked(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        run.ana.grant()
        await bot.wait_push("contact")
        metas(run).revoke()
        status, body = await api(run, "POST", "/reconcile")
        assert status == 200
        assert [drift["rule"] for drift in body["drift"]] == ["contact/permission"]
        decision = await bot.request("check", number_id=run.number_id, to=TO)
        assert decision["refusal"]["reason"] == "permission_revoked"
        assert (await api(run, "POST", "/reconcile"))[1]["drift"] == []


async def test_a_dial_that_meta_refuses_is_looked_into_by_itself(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        run.ana.grant()
        await bot.wait_push("contact")
        metas(run).revoke()
        view = await bot.request("dial", number_id=run.number_id, to=TO)
        await bot.wait_call(view["call_id"], "ended")
        push = await bot.wait_push("contact", lambda push: not push["decision"]["allowed"])
        assert push["decision"]["refusal"]["reason"] == "permission_revoked"
        assert run.sim.state()["violations"] == []


async def next_second(run: Running) -> None:
    """Let Meta's whole seconds tell what came first: within one, a request counts as the later."""
    now = int(run.gateway.clock.now().timestamp())
    await until(lambda: int(run.gateway.clock.now().timestamp()) > now)


async def test_after_a_whole_story_meta_and_we_agree(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        assert (await api(run, "POST", "/permission-requests"))[0] == 201
        await next_second(run)
        run.ana.answer_permission(accept=True)
        await bot.wait_push("contact")
        view = await bot.request("dial", number_id=run.number_id, to=TO)
        await bot.wait_call(view["call_id"], "ringing")
        run.ana.accept()
        await bot.wait_call(view["call_id"], "active")
        await bot.request("hangup", call_id=view["call_id"])
        await bot.wait_call(view["call_id"], "ended")
        status, body = await api(run, "POST", "/reconcile")
        assert (status, body["drift"]) == (200, [])
        assert body["contact"]["connected_24h"]["used"] == 1
        assert [request["outcome"] for request in body["contact"]["requests"]] == ["granted"]


async def test_a_request_whose_answer_was_cut_is_sent_once_counted_and_followed(database: str) -> None:
    async with running(database) as run, run.operator() as bot:
        run.sim.faults.order([read_graph_fault({"fault": "cut_after", "action": "messages"})], None)
        key = {"Idempotency-Key": "order-42"}
        assert (await api(run, "POST", "/permission-requests", **key))[0] == 502
        status, body = await api(run, "POST", "/permission-requests", **key)
        assert (status, body["code"]) == (409, "outcome_unknown")
        status, body = await api(run, "POST", "/permission-requests", **{"Idempotency-Key": "order-43"})
        assert (status, body["code"]) == (429, "request_limit")
        assert len(metas(run).requests) == 1
        _, shown = await api(run, "GET", "")
        assert [(each["message_id"], each["outcome"]) for each in shown["requests"]] == [(None, "pending")]
        run.ana.answer_permission(accept=True)
        await bot.wait_push("contact")
        _, shown = await api(run, "GET", "")
        assert [each["outcome"] for each in shown["requests"]] == ["granted"]
        assert shown["next_call_at"] == shown["checked_at"]


async def test_a_refused_request_that_meta_counts_differently_is_put_right(database: str) -> None:
    async with running(database) as run:
        metas(run).add_request("wamid.ELSEWHERE", "May we call?", now=run.sim.world.clock())
        _, body = await api(run, "POST", "/reconcile")
        assert [drift["rule"] for drift in body["drift"]] == ["request/per_24h", "request/per_7d"]
        status, body = await api(run, "POST", "/permission-requests")
        assert (status, body["code"]) == (429, "request_limit")
        assert body["refusal"]["retry_at"]
