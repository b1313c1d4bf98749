"""One person with two names: what was known under either counts once, and under both."""

import asyncio
import itertools
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.calls.driver import CallDriver
from gateway.common.errors import StoreDown
from gateway.common.ids import OperatorId, PhoneNumberId, UserRef
from gateway.contacts.directory import Contact, Contacts
from gateway.store.records import ContactRecord, ContactsMerged, FactRecord
from policy.contact import EMPTY, fold, state_from_dict, state_to_dict
from policy.decision import Allow, Refusal
from policy.facts import CallConnected, Direction, Fact, PermissionGranted, PermissionRequested, RequestForm
from policy.reasons import Reason
from tests.support.fakes.clock import START
from tests.support.fakes.memory_store import MemoryStore
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

BY_NUMBER, BY_BSUID = UserRef(wa_id=ANA.wa_id), UserRef(user_id=ANA.user_id)
NUMBER, BSUID = f"+{ANA.wa_id}", str(ANA.user_id)
GRANT = PermissionGranted(at=START - timedelta(hours=1), key="grant")


def connected(n: int, *, hours_ago: float = 2.0) -> Fact:
    at = START - timedelta(hours=hours_ago)
    return CallConnected(at=at, key=f"connected/{n}", direction=Direction.BUSINESS_INITIATED)


async def learn(world: World, user: UserRef, *facts: Fact) -> Contact:
    """Write facts about somebody known by these names."""
    contact = await world.contacts.get(world.number, user)
    await world.store.write(*world.contacts.apply(contact, *facts, seen_at=START))
    return contact


async def write_message(world: World, user: UserRef, message_id: str = "wamid.1") -> None:
    names = {"from": user.wa_id, "from_user_id": user.user_id}
    at = str(int(world.clock.now().timestamp()))
    said = {name: value for name, value in names.items() if value}
    await world.deliver(messages=[{"id": message_id, "timestamp": at, "type": "text", **said}])


async def place(world: World, to: str, operator: str = "ana") -> CallDriver | Refusal:
    return await world.admission.place(NUMBER_ID, to, operator=OperatorId(operator))


def contacts_of(world: World) -> list[ContactRecord]:
    return list(world.store._tables.contacts.values())


# --- what becomes of them ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [BY_NUMBER, BY_BSUID], ids=["number first", "bsuid first"])
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "after a restart"])
async def test_a_webhook_with_both_names_makes_one_contact_of_two(first: UserRef, in_memory: bool) -> None:
    async with a_world() as world:
        second = BY_BSUID if first is BY_NUMBER else BY_NUMBER
        one = await learn(world, first, GRANT, connected(1), connected(2))
        two = await learn(world, second, connected(2), connected(3))
        assert one is not two
        if not in_memory:
            world.contacts._by_name.clear()
            del one, two
        await write_message(world, ANA)
        (record,) = contacts_of(world)
        assert record.user == ANA
        kept = {fact.key for fact in await world.store.facts(record.contact_id)}
        assert kept == {"grant", "connected/1", "connected/2", "connected/3", "messages/wamid.1"}
        contact = await world.contacts.get(world.number, BY_NUMBER)
        assert contact is await world.contacts.get(world.number, BY_BSUID)
        assert [call.key for call in contact.state.connected] == [f"connected/{n}" for n in (1, 2, 3)]
        assert contact.state == state_from_dict(record.state)


async def test_the_contact_with_the_bsuid_stays_whoever_was_first() -> None:
    for order in itertools.permutations([BY_NUMBER, BY_BSUID]):
        async with a_world() as world:
            known = {user.key: await learn(world, user, GRANT) for user in order}
            await write_message(world, ANA)
            assert [record.contact_id for record in contacts_of(world)] == [known[BSUID].contact_id]


async def test_the_order_of_merges_does_not_matter() -> None:
    """Three contacts that are one: whichever two meet first, the state at the end is the fold of all facts."""
    facts = [[GRANT, connected(1)], [connected(1), connected(2)], [connected(3, hours_ago=1)]]
    for order in itertools.permutations(range(3)):
        async with a_world() as world:
            for n in order:
                user = BY_BSUID if n == 0 else BY_NUMBER
                record = ContactRecord(
                    contact_id=f"{n:032x}",
                    phone_number_id=NUMBER_ID,
                    user=user,
                    name=None,
                    state=state_to_dict(fold(facts[n])),
                    seen_at=START + timedelta(seconds=order[n]),
                )
                known = world.contacts._new_contact(record.contact_id, NUMBER_ID, user, None)
                known.state, known.seen_at = fold(facts[n]), START
                rows = world.contacts.apply(known, *facts[n], seen_at=START)
                await world.store.write(record, *rows)
                world.contacts._by_name.clear()
            contact = await world.contacts.get(world.number, ANA)
            assert contact.state == fold(itertools.chain(*facts))
            assert [record.contact_id for record in contacts_of(world)] == [f"{0:032x}"]


