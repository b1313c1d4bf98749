"""The guide's edges from webhook to answer: each once through the whole gateway.

The figures at each edge are in `tests/policy` (an instant exactly 24 hours, 7 days, 168 hours old: `test_edges.py`),
one user under two names is in `test_identity.py`.
"""

from typing import Any

import pytest

from gateway.admission.permission_requests import Asked
from gateway.callflow.call import CallState
from gateway.calls.driver import CallDriver
from gateway.common.ids import MetaCallId, OperatorId
from policy.decision import Allow, Refusal, WarningCode
from policy.overview import Overview
from policy.reasons import Reason
from tests.support.fakes.graph import FakeGraph
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

TO = "+5511900000001"
HOUR_S, DAY_S = 3_600, 86_400
OURS = "BUSINESS_INITIATED"


async def page(world: World) -> Overview:
    checked = await world.admission.check(NUMBER_ID, TO)
    assert not isinstance(checked, Refusal)
    return checked.overview


async def place_reason(world: World) -> Reason | None:
    answer = (await page(world)).place
    return answer.reason if isinstance(answer, Refusal) else None


async def ask(world: World) -> Asked | Refusal:
    return await world.admission.ask_permission(NUMBER_ID, TO, asked_by="ana")


async def dial(world: World) -> CallDriver:
    driver = await world.admission.place(NUMBER_ID, TO, operator=OperatorId("ana"))
    assert isinstance(driver, CallDriver)
    await world.until(lambda: driver.call.meta_call_id is not None)
    return driver


def call_id(driver: CallDriver) -> MetaCallId:
    assert driver.call.meta_call_id is not None
    return driver.call.meta_call_id


async def ana_replies(world: World, message_id: str, response: str = "accept", *, to: str | None = None) -> None:
    """Reply to a request, or without `to` of her own accord; a permission for a week."""
    at = int(world.clock.now().timestamp())
    reply: dict[str, Any] = {"response": response, "response_source": "user_action"}
    if response == "accept":
        reply["expiration_timestamp"] = str(at + 7 * DAY_S)
    message: dict[str, Any] = {"id": message_id, "from": ANA.wa_id, "timestamp": str(at), "type": "interactive"}
    message["interactive"] = {"type": "call_permission_reply", "call_permission_reply": reply}
    if to is not None:
        message["context"] = {"id": to, "from": "551155550100"}
    await world.deliver(messages=[message])


async def calls_in_vain(world: World, *ids: str) -> None:
    for each in ids:
        world.clock.advance(60)
        await world.meta_terminates(each, direction=OURS)


async def a_call_is_taken(world: World, wacid: str, direction: str) -> None:
    world.clock.advance(60)
    await world.meta_terminates(wacid, direction=direction, talked_s=20)


async def test_two_requests_25_hours_apart_and_a_third() -> None:
    async with a_world() as world:
        start = world.clock.now()
        answers = []
        for after_s in (0, DAY_S - 1, 25 * HOUR_S, 7 * DAY_S - 1, 7 * DAY_S, 8 * DAY_S, 7 * DAY_S + 25 * HOUR_S):
            world.clock.set(start)
            world.clock.advance(after_s)
            answers.append(isinstance(await ask(world), Asked))
        assert answers == [True, False, True, False, True, False, True]


async def test_a_decline_and_then_a_connected_call() -> None:
    """The call clears the counts (R5) and not the wait after the decline (R7)."""
    async with a_world() as world:
        asked = await ask(world)
        assert isinstance(asked, Asked)
        world.clock.advance(HOUR_S)
        declined_at = world.clock.now()
        await ana_replies(world, "wamid.NO", "reject", to=asked.message_id)
        await a_call_is_taken(world, "wacid.HERS", "USER_INITIATED")
        assert ((await page(world)).requests_24h.used, (await page(world)).requests_7d.used) == (0, 0)
        no = await ask(world)
        assert isinstance(no, Refusal)
        assert no.reason is Reason.AFTER_DECLINE
        world.clock.set(declined_at)
        world.clock.advance(DAY_S - 1)
        assert isinstance(await ask(world), Refusal)
        world.clock.advance(1)
        assert isinstance(await ask(world), Asked)


