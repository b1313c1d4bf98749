"""What is in flight counts, what ends unconnected does not, and a crash neither keeps nor forgets anything."""

import asyncio

import pytest
from msgspec.structs import replace

from gateway.calls.driver import CallDriver
from gateway.common.ids import OperatorId
from gateway.contacts.directory import refold
from media.errors import NoWorker
from policy.contact import state_from_dict, state_to_dict
from policy.decision import Refusal
from policy.reasons import Reason
from tests.support.fakes.graph import refused
from tests.support.harness.world import ANA, CONNECTED_LIMIT, NUMBER_ID, World, a_world


async def place(world: World, operator: str = "ana") -> CallDriver | Refusal:
    return await world.admission.place(NUMBER_ID, f"+{ANA.wa_id}", operator=OperatorId(operator))


async def dialled(world: World, operator: str = "ana") -> CallDriver:
    """A call that Meta has taken."""
    driver = await place(world, operator)
    assert isinstance(driver, CallDriver)
    await world.until(lambda: driver.call.meta_call_id is not None)
    return driver


@pytest.mark.parametrize("busy_counts", [True, False], ids=["as it is", "reservations alone"])
async def test_with_four_of_five_used_one_of_a_thousand_dials_passes(busy_counts: bool) -> None:
    async with a_world(outgoing_slots=1_000) as world:
        await world.had_calls(CONNECTED_LIMIT - 1)
        for n in range(1_000):
            await world.login(f"op{n}")
        if not busy_counts:
            world.engagements.has_call = lambda keys: False  # type: ignore[method-assign]
        answers = await asyncio.gather(*(place(world, f"op{n}") for n in range(1_000)))
        refusals = [answer for answer in answers if isinstance(answer, Refusal)]
        assert len(refusals) == 999
        assert {(refusal.reason, refusal.observed, refusal.limit) for refusal in refusals} == {
            (Reason.CONNECTED_LIMIT, CONNECTED_LIMIT, CONNECTED_LIMIT)
        }
        assert world.number.outgoing.in_use == len(world.registry) == 1


async def test_with_room_for_all_but_one_so_many_pass_and_no_more() -> None:
    async with a_world(outgoing_slots=100) as world:
        await world.had_calls(2)
        world.engagements.has_call = lambda keys: False  # type: ignore[method-assign]
        for n in range(50):
            await world.login(f"op{n}")
        answers = await asyncio.gather(*(place(world, f"op{n}") for n in range(50)))
        assert sum(isinstance(answer, CallDriver) for answer in answers) == CONNECTED_LIMIT - 2


@pytest.mark.parametrize("cause", ["media", "graph", "nobody"])
async def test_a_reservation_that_ends_unconnected_is_given_back_at_once(cause: str) -> None:
    async with a_world() as world:
        await world.had_calls(CONNECTED_LIMIT - 1)
        await world.login()
        if cause == "media":
            world.media.fail("offer_meta", NoWorker())
        elif cause == "graph":
            world.graph.fail("connect", refused("connect", 138001))
        first = await place(world)
        assert isinstance(first, CallDriver)
        if cause == "nobody":
            await world.until(lambda: first.call.meta_call_id is not None)
            await world.meta_terminates(first.call.meta_call_id or "", direction="BUSINESS_INITIATED")
        await world.ended(first)
        assert isinstance(await place(world), CallDriver)


async def test_a_call_that_connects_keeps_its_place_for_a_day() -> None:
    async with a_world() as world:
        await world.had_calls(CONNECTED_LIMIT - 1)
        await world.login()
        driver = await dialled(world)
        await world.meta_says("ACCEPTED", driver.call.meta_call_id or "")
        await world.meta_terminates(driver.call.meta_call_id or "", direction="BUSINESS_INITIATED", talked_s=9)
        await world.ended(driver)
        again = await place(world)
        assert isinstance(again, Refusal)
        assert (again.reason, again.observed) == (Reason.CONNECTED_LIMIT, CONNECTED_LIMIT)


# --- after a crash -----------------------------------------------------------------------------------


async def crashed(world: World, *, accepted: bool) -> str:
    """A call of ours is up, or rings, when the process dies; return Meta's id of it."""
    await world.had_calls(CONNECTED_LIMIT - 1)
    await world.login()
    driver = await dialled(world)
    call_id = driver.call.meta_call_id or ""
    await world.meta_says("RINGING", call_id)
    if accepted:
        await world.meta_says("ACCEPTED", call_id)
        await world.until(lambda: driver.was_accepted)
    else:
        await world.until(lambda: driver.call.state.value == "ringing")
    return call_id


async def check_store(world: World) -> dict[str, str]:
    """Return the contact's facts by key, after proving that the snapshot is their fold."""
    record = await world.store.contact(NUMBER_ID, ANA)
    assert record is not None
    facts = await world.store.facts(record.contact_id)
    assert state_from_dict(record.state) == refold(facts)
    return {fact.key: str(fact.fact["kind"]) for fact in facts}


