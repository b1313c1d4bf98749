"""Each event takes effect once, whatever order and company it comes in; nothing is acknowledged before it is kept."""

import pytest

from gateway.callflow.outcome import EndReason, Result
from gateway.calls.driver import CallDriver
from gateway.common.errors import StoreDown
from gateway.meta.events import read_delivery
from policy.decision import Allow
from policy.facts import RequestForm
from tests.support.harness.world import ANA, NUMBER_ID, WACID, a_world

GRANTED = {
    "from": ANA.wa_id,
    "from_user_id": ANA.user_id,
    "id": "wamid.REPLY",
    "type": "interactive",
    "context": {"id": "wamid.REQUEST"},
    "interactive": {
        "type": "call_permission_reply",
        "call_permission_reply": {"response": "accept", "response_source": "user_action"},
    },
}


async def test_the_same_connect_again_rings_once() -> None:
    async with a_world() as world:
        first = await world.user_calls()
        assert first is not None
        assert await world.user_calls() is None
        assert len(world.registry) == 1
        assert world.number.incoming.in_use == 1


async def test_a_connect_that_comes_again_after_the_end_does_not_ring() -> None:
    async with a_world() as world:
        driver = await world.user_calls()
        assert driver is not None
        await world.meta_terminates()
        await world.ended(driver)
        world.inbox._seen.clear()  # as after a restart
        assert await world.user_calls() is None


async def test_a_terminate_that_overtakes_its_connect_leaves_a_record_and_rings_nobody() -> None:
    async with a_world() as world:
        _, line = await world.login()
        await world.meta_terminates()
        driver = await world.user_calls()
        assert driver is not None
        record = await world.ended(driver)
        assert (record.result, record.reason) == (Result.USER, EndReason.CANCELLED)
        assert not line.pushes
        assert not world.graph.ops()
        assert world.number.incoming.in_use == 0


async def test_a_stale_connect_is_kept_but_not_rung() -> None:
    async with a_world() as world:
        assert await world.user_calls(age_s=61) is None
        assert [event.kind for event in world.store.events] == ["call.offered"]


async def test_a_connect_for_a_number_that_is_not_ours_is_kept() -> None:
    async with a_world() as world:
        body = b'{"entry":[{"changes":[{"field":"calls","value":{"metadata":{"phone_number_id":"999"},"calls":[]}}]}]}'
        await world.inbox.deliver(read_delivery(body))
        assert [event.phone_number_id for event in world.store.events] == ["999"]


async def test_all_calls_of_one_delivery_are_taken() -> None:
    async with a_world() as world:
        at = str(int(world.clock.now().timestamp()))
        offer = {"sdp_type": "offer", "sdp": "v=0 offer"}
        await world.deliver(
            calls=[
                {"id": f"wacid.{n}", "from": f"551190000000{n}", "event": "connect", "timestamp": at, "session": offer}
                for n in range(5)
            ]
        )
        assert len(world.registry) == 5
        assert world.number.incoming.in_use == 5
        assert len(world.store.events) == 5


async def test_a_late_terminate_only_fills_the_record() -> None:
    async with a_world() as world:
        driver = await world.user_calls()
        assert driver is not None
        await world.meta_terminates(talked_s=None)
        before = await world.ended(driver)
        world.inbox._seen.clear()
        await world.meta_terminates(talked_s=30)
        await world.until(lambda: bool(world.store.written))
        after = await world.record(driver.call.call_id)
        assert (before.duration_s, after.duration_s) == (None, 30)
        assert after.result is before.result


async def test_nothing_is_acknowledged_while_the_store_is_away_and_the_call_rings_all_the_same() -> None:
    async with a_world() as world:
        world.store.fail_with()
        with pytest.raises(StoreDown):
            await world.user_calls()
        assert len(world.registry) == 1
        world.store.heal()
        await world.user_calls()  # Meta sends it again
        assert len(world.registry) == 1
        assert [event.kind for event in world.store.events] == ["call.offered"]


async def test_an_event_that_is_no_fact_is_not_acknowledged_before_it_is_kept_either() -> None:
    async with a_world() as world:
        world.store.fail_with()
        with pytest.raises(StoreDown):
            await world.meta_says("RINGING")
        assert not world.store.waiting


