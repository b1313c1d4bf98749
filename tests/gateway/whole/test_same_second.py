"""Meta's webhooks tell whole seconds and our own facts are finer: within one second the stricter reading holds."""

from datetime import timedelta

import pytest

from gateway.admission.permission_requests import Asked
from policy.decision import Allow, Refusal
from policy.reasons import Reason, Remedy
from tests.support.fakes.clock import START
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

TO = "+5511900000001"
DAY_S = 86_400


async def ask(world: World) -> Asked | Refusal:
    return await world.admission.ask_permission(NUMBER_ID, TO, asked_by="ana")


async def place(world: World) -> Allow | Refusal:
    checked = await world.admission.check(NUMBER_ID, TO)
    assert not isinstance(checked, Refusal)
    return checked.overview.place


async def ana_replies(world: World, response: str, request_id: str = "wamid.OTHER") -> None:
    at = int(world.clock.now().timestamp())
    reply = {"response": response, "response_source": "user_action"}
    if response == "accept":
        reply["expiration_timestamp"] = str(at + 7 * DAY_S)
    interactive = {"type": "call_permission_reply", "call_permission_reply": reply}
    message = {"id": "wamid.R", "from": ANA.wa_id, "timestamp": str(at), "type": "interactive"}
    asked = {"id": request_id, "from": "551155550100"}
    await world.deliver(messages=[message | {"context": asked, "interactive": interactive}])


async def a_call_of_ours_is_picked_up(world: World) -> None:
    await world.meta_terminates("wacid.OURS", direction="BUSINESS_INITIATED", talked_s=0)


@pytest.mark.parametrize(("later_s", "counts"), [(0.0, True), (0.6, True), (1.0, False)])
async def test_a_request_and_the_call_it_led_to_within_one_second(later_s: float, counts: bool) -> None:
    """Asked at 12:00:00.3, talking at "12:00:00": which came first cannot be told, so the request goes on counting."""
    async with a_world() as world:
        world.clock.advance(0.3)
        assert isinstance(await ask(world), Asked)
        world.clock.advance(later_s)
        await a_call_of_ours_is_picked_up(world)
        again = await ask(world)
        if not counts:
            assert isinstance(again, Asked)
            return
        assert isinstance(again, Refusal)
        assert again.reason is Reason.REQUEST_LIMIT
        # No longer than without the call: a day after the request, to the instant.
        assert again.retry_at == START + timedelta(seconds=DAY_S + 0.3)


async def test_what_is_granted_within_the_second_of_the_request_is_granted() -> None:
    async with a_world() as world:
        world.clock.advance(0.3)
        assert isinstance(await ask(world), Asked)
        await ana_replies(world, "accept")
        assert isinstance(await place(world), Allow)


async def test_what_is_declined_within_the_second_of_the_request_is_declined() -> None:
    """The reply names its request, so nobody waits for another, whatever the two clocks say."""
    async with a_world() as world:
        world.clock.advance(0.3)
        asked = await ask(world)
        assert isinstance(asked, Asked)
        await ana_replies(world, "reject", asked.message_id)
        no = await place(world)
        assert isinstance(no, Refusal)
        assert (no.reason, no.remedy) == (Reason.NO_PERMISSION, Remedy.ASK_LATER)
        again = await ask(world)
        assert isinstance(again, Refusal)
        assert again.reason is Reason.AFTER_DECLINE
        assert again.retry_at == START + timedelta(seconds=DAY_S + 0.3)


async def test_two_events_of_one_second_end_alike_whichever_webhook_comes_first() -> None:
    ends = []
    for order in ((ana_replies, a_call_of_ours_is_picked_up), (a_call_of_ours_is_picked_up, ana_replies)):
        async with a_world() as world:
            for happens in order:
                await happens(*((world, "accept") if happens is ana_replies else (world,)))
            contact = await world.contacts.get(world.number, ANA)
            ends.append((contact.state, await place(world)))
    assert ends[0] == ends[1]