async def test_a_streak_broken_by_one_answered_call() -> None:
    async with a_world() as world:
        await ana_replies(world, "wamid.YES")
        await calls_in_vain(world, "wacid.1", "wacid.2", "wacid.3")
        await a_call_is_taken(world, "wacid.4", OURS)
        await calls_in_vain(world, "wacid.5")
        assert (await place_reason(world), (await page(world)).permission.streak) == (None, 1)


async def test_a_users_call_between_unanswered_ones_leaves_the_streak_alone() -> None:
    async with a_world() as world:
        await ana_replies(world, "wamid.YES")
        await calls_in_vain(world, "wacid.1", "wacid.2")
        await a_call_is_taken(world, "wacid.HERS", "USER_INITIATED")
        await calls_in_vain(world, "wacid.3")
        assert (await place_reason(world), (await page(world)).permission.streak) == (None, 3)
        await calls_in_vain(world, "wacid.4")
        assert await place_reason(world) is Reason.PERMISSION_REVOKED


async def test_revoked_after_four_calls_and_then_granted_by_hand() -> None:
    """Nobody asked her: the grant counts, and the streak starts at nothing."""
    async with a_world() as world:
        await ana_replies(world, "wamid.YES")
        await calls_in_vain(world, "wacid.1", "wacid.2", "wacid.3")
        before = (await page(world)).place
        assert isinstance(before, Allow)
        assert WarningCode.STREAK_NOTICE_SENT in [warning.code for warning in before.warnings]
        await calls_in_vain(world, "wacid.4")
        assert await place_reason(world) is Reason.PERMISSION_REVOKED
        world.clock.advance(60)
        await ana_replies(world, "wamid.AGAIN")
        after = await page(world)
        assert isinstance(after.place, Allow)
        assert after.permission.streak == 0
        assert WarningCode.STREAK_NOTICE_SENT not in [warning.code for warning in after.place.warnings]


async def test_a_permission_that_expires_while_the_phone_rings() -> None:
    """The call goes on, is picked up and counted; the next one needs permission."""
    async with a_world() as world:
        await world.login()
        await ana_replies(world, "wamid.YES")
        world.clock.advance(7 * DAY_S - 5)
        driver = await dial(world)
        await world.meta_says("connect", call_id(driver))
        await world.meta_says("RINGING", call_id(driver))
        await world.until(lambda: driver.call.state is CallState.RINGING)
        world.clock.advance(6)
        assert await place_reason(world) is Reason.PERMISSION_EXPIRED
        await world.meta_says("ACCEPTED", call_id(driver))
        await world.until(lambda: driver.call.state is CallState.ACTIVE)
        assert (await page(world)).connected_24h.used == 1
        assert _sent(world.graph) == ["connect"]


@pytest.mark.parametrize(("answered", "streak"), [(True, 0), (False, 1)])
async def test_a_grant_during_a_call_of_ours(answered: bool, streak: int) -> None:
    """It renews the permission and ends the streak before it; how that call ends counts after it."""
    async with a_world() as world:
        await world.login()
        await ana_replies(world, "wamid.YES")
        await calls_in_vain(world, "wacid.1", "wacid.2", "wacid.3")
        driver = await dial(world)
        world.clock.advance(5)
        await ana_replies(world, "wamid.AGAIN")
        granted_at = world.clock.now()
        world.clock.advance(5)
        if answered:
            await world.meta_says("ACCEPTED", call_id(driver))
        await world.meta_terminates(call_id(driver), direction=OURS, **({"talked_s": 0} if answered else {}))
        await world.ended(driver)
        found = await page(world)
        assert isinstance(found.place, Allow)
        assert (found.permission.granted_at, found.permission.streak) == (granted_at, streak)


def _sent(graph: FakeGraph) -> list[str]:
    """What went to Meta about calls."""
    return [op for op in graph.ops() if op in ("connect", "terminate", "reject")]