async def test_the_merge_and_the_joined_snapshot_are_one_transaction() -> None:
    async with a_world() as world:
        await learn(world, BY_NUMBER, GRANT)
        await learn(world, BY_BSUID, connected(1))
        await world.contacts.get(world.number, ANA)
        last = world.store.written[-1]
        assert {type(row) for row in last} == {ContactRecord, ContactsMerged}
        (record,) = (row for row in last if isinstance(row, ContactRecord))
        assert state_from_dict(record.state) == fold([GRANT, connected(1)])


async def test_a_stranger_of_whom_nothing_is_written_joins_without_a_write() -> None:
    async with a_world() as world:
        await world.admission.look_up(NUMBER_ID, NUMBER)
        kept = await learn(world, BY_BSUID, GRANT)
        before = len(world.store.written)
        assert await world.contacts.get(world.number, ANA) is kept
        assert len(world.store.written) == before


async def test_who_was_absorbed_leads_to_the_one_who_stayed() -> None:
    """Somebody waited for Meta with the old contact in hand: what they learned then counts for the joined one."""
    async with a_world() as world:
        old, kept = await learn(world, BY_NUMBER, GRANT), await learn(world, BY_BSUID)
        await world.contacts.get(world.number, ANA)
        assert old.current is kept
        rows = world.contacts.apply(old, connected(1), seen_at=START)
        assert {row.contact_id for row in rows if isinstance(row, ContactRecord | FactRecord)} == {kept.contact_id}
        assert kept.state == fold([GRANT, connected(1)])


async def test_numbers_of_ours_do_not_share_contacts() -> None:
    async with a_world() as world:
        elsewhere = ContactRecord(
            contact_id="e" * 32,
            phone_number_id=PhoneNumberId("999"),
            user=BY_NUMBER,
            name=None,
            state=state_to_dict(fold([GRANT])),
            seen_at=START,
        )
        await world.store.write(elsewhere)
        await learn(world, BY_BSUID, connected(1))
        assert (await world.contacts.get(world.number, ANA)).state == fold([connected(1)])
        assert len(contacts_of(world)) == 2


async def test_somebody_elses_number_is_not_joined() -> None:
    async with a_world() as world:
        former = await learn(world, UserRef(wa_id=ANA.wa_id, user_id="BR.99999999"), GRANT)
        mine = await learn(world, BY_BSUID, connected(1))
        assert await world.contacts.get(world.number, ANA) is mine
        assert mine.state == fold([connected(1)])
        assert former.state == fold([GRANT])
        for _ in range(2):  # looking at the former owner does not take the number back
            assert world.contacts.peek(NUMBER_ID, UserRef(user_id="BR.99999999")) is former
            assert world.contacts.peek(NUMBER_ID, BY_NUMBER) is mine


# --- what the gate knows -----------------------------------------------------------------------------


async def test_the_gate_of_a_dial_by_number_knows_what_happened_under_the_bsuid() -> None:
    async with a_world() as world:
        await world.login()
        await learn(world, BY_BSUID, GRANT, *(connected(n) for n in range(3)))
        await learn(world, BY_NUMBER, *(connected(n) for n in range(2, 5)))
        stranger = await place(world, NUMBER)
        assert isinstance(stranger, Refusal)
        assert stranger.reason is Reason.NO_PERMISSION
        await write_message(world, ANA)
        full = await place(world, NUMBER)
        assert isinstance(full, Refusal)
        assert (full.reason, full.observed, full.limit) == (Reason.CONNECTED_LIMIT, 5, 5)
        world.clock.set(START + timedelta(hours=22))  # the first counted call is a day old
        assert isinstance(await place(world, NUMBER), CallDriver)