async def test_a_permission_reply_changes_what_the_gate_says_and_every_phone_hears_it() -> None:
    async with a_world() as world:
        _, line = await world.login()
        before = await world.admission.check(NUMBER_ID, "+5511900000001")
        assert not isinstance(getattr(getattr(before, "overview", None), "place", None), Allow)
        at = str(int(world.clock.now().timestamp()))
        await world.deliver(contacts=[{"wa_id": ANA.wa_id}], messages=[GRANTED | {"timestamp": at}])
        after = await world.admission.check(NUMBER_ID, "+5511900000001")
        assert isinstance(getattr(getattr(after, "overview", None), "place", None), Allow)
        (push,) = line.pushes
        assert push.decision.allowed  # type: ignore[union-attr]


async def test_a_users_call_opens_the_window_and_grants_nothing() -> None:
    async with a_world() as world:
        closed = await world.admission.check(NUMBER_ID, "+5511900000001")
        driver = await world.user_calls()
        assert driver is not None
        await world.meta_terminates()
        await world.ended(driver)
        opened = await world.admission.check(NUMBER_ID, "+5511900000001")
        assert getattr(getattr(closed, "overview", None), "form", None) is RequestForm.TEMPLATE
        assert getattr(getattr(opened, "overview", None), "form", None) is RequestForm.FREE_FORM
        assert not isinstance(getattr(getattr(opened, "overview", None), "place", None), Allow)


async def test_a_message_opens_the_window() -> None:
    async with a_world() as world:
        at = str(int(world.clock.now().timestamp()))
        await world.deliver(messages=[{"id": "wamid.1", "from": ANA.wa_id, "timestamp": at, "type": "text"}])
        opened = await world.admission.check(NUMBER_ID, "+5511900000001")
        assert getattr(getattr(opened, "overview", None), "form", None) is RequestForm.FREE_FORM


async def test_facts_and_events_are_one_transaction() -> None:
    async with a_world() as world:
        at = str(int(world.clock.now().timestamp()))
        await world.deliver(messages=[GRANTED | {"timestamp": at}])
        (group,) = [group for group in world.store.written if any(type(row).__name__ == "EventRecord" for row in group)]
        assert {type(row).__name__ for row in group} == {"EventRecord", "ContactRecord", "FactRecord"}


async def test_an_unknown_kind_is_kept_and_disturbs_nothing() -> None:
    async with a_world() as world:
        await world.deliver(calls=[{"id": WACID, "event": "call_recording_available", "timestamp": "1790000000"}])
        assert [event.kind for event in world.store.events] == ["calls.other"]
        assert not len(world.registry)


async def test_events_of_calls_that_never_come_are_forgotten() -> None:
    async with a_world() as world:
        for n in range(1_100):
            await world.meta_terminates(f"wacid.{n}")
        assert len(world.registry._parked) <= 1_000
        world.clock.advance(61)
        await world.meta_terminates("wacid.last")
        assert len(world.registry._parked) == 1


# --- the same again ----------------------------------------------------------------------------------


def message(at: str) -> dict[str, str]:
    return {"id": "wamid.1", "from": str(ANA.wa_id), "timestamp": at, "type": "text"}


async def test_what_is_durable_is_not_written_again() -> None:
    async with a_world() as world:
        at = str(int(world.clock.now().timestamp()))
        await world.deliver(messages=[message(at)])
        written = len(world.store.written)
        await world.deliver(messages=[message(at)])
        assert len(world.store.written) == written


async def test_an_event_that_comes_again_after_days_and_a_restart_takes_no_effect() -> None:
    async with a_world() as before:
        at = str(int(before.clock.now().timestamp()))
        driver = await before.user_calls()
        assert driver is not None
        await before.deliver(messages=[message(at)])
        await before.meta_terminates(talked_s=3)
        await before.ended(driver)
        contact = await before.contacts.get(before.number, ANA)
        seen_at, age_s = contact.seen_at, 6 * 86_400
    before.clock.advance(age_s)
    async with a_world(store=before.store, clock=before.clock) as after:
        after.store.written.clear()
        await after.user_calls(age_s=age_s)
        await after.deliver(messages=[message(at)])
        await after.meta_terminates(timestamp=at)
        assert (len(after.drivers), after.graph.ops(), after.store.written) == (0, [], [])
        assert (await after.contacts.get(after.number, ANA)).seen_at == seen_at


