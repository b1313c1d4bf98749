"""A gateway with too much to do, at each of its doors: who still gets through, and what the others are told."""

import asyncio

import pytest

from gateway.admission.overload import Level, Overload
from gateway.calls.driver import CallDriver
from gateway.common.ids import OperatorId
from policy.decision import Refusal
from policy.reasons import Reason
from tests.support.harness.doors import KEYED, doors
from tests.support.harness.world import NUMBER_ID, World, a_world

NUMBER = f"/v1/numbers/{NUMBER_ID}"
LISTS = ["/v1/calls", f"{NUMBER}/decisions"]
LOOK_UPS = [NUMBER, "/v1/numbers", f"{NUMBER}/contacts/+5511900000001", "/v1/calls/" + "0" * 32]


def late(world: World, level: Level) -> None:
    """Let the loop have been late for long enough."""
    now = asyncio.get_running_loop().time()
    lag_s = {Level.LATE: 0.1, Level.STUCK: 0.3}[level]
    for tenth in range(12):
        world.overload.sampled(lag_s, now=now + tenth / 10)
    assert world.overload.level is level


async def place(world: World) -> CallDriver | Refusal:
    return await world.admission.place(NUMBER_ID, "+5511900000001", operator=OperatorId("ana"))


async def test_above_the_ceiling_no_call_is_placed_and_nobody_is_asked() -> None:
    async with a_world(overload=Overload(max_setups_per_s=1)) as world:
        await world.login()
        await world.allow_calls()
        await world.user_calls("wacid.0")
        answer = await place(world)
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.rule, answer.limit) == (Reason.OVERLOADED, "gateway/setups_per_s", 1)
        assert answer.retry_at is not None
        assert answer.retry_at > world.clock.now()
        assert world.number.outgoing.in_use == 0
        assert "connect" not in world.graph.ops()
        kept = [decision for decision in await world.store.decisions(NUMBER_ID) if not decision.allowed]
        assert [(decision.request, decision.asked_by) for decision in kept] == [("place", "ana")]


async def test_a_dial_that_the_rules_refuse_takes_nothing_of_the_ceiling() -> None:
    async with a_world(overload=Overload(max_setups_per_s=1)) as world:
        await world.login()
        for _ in range(5):
            answer = await place(world)
            assert isinstance(answer, Refusal)
            assert answer.reason is Reason.NO_PERMISSION
        await world.allow_calls()
        assert isinstance(await place(world), CallDriver)


async def test_a_client_of_the_api_is_told_when_to_come_again() -> None:
    async with a_world(overload=Overload(max_setups_per_s=1)) as world, doors(world) as opened:
        await opened.login()
        await world.allow_calls()
        await world.user_calls("wacid.0")
        wanted = {"to": "+5511900000001", "operator": "ana"}
        async with opened.client.post(f"{NUMBER}/calls", json=wanted, headers=KEYED) as response:
            assert (response.status, response.content_type) == (503, "application/problem+json")
            assert 2 <= int(response.headers["Retry-After"]) <= 6
            said = await response.json()
        assert said["code"] == "overloaded"
        assert said["refusal"]["remedy"] == "try_again_soon"


@pytest.mark.parametrize("level", [Level.LATE, Level.STUCK])
async def test_lists_are_the_first_to_be_refused_and_look_ups_the_last(level: Level) -> None:
    async with a_world() as world, doors(world) as opened:
        late(world, level)
        for path in LISTS:
            async with opened.client.get(path, headers=KEYED) as response:
                assert (response.status, "Retry-After" in response.headers) == (503, True)
        for path in LOOK_UPS:
            async with opened.client.get(path, headers=KEYED) as response:
                assert (response.status == 503) is (level is Level.STUCK), path


async def test_the_key_is_asked_for_first() -> None:
    async with a_world() as world, doors(world) as opened:
        late(world, Level.STUCK)
        async with opened.client.get("/v1/calls") as response:
            assert response.status == 401


async def test_what_ends_or_answers_a_call_and_every_webhook_gets_through_when_all_else_is_refused() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        driver = await world.user_calls("wacid.0")
        assert driver is not None
        await world.graph.arrival("pre_accept")
        late(world, Level.STUCK)
        assert await world.user_calls("wacid.1") is None
        assert (await socket.ask("recent", limit=5))["refusal"]["reason"] == "overloaded"
        assert (await socket.ask("dial", number_id=NUMBER_ID, to="+5511900000009"))["code"] == "refused"
        assert (await socket.ask("accept", call_id=driver.call.call_id))["type"] == "ok"
        await world.graph.arrival("accept")
        async with opened.client.delete(f"/v1/calls/{driver.call.call_id}", headers=KEYED) as response:
            assert response.status == 202
        await world.graph.arrival("terminate")
        await world.meta_terminates("wacid.0", talked_s=3)
        await world.ended(driver)


async def test_a_page_that_comes_back_while_the_gateway_drains_is_told_and_keeps_its_call() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, welcome = await opened.login()
        driver = await world.user_calls("wacid.0")
        assert driver is not None
        await world.graph.arrival("pre_accept")
        await socket.ask("accept", call_id=driver.call.call_id)
        await world.until(lambda: driver.was_accepted)
        world.gate.draining = True
        await socket.ws.close()
        again = await opened.socket()
        answer = await again.ask("hello", resume=welcome["resume"])
        assert [call["call_id"] for call in answer["data"]["calls"]] == [driver.call.call_id]
        assert (await again.push("notice"))["code"] == "draining"
        assert (await again.ask("hangup", call_id=driver.call.call_id))["type"] == "ok"
        await world.graph.arrival("terminate")
