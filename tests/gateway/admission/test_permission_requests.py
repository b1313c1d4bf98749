"""A permission request leaves once, counts even if nobody knows whether it arrived, and is followed to its end."""

import asyncio
from typing import Any

import pytest

from gateway.admission.permission_requests import Asked
from gateway.common.errors import GraphError, GraphUnreachable
from policy.decision import Refusal
from policy.facts import RequestForm
from policy.pack import load_pack
from policy.reasons import Reason
from tests.support.fakes.graph import refused, unreachable
from tests.support.harness.doors import KEYED, Doors, doors
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

TO = "+5511900000001"
CONTACT = f"/v1/numbers/{NUMBER_ID}/contacts/{TO}"
ASK = f"{CONTACT}/permission-requests"
ONCE = {**KEYED, "Idempotency-Key": "order-42"}
TEMPLATE = "request_permission_template"


async def ask(world: World, asked_by: str = "ana") -> Asked | Refusal:
    return await world.admission.ask_permission(NUMBER_ID, TO, asked_by=asked_by)


async def post(opened: Doors, **headers: str) -> tuple[int, Any]:
    async with opened.client.post(ASK, headers={**KEYED, **headers}) as response:
        return response.status, await response.json(content_type=None)


async def show(opened: Doors) -> Any:
    async with opened.client.get(CONTACT, headers=KEYED) as response:
        assert response.status == 200
        return await response.json()


async def ana_replies(world: World, request_id: str | None, response: str = "accept") -> None:
    reply = {"response": response, "response_source": "user_action"}
    if response == "accept":
        reply["expiration_timestamp"] = str(int(world.clock.now().timestamp()) + 604_800)
    await world.deliver(
        messages=[
            {
                "id": "wamid.REPLY",
                "from": ANA.wa_id,
                "timestamp": str(int(world.clock.now().timestamp())),
                "type": "interactive",
                "context": {"from": "551155550100", "id": request_id},
                "interactive": {"type": "call_permission_reply", "call_permission_reply": reply},
            }
        ]
    )


# --- one at a time -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", ["guide", "meta", "sandbox"])
@pytest.mark.parametrize("error", [None, refused(TEMPLATE, 131026), unreachable(TEMPLATE)])
async def test_who_clicks_twice_asks_once_and_gets_one_answer(pack: str, error: GraphError | None) -> None:
    async with a_world() as world:
        world.number.pack = load_pack(pack)
        held = world.graph.hold(TEMPLATE)
        if error is not None:
            world.graph.fail(TEMPLATE, error)
        clicks = [asyncio.ensure_future(ask(world)) for _ in range(3)]  # noqa: TID251 - gathered below
        await world.graph.arrival(TEMPLATE)
        held.set()
        answers = await asyncio.gather(*clicks, return_exceptions=True)
        assert len(world.graph.sent) == 1
        assert len(set(map(id, answers))) == 1
        assert answers[0] is error if error else isinstance(answers[0], Asked)
        assert len(await world.store.decisions(NUMBER_ID)) == 1


async def test_while_a_request_is_on_its_way_no_second_one_leaves_under_any_pack() -> None:
    async with a_world() as world:
        world.number.pack = load_pack("sandbox")
        held = world.graph.hold(TEMPLATE)
        async with asyncio.TaskGroup() as tasks:
            first, second = (tasks.create_task(ask(world, name)) for name in ("ana", "bia"))
            await world.graph.arrival(TEMPLATE)
            await world.until(lambda: len(world.store.written) >= 2)  # both decisions
            held.set()
        assert first.result() is second.result()
        assert len(world.graph.sent) == 1


async def test_who_waits_and_leaves_takes_nobody_elses_answer_away() -> None:
    async with a_world() as world:
        held = world.graph.hold(TEMPLATE)
        first = world.tasks.create_task(ask(world))
        await world.graph.arrival(TEMPLATE)
        second = world.tasks.create_task(ask(world))
        await asyncio.sleep(0)
        second.cancel()
        held.set()
        assert isinstance(await first, Asked)


async def test_who_asked_first_and_leaves_takes_nobody_elses_answer_away() -> None:
    async with a_world() as world:
        held = world.graph.hold(TEMPLATE)
        first = world.tasks.create_task(ask(world))
        await world.graph.arrival(TEMPLATE)
        second = world.tasks.create_task(ask(world))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        held.set()
        assert isinstance(await second, Asked)
        assert len(world.graph.sent) == 1