async def test_an_old_event_that_never_came_takes_effect_and_others_do_not_wait_for_the_journal() -> None:
    async with a_world() as world:
        old = str(int(world.clock.now().timestamp()) - 3_600)
        looked: list[int] = []
        known_events = world.store.known_events

        async def look(number_id: str, keys: list[str]) -> set[str]:
            looked.append(len(world.registry))
            return await known_events(number_id, keys)

        world.store.known_events = look  # type: ignore[assignment, method-assign]
        await world.user_calls()
        assert looked == []
        await world.deliver(messages=[message(old)])
        assert looked == [1]
        assert "messages/wamid.1" in {event.dedupe_key for event in world.store.events}


async def test_a_late_terminate_of_a_live_call_needs_no_journal() -> None:
    async with a_world() as world:
        driver = await world.user_calls()
        assert driver is not None
        world.store.fail_with()
        world.clock.advance(3_600)
        with pytest.raises(StoreDown):
            await world.meta_terminates(timestamp=str(int(world.clock.now().timestamp()) - 3_000))
        await world.until(lambda: not len(world.registry))


async def test_metas_facts_of_a_call_are_kept_with_the_event_whoever_ran_it() -> None:
    async with a_world() as before:
        driver = await before.user_calls()
        assert driver is not None
        await before.until(lambda: driver.call.state.value == "ringing")
    async with a_world(store=before.store, clock=before.clock) as after:  # which knows nothing of the call
        await after.meta_terminates(talked_s=30)
        group = after.store.written[-1]
        assert {type(row).__name__ for row in group} >= {"EventRecord", "TerminateFacts"}
        assert (await after.record(driver.call.call_id)).duration_s == 30


async def test_a_bug_in_one_event_costs_no_other_and_nobody_is_left_ringing() -> None:
    async with a_world() as world:
        incoming, failed = world.admission.incoming, [RuntimeError("bug")]

        async def sometimes(*given: object) -> None:
            if failed:
                raise failed.pop()
            await incoming(*given)  # type: ignore[arg-type]

        world.admission.incoming = sometimes  # type: ignore[assignment, method-assign]
        assert await world.user_calls("wacid.BROKEN") is None
        assert await world.user_calls("wacid.GOOD") is not None
        assert (await world.graph.arrival("terminate")).args["call"] == "wacid.BROKEN"


# --- overtaking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [True, False], ids=["with our id", "without"])
async def test_what_overtakes_the_answer_of_connect_is_not_lost(marked: bool) -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        await world.allow_calls()
        answer = world.graph.hold("connect")
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=phone.operator)
        assert isinstance(driver, CallDriver)
        await world.graph.arrival("connect")
        mark = {"biz_opaque_callback_data": driver.call.call_id} if marked else {}
        for event in ("ACCEPTED", "connect"):
            await world.meta_says(event, "wacid.FAKE0001", **mark)
        if not marked:
            answer.set()
        await world.until(lambda: driver.call.state.value == "active")
        await world.until(lambda: ("accept_meta_answer", driver.meta_leg) in world.media.asked)
        answer.set()


async def test_a_decline_after_the_terminate_still_says_why() -> None:
    async with a_world() as world:
        phone, _ = await world.login()
        await world.allow_calls()
        driver = await world.admission.place(NUMBER_ID, "+5511900000001", operator=phone.operator)
        assert isinstance(driver, CallDriver)
        await world.until(lambda: driver.call.meta_call_id is not None)
        await world.meta_terminates("wacid.FAKE0001", direction="BUSINESS_INITIATED")
        assert (await world.ended(driver)).reason is EndReason.NOT_ANSWERED
        await world.meta_says("REJECTED", "wacid.FAKE0001")
        assert (await world.record(driver.call.call_id)).reason is EndReason.DECLINED
