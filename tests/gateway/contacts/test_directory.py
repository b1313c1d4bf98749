"""A contact is one person under two names; what happened to them is counted at once and kept."""

from datetime import timedelta

import pytest

from gateway.common.errors import StoreDown
from gateway.common.ids import UserRef
from gateway.contacts.directory import Contacts
from gateway.store.records import ContactRecord, FactRecord
from policy.contact import EMPTY
from policy.facts import PermissionGranted, WindowOpened, WindowSource
from tests.support.fakes.clock import START
from tests.support.fakes.memory_store import MemoryStore
from tests.support.harness.world import NUMBER_ID, World, a_world

NUMBER, BSUID = "5511900000001", "BR.00000000000000000001"
BOTH = UserRef(wa_id=NUMBER, user_id=BSUID)
BY_NUMBER, BY_BSUID = UserRef(wa_id=NUMBER), UserRef(user_id=BSUID)
GRANT = PermissionGranted(at=START, key="grant")


async def test_a_stranger_becomes_a_contact_once() -> None:
    async with a_world() as world:
        first = await world.contacts.get(world.number, BY_NUMBER, "Ana")
        assert (first.state, first.name) == (EMPTY, "Ana")
        assert await world.contacts.get(world.number, BY_NUMBER) is first
        assert first.name == "Ana"  # an event without a name takes none away


async def test_both_names_lead_to_one_person() -> None:
    async with a_world() as world:
        by_number = await world.contacts.get(world.number, BY_NUMBER)
        both = await world.contacts.get(world.number, BOTH)
        by_bsuid = await world.contacts.get(world.number, BY_BSUID)
        assert by_number is both is by_bsuid
        assert by_number.user == BOTH


async def test_a_number_that_has_changed_hands_does_not_carry_the_permission_over() -> None:
    async with a_world() as world:
        before = await world.contacts.get(world.number, BOTH)
        world.contacts.apply(before, GRANT, seen_at=START)
        after = await world.contacts.get(world.number, UserRef(wa_id=NUMBER, user_id="BR.2"))
        assert after is not before
        assert after.state == EMPTY
        assert await world.contacts.get(world.number, BY_NUMBER) is after  # whose number it is now
        assert await world.contacts.get(world.number, BY_BSUID) is before


async def test_who_has_a_new_number_is_found_by_it_and_no_more_by_the_old_one() -> None:
    async with a_world() as world:
        before = await world.contacts.get(world.number, BOTH)
        moved = await world.contacts.get(world.number, UserRef(wa_id="5511900000009", user_id=BSUID))
        assert moved is before
        assert moved.user.wa_id == "5511900000009"
        assert world.contacts.peek(NUMBER_ID, UserRef(wa_id="5511900000009")) is before
        assert world.contacts.peek(NUMBER_ID, BY_NUMBER) is None


async def test_facts_count_before_they_are_written() -> None:
    async with a_world() as world:
        contact = await world.contacts.get(world.number, BOTH)
        window = WindowOpened(at=START, key="w", source=WindowSource.MESSAGE)
        record, *facts = world.contacts.apply(contact, GRANT, window, seen_at=START)
        assert contact.state != EMPTY
        assert isinstance(record, ContactRecord)
        assert (record.user, record.seen_at) == (BOTH, START)
        assert [fact.key for fact in facts if isinstance(fact, FactRecord)] == ["grant", "w"]


async def test_what_was_written_is_there_after_a_restart() -> None:
    async with a_world() as world:
        contact = await world.contacts.get(world.number, BOTH, "Ana")
        await world.store.write(*world.contacts.apply(contact, GRANT, seen_at=START))
        again = await Contacts(world.store).get(world.number, BY_BSUID)
        assert (again.contact_id, again.state, again.name) == (contact.contact_id, contact.state, "Ana")


async def test_without_a_store_a_stranger_is_not_taken_for_known() -> None:
    async with a_world() as world:
        world.store.fail_with()
        with pytest.raises(StoreDown):
            await world.contacts.get(world.number, BOTH)
        assert world.contacts.peek(NUMBER_ID, BOTH) is None


async def test_two_who_ask_at_once_get_the_same_contact() -> None:
    async with a_world() as world:
        slow = Slow(world)
        contacts = Contacts(slow)
        slow.meanwhile = lambda: contacts.get(world.number, BY_NUMBER)
        assert await contacts.get(world.number, BY_NUMBER) is contacts.peek(NUMBER_ID, BY_NUMBER)
        assert slow.same is contacts.peek(NUMBER_ID, BY_NUMBER)


class Slow(MemoryStore):
    """While the first read is under way, somebody else asks and is answered."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.heal()
        self.meanwhile: object = None
        self.same: object = None

    async def contact(self, phone_number_id: object, user: object) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if callable(meanwhile):
            self.same = await meanwhile()


async def test_the_cache_forgets_a_person_with_all_their_names() -> None:
    async with a_world() as world:
        contacts = Contacts(world.store, cache_size=4)
        users = [UserRef(wa_id=f"551190000000{n}", user_id=f"BR.{n}") for n in range(3)]
        for user in users[:2]:
            await contacts.get(world.number, user)
        contacts.peek(NUMBER_ID, users[0])  # used again: the other is the older now
        await contacts.get(world.number, users[2])
        known = [
            [
                contacts.peek(NUMBER_ID, UserRef(**{name: getattr(user, name)})) is not None
                for name in ("wa_id", "user_id")
            ]
            for user in users
        ]
        assert known == [[True, True], [False, False], [True, True]]


async def test_a_fact_from_a_time_that_cannot_be_counts_for_nothing() -> None:
    async with a_world() as world:
        contact = await world.contacts.get(world.number, BOTH)
        rows = world.contacts.apply(contact, PermissionGranted(at=START + timedelta(days=1), key="late"), seen_at=START)
        assert contact.state == EMPTY
        assert not [row for row in rows if isinstance(row, FactRecord)]