async def test_a_request_that_nobody_waits_for_any_more_counts_all_the_same() -> None:
    async with a_world() as world:
        held = world.graph.hold(TEMPLATE)
        first = world.tasks.create_task(ask(world))
        await world.graph.arrival(TEMPLATE)
        first.cancel()
        await asyncio.wait([first])
        held.set()
        await world.until(lambda: len(world.engagements) == 0)
        again = await ask(world)
        assert isinstance(again, Refusal)
        assert (again.reason, again.rule) == (Reason.REQUEST_LIMIT, "request/per_24h")


# --- perhaps sent ------------------------------------------------------------------------------------


async def test_a_request_without_a_clear_answer_counts_as_sent() -> None:
    async with a_world() as world:
        world.graph.fail(TEMPLATE, unreachable(TEMPLATE))
        with pytest.raises(GraphUnreachable):
            await ask(world)
        again = await ask(world)
        assert isinstance(again, Refusal)
        assert (again.reason, again.rule) == (Reason.REQUEST_LIMIT, "request/per_24h")


@pytest.mark.parametrize(("maybe_sent", "code"), [(True, "outcome_unknown"), (False, "graph_error")])
async def test_an_operator_is_told_whether_a_request_has_perhaps_arrived(maybe_sent: bool, code: str) -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        world.graph.fail(TEMPLATE, unreachable(TEMPLATE, maybe_sent=maybe_sent))
        answer = await socket.ask("ask_permission", number_id=NUMBER_ID, to=TO)
        assert (answer["type"], answer["code"]) == ("error", code)
        decision = (await socket.ask("check", number_id=NUMBER_ID, to=TO))["data"]
        assert (decision["refusal"]["remedy"] == "wait_for_reply") is maybe_sent


async def test_a_double_click_on_one_socket_asks_once() -> None:
    async with a_world() as world, doors(world) as opened:
        socket, _ = await opened.login()
        held = world.graph.hold(TEMPLATE)
        clicks = [await socket.send("ask_permission", number_id=NUMBER_ID, to=TO) for _ in range(2)]
        await world.graph.arrival(TEMPLATE)
        await socket.ask("status", available=True)  # both have been read
        held.set()
        answers = [await socket.answer(click) for click in clicks]
        assert [answer["data"] for answer in answers] == [{"form": "template"}] * 2
        assert len(world.graph.sent) == 1


async def test_a_request_that_certainly_never_left_does_not_count() -> None:
    async with a_world() as world:
        world.graph.fail(TEMPLATE, unreachable(TEMPLATE, maybe_sent=False))
        with pytest.raises(GraphUnreachable):
            await ask(world)
        assert isinstance(await ask(world), Asked)


async def test_a_key_whose_request_has_perhaps_arrived_sends_nothing_again() -> None:
    async with a_world() as world, doors(world) as opened:
        world.number.pack = load_pack("sandbox")  # which would let 25 pass
        world.graph.fail(TEMPLATE, unreachable(TEMPLATE))
        status, body = await post(opened, **ONCE)
        assert (status, body["code"]) == (502, "graph_error")
        assert "counts as sent" in body["detail"]
        for _ in range(2):
            status, body = await post(opened, **ONCE)
            assert (status, body["code"]) == (409, "outcome_unknown")
            assert "reconcile" in body["detail"]
        assert len(world.graph.sent) == 1


async def test_a_key_whose_request_never_left_may_be_used_again() -> None:
    async with a_world() as world, doors(world) as opened:
        world.graph.fail(TEMPLATE, unreachable(TEMPLATE, maybe_sent=False))
        assert (await post(opened, **ONCE))[0] == 502
        assert (await post(opened, **ONCE))[0] == 201


@pytest.mark.parametrize("died", ["before Meta answered", "before the answer was kept"])
async def test_a_key_that_a_gateway_took_to_its_grave_sends_nothing_again(died: str) -> None:
    async with a_world() as world, doors(world) as opened:
        held = world.graph.hold(TEMPLATE)
        first = world.tasks.create_task(post(opened, **ONCE))
        await world.graph.arrival(TEMPLATE)
        if died == "before the answer was kept":

            async def lost(key: str, fingerprint: str, response: Any) -> None:
                return

            world.store.save_idempotent = lost  # type: ignore[method-assign]
            held.set()
            await first
        # The next process has the store and nothing of what was in memory.
        async with doors(world) as reopened:
            status, body = await post(reopened, **ONCE)
            assert (status, body["code"]) == (409, "in_progress")
            assert "another key" in body["detail"]
        assert len(world.graph.sent) == 1
        held.set()
        await first