async def test_a_call_from_a_hidden_number_makes_its_number_busy_once_they_are_tied() -> None:
    async with a_world() as world:
        await world.login()
        await learn(world, BY_NUMBER, GRANT)
        hidden = {"from": None, "from_user_id": ANA.user_id}
        at = str(int(world.clock.now().timestamp()))
        offer = {"sdp_type": "offer", "sdp": "v=0 offer"}
        call: dict[str, Any] = {"id": "wacid.H", "event": "connect", "timestamp": at, "session": offer}
        await world.deliver(calls=[call | {"to": "551155550100", "direction": "USER_INITIATED", **hidden}])
        assert len(world.registry) == 1
        checked = await world.admission.check(NUMBER_ID, NUMBER)
        assert isinstance(getattr(getattr(checked, "overview", None), "place", None), Allow)  # nobody can know yet
        await write_message(world, ANA)
        busy = await place(world, NUMBER)
        assert isinstance(busy, Refusal)
        assert busy.reason is Reason.USER_BUSY


async def test_a_dial_to_the_number_is_in_flight_for_the_bsuid_too() -> None:
    async with a_world() as world:
        await world.login()
        await world.login("bia")
        await learn(world, BY_NUMBER, GRANT)
        await learn(world, BY_BSUID, connected(1))
        assert isinstance(await place(world, NUMBER), CallDriver)
        await write_message(world, ANA)
        contact = await world.contacts.get(world.number, BY_BSUID)
        request = world.gate.place_request(world.number, contact)
        assert (request.in_flight, request.user_busy) == (1, True)
        assert isinstance(await place(world, BSUID, "bia"), Refusal)


async def test_a_request_on_its_way_to_the_number_is_not_sent_to_the_bsuid_again() -> None:
    async with a_world() as world:
        answer = world.graph.hold("request_permission_template")
        await learn(world, BY_BSUID)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(world.admission.ask_permission(NUMBER_ID, NUMBER, asked_by="ana"))
            await world.graph.arrival("request_permission_template")
            await world.contacts.get(world.number, ANA)
            again = await world.admission.ask_permission(NUMBER_ID, BSUID, asked_by="bia")
            answer.set()
        assert isinstance(again, Refusal)
        assert again.reason is Reason.REQUEST_LIMIT
        assert not isinstance(first.result(), Refusal)
        contact = await world.contacts.get(world.number, BY_BSUID)
        assert len(contact.state.requests) == 1
        assert len(contacts_of(world)) == 1


async def test_who_asks_again_under_the_other_name_gets_the_answer_that_is_on_its_way() -> None:
    async with a_world() as world:
        answer = world.graph.hold("request_permission_template")
        await learn(world, BY_BSUID)
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(world.admission.ask_permission(NUMBER_ID, NUMBER, asked_by="ana"))
            await world.graph.arrival("request_permission_template")
            await world.contacts.get(world.number, ANA)
            again = tasks.create_task(world.admission.ask_permission(NUMBER_ID, BSUID, asked_by="ana"))
            await asyncio.sleep(0)
            answer.set()
        assert first.result() == again.result()
        assert world.graph.ops() == ["request_permission_template"]


async def test_a_call_ties_the_number_that_we_dialled_to_the_bsuid_that_its_webhooks_name() -> None:
    async with a_world() as world:
        await world.login()
        await learn(world, BY_NUMBER, GRANT)
        driver = await place(world, NUMBER)
        assert isinstance(driver, CallDriver)
        await world.until(lambda: driver.call.meta_call_id is not None)
        await world.meta_terminates(
            driver.call.meta_call_id or "", direction="BUSINESS_INITIATED", to=None, to_user_id=ANA.user_id
        )
        await world.ended(driver)
        contact = await world.contacts.get(world.number, BY_BSUID)
        assert contact.user == ANA
        assert len(contact.state.unanswered) == 1
        assert contact.state.granted == GRANT


# --- at the same moment ------------------------------------------------------------------------------


class Hesitant(MemoryStore):
    """Every read lets everybody else go first."""

    async def contact(self, phone_number_id: PhoneNumberId, user: UserRef) -> ContactRecord | None:
        found = await super().contact(phone_number_id, user)
        await self._let_go_first()
        return found

    async def contacts_named(self, phone_number_id: PhoneNumberId, user: UserRef) -> list[ContactRecord]:
        found = await super().contacts_named(phone_number_id, user)
        await self._let_go_first()
        return found

    @staticmethod
    async def _let_go_first() -> None:
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.parametrize("order", list(itertools.permutations([BY_NUMBER, BY_BSUID, ANA])))
@pytest.mark.parametrize("known", [(), (BY_NUMBER,), (BY_BSUID,), (BY_NUMBER, BY_BSUID)])
async def test_events_for_both_names_at_the_same_moment_lose_nothing(
    order: tuple[UserRef, ...], known: tuple[UserRef, ...]
) -> None:
    async with a_world(store=Hesitant()) as world:
        for n, user in enumerate(known):
            await learn(world, user, connected(n))
        world.contacts._by_name.clear()
        await asyncio.gather(*(write_message(world, user, f"wamid.{n}") for n, user in enumerate(order)))
        await world.contacts.get(world.number, ANA)
        (record,) = contacts_of(world)
        facts = await world.store.facts(record.contact_id)
        assert len(facts) == len(known) + 3
        assert len(state_from_dict(record.state).connected) == len(known)