async def recover(world: World) -> None:
    """End what the earlier process left, and wait until Meta has heard."""
    (await world.recovery()).close()
    await world.until(lambda: not len(world.owed_hangups))


@pytest.mark.parametrize("fact_kept", [True, False], ids=["fact kept", "fact lost"])
async def test_a_call_that_was_up_when_the_process_died_is_one_connected_call(fact_kept: bool) -> None:
    async with a_world() as before:
        call_id = await crashed(before, accepted=True)
    if not fact_kept:  # the crash took the last transaction about the contact
        tables = before.store._tables
        (contact_id,) = tables.contacts
        del tables.facts[(contact_id, f"connected/{call_id}")]
        state = state_to_dict(refold(await before.store.facts(contact_id)))
        tables.contacts[contact_id] = replace(tables.contacts[contact_id], state=state)
    async with a_world(store=before.store, clock=before.clock) as after:
        await recover(after)
        assert after.graph.only("terminate").args["call"] == call_id
        for _ in range(2):  # Meta repeats itself
            await after.meta_terminates(call_id, direction="BUSINESS_INITIATED", talked_s=5)
        facts = await check_store(after)
        assert [key for key in facts if key.endswith(call_id)] == [f"connected/{call_id}"]
        contact = await after.contacts.get(after.number, ANA)
        assert len([call for call in contact.state.connected if call.key.endswith(call_id)]) == 1
        await after.login()
        again = await place(after)
        assert isinstance(again, Refusal)
        assert (again.reason, again.observed) == (Reason.CONNECTED_LIMIT, CONNECTED_LIMIT)


async def test_a_call_that_rang_when_the_process_died_is_one_unanswered_call() -> None:
    async with a_world() as before:
        call_id = await crashed(before, accepted=False)
    async with a_world(store=before.store, clock=before.clock) as after:
        await recover(after)
        for _ in range(2):
            await after.meta_terminates(call_id, direction="BUSINESS_INITIATED")
        facts = await check_store(after)
        assert {key: kind for key, kind in facts.items() if key.endswith(call_id)} == {
            f"unanswered/{call_id}": "call_unanswered"
        }
        contact = await after.contacts.get(after.number, ANA)
        assert len(contact.state.unanswered) == 1


async def test_a_left_over_call_keeps_its_reservation_until_meta_has_been_told() -> None:
    async with a_world() as before:
        await crashed(before, accepted=False)
    async with a_world(store=before.store, clock=before.clock) as after:
        await after.login()
        await after.contacts.get(after.number, ANA)
        told = after.graph.hold("terminate")
        (await after.recovery()).close()
        await after.graph.arrival("terminate")
        taken = await place(after)
        assert isinstance(taken, Refusal)
        assert (taken.reason, taken.observed) == (Reason.CONNECTED_LIMIT, CONNECTED_LIMIT)
        told.set()
        await after.until(lambda: not len(after.owed_hangups))
        assert isinstance(await place(after), CallDriver)  # nothing stays reserved


async def test_a_call_that_was_answered_and_then_reported_unanswered_is_no_missed_call() -> None:
    """Our patience ended, Meta's ACCEPTED was under way, and the end came without a start."""
    async with a_world() as world:
        await world.had_calls(0)
        await world.login()
        driver = await dialled(world)
        call_id = driver.call.meta_call_id or ""
        await world.meta_terminates(call_id, direction="BUSINESS_INITIATED")
        await world.ended(driver)
        checked = await world.admission.check(NUMBER_ID, f"+{ANA.wa_id}")
        assert not isinstance(checked, Refusal)
        assert checked.overview.permission.streak == 1
        await world.meta_says("ACCEPTED", call_id)
        checked = await world.admission.check(NUMBER_ID, f"+{ANA.wa_id}")
        assert not isinstance(checked, Refusal)
        assert checked.overview.permission.streak == 0


async def test_a_declined_call_counts_once_in_the_streak_whichever_webhook_comes_first() -> None:
    for rejected_first in (True, False):
        async with a_world() as world:
            await world.had_calls(0)
            await world.login()
            driver = await dialled(world)
            call_id = driver.call.meta_call_id or ""
            if rejected_first:
                await world.meta_says("REJECTED", call_id)
            await world.meta_terminates(call_id, direction="BUSINESS_INITIATED")
            await world.ended(driver)
            if not rejected_first:
                await world.meta_says("REJECTED", call_id)
            contact = await world.contacts.get(world.number, ANA)
            assert (len(contact.state.unanswered), len(contact.state.rejected)) == (1, 1)
            checked = await world.admission.check(NUMBER_ID, f"+{ANA.wa_id}")
            assert not isinstance(checked, Refusal)
            assert checked.overview.permission.streak == int(world.number.pack.streak_counts_rejected)