async def test_a_key_that_is_under_way_says_to_wait() -> None:
    async with a_world() as world, doors(world) as opened:
        held = world.graph.hold(TEMPLATE)
        first = world.tasks.create_task(post(opened, **ONCE))
        await world.graph.arrival(TEMPLATE)
        status, body = await post(opened, **ONCE)
        assert (status, body["code"]) == (409, "in_progress")
        assert "same key" in body["detail"]
        held.set()
        assert (await first)[0] == 201


# --- followed to its end -----------------------------------------------------------------------------


async def test_a_contact_shows_its_requests_and_what_became_of_them() -> None:
    async with a_world() as world, doors(world) as opened:
        status, body = await post(opened)
        assert status == 201
        asked_at = (await show(opened))["checked_at"]
        (request,) = (await show(opened))["requests"]
        assert request == {
            "message_id": body["message_id"],
            "form": "template",
            "asked_at": asked_at,
            "outcome": "pending",
            "answered_at": None,
        }
        world.clock.advance(60)
        await ana_replies(world, body["message_id"], "reject")
        shown = await show(opened)
        (request,) = shown["requests"]
        assert (request["outcome"], request["answered_at"]) == ("declined", shown["checked_at"])


async def test_a_reply_to_a_request_of_unknown_fate_proves_that_it_arrived() -> None:
    async with a_world() as world, doors(world) as opened:
        world.graph.fail(TEMPLATE, unreachable(TEMPLATE))
        await post(opened)
        (request,) = (await show(opened))["requests"]
        assert (request["message_id"], request["outcome"]) == (None, "pending")
        await ana_replies(world, "wamid.UNHEARD")
        (request,) = (await show(opened))["requests"]
        assert request["outcome"] == "granted"


async def test_requests_older_than_the_state_remembers_are_still_listed() -> None:
    async with a_world() as world, doors(world) as opened:
        await post(opened)
        world.clock.advance(30 * 86_400)
        await post(opened)
        assert [each["outcome"] for each in (await show(opened))["requests"]] == ["lapsed", "pending"]


async def test_a_contact_shows_from_when_on_what_is_possible() -> None:
    async with a_world() as world, doors(world) as opened:
        fresh = await show(opened)
        now = fresh["checked_at"]
        assert (fresh["next_call_at"], fresh["next_free_form_at"], fresh["next_template_at"]) == (None, None, now)
        assert fresh["requests"] == []
        await post(opened)
        asked = await show(opened)
        assert (
            asked["next_template_at"] == asked["decision"]["ask"]["retry_at"] == asked["requests_24h"]["next_frees_at"]
        )
        world.grant()
        assert (await show(opened))["next_call_at"] == now


async def test_a_decision_shows_what_words_need() -> None:
    async with a_world() as world, doors(world) as opened:
        _, body = await post(opened)
        await ana_replies(world, body["message_id"], "reject")
        shown = await show(opened)
        decision = shown["decision"]
        assert decision["asked_at"] == decision["declined_at"] == shown["checked_at"]
        assert (decision["streak"], decision["streak_limit"]) == (0, 4)


async def test_decisions_about_a_contact_show_pack_rule_and_figures_and_ask_meta_nothing() -> None:
    async with a_world() as world, doors(world) as opened:
        await post(opened)
        assert (await post(opened))[0] == 429
        async with opened.client.get(
            f"/v1/numbers/{NUMBER_ID}/decisions", params={"user": TO}, headers=KEYED
        ) as response:
            no, yes = sorted(await response.json(), key=lambda decision: bool(decision["allowed"]))
        assert (yes["allowed"], yes["request"], yes["asked_by"]) == (True, "ask_permission", "api")
        assert no["pack"] == world.number.pack_label
        assert (no["refusal"]["rule"], no["refusal"]["observed"], no["refusal"]["limit"]) == ("request/per_24h", 1, 1)
        assert no["refusal"]["retry_at"]
        assert world.graph.ops() == [TEMPLATE]


async def test_each_form_is_as_the_numbers_settings_say() -> None:
    async with a_world() as world:
        asked = await ask(world)
        assert isinstance(asked, Asked)
        assert asked.form is RequestForm.TEMPLATE
        template = world.number.settings.permission_template
        sent = world.graph.only(TEMPLATE)
        assert (sent.args["name"], sent.args["language"]) == (template.name, template.language)
        assert sent.args["parameters"] == tuple(template.parameters)