# --- memory and store --------------------------------------------------------------------------------


async def test_a_snapshot_of_another_version_is_folded_again_from_the_facts() -> None:
    async with a_world() as world:
        contact = await learn(world, ANA, GRANT, connected(1))
        (record,) = contacts_of(world)
        await world.store.write(replace(record, state={"version": 0, "facts": []}))
        again = await Contacts(world.store).get(world.number, BY_NUMBER)
        assert (again.contact_id, again.state) == (contact.contact_id, fold([GRANT, connected(1)]))


async def test_a_fact_that_this_version_cannot_read_is_left_out() -> None:
    async with a_world() as world:
        contact = await learn(world, ANA, GRANT)
        odd = FactRecord(contact_id=contact.contact_id, key="odd", at=START, fact={"kind": "of_tomorrow"})
        (record,) = contacts_of(world)
        await world.store.write(odd, replace(record, state={"version": 99}))
        assert (await Contacts(world.store).get(world.number, ANA)).state == fold([GRANT])


async def test_a_contact_that_the_cache_dropped_is_still_the_same_while_somebody_holds_it() -> None:
    async with a_world() as world:
        contact = await learn(world, ANA, GRANT)
        world.contacts._by_name.clear()
        assert await world.contacts.get(world.number, BY_BSUID) is contact


async def test_what_could_not_be_written_goes_along_with_what_is_written_next() -> None:
    """Else the next snapshot would hold a message that no fact explains."""
    async with a_world() as world:
        contact = await learn(world, ANA, GRANT)
        world.store.fail_with()
        with pytest.raises(StoreDown):
            await write_message(world, ANA)
        world.store.heal()
        await world.store.write(*world.contacts.apply(contact, connected(1), seen_at=START))
        (record,) = contacts_of(world)
        keys = {fact.key for fact in await world.store.facts(contact.contact_id)}
        assert keys == {"grant", "messages/wamid.1", "connected/1"}
        assert state_from_dict(record.state) == contact.state
        assert contact.owed == {}


async def test_what_is_owed_follows_a_merge() -> None:
    async with a_world() as world:
        await learn(world, BY_NUMBER, GRANT)
        kept = await learn(world, BY_BSUID, connected(1))
        world.store.fail_with()
        with pytest.raises(StoreDown):
            await write_message(world, BY_NUMBER)
        world.store.heal()
        await world.contacts.get(world.number, ANA)
        keys = {fact.key for fact in await world.store.facts(kept.contact_id)}
        assert keys == {"grant", "messages/wamid.1", "connected/1"}


async def test_a_snapshot_is_never_older_than_the_facts_beside_it() -> None:
    """A delivery waits for a second contact's read while a call of the first one ends."""
    async with a_world(store=Hesitant()) as world:
        contact = await learn(world, ANA, GRANT)
        at = str(int(world.clock.now().timestamp()))
        messages = [
            {"id": f"wamid.{n}", "from": user, "timestamp": at, "type": "text"}
            for n, user in enumerate((ANA.wa_id, "5511900000077"))
        ]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.deliver(messages=messages))
            await asyncio.sleep(0)
            world.store.write_soon(*world.contacts.apply(contact, connected(1), seen_at=START))
        found = await world.store.contact(NUMBER_ID, ANA)
        assert found is not None
        assert state_from_dict(found.state) == contact.state
        assert contact.state.connected


async def test_a_request_recorded_after_a_merge_is_the_joined_ones() -> None:
    async with a_world() as world:
        old = await learn(world, BY_NUMBER)
        kept = await learn(world, BY_BSUID)
        await world.contacts.get(world.number, ANA)
        asked = PermissionRequested(at=START, key="wamid.R", form=RequestForm.TEMPLATE)
        await world.store.write(*world.contacts.apply(old, asked, seen_at=START))
        assert kept.state.requests == (asked,)
        assert kept.state != EMPTY
        assert isinstance(kept.seen_at, datetime)
