"""Webhooks come late, twice, in any order and under either name: the state of the contact is the same."""

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.common.ids import UserRef
from gateway.contacts.directory import refold
from policy.contact import ContactState, state_from_dict
from tests.support.fakes.memory_store import MemoryStore
from tests.support.generators.webhook_day import Day, Webhook, deliver_all
from tests.support.harness.world import ANA, NUMBER_ID, a_world


class Hesitant(MemoryStore):
    """Reads take a moment, so that deliveries overtake each other."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    async def contact(self, phone_number_id, user):  # type: ignore[no-untyped-def]
        found = await super().contact(phone_number_id, user)
        await self._hesitate()
        return found

    async def contacts_named(self, phone_number_id, user):  # type: ignore[no-untyped-def]
        found = await super().contacts_named(phone_number_id, user)
        await self._hesitate()
        return found

    async def _hesitate(self) -> None:
        for _ in range(self._rng.randint(0, 3)):
            await asyncio.sleep(0)


async def live_through(webhooks: list[Webhook], *, at_once: int, rng: random.Random) -> ContactState:
    """Deliver and return the state that is left, after proving that memory, snapshot and facts agree."""
    async with a_world(store=Hesitant(rng)) as world:
        await deliver_all(world, webhooks, at_once=at_once)
        contact = await world.contacts.get(world.number, ANA)
        (record,) = world.store._tables.contacts.values()
        facts = await world.store.facts(record.contact_id)
        assert len(facts) == len(world.store._tables.facts)
        assert record.user == contact.user == ANA
        assert state_from_dict(record.state) == contact.state == refold(facts)
        for user in (UserRef(wa_id=ANA.wa_id), UserRef(user_id=ANA.user_id)):
            assert world.contacts.peek(NUMBER_ID, user) is contact
        assert not len(world.registry)
        return contact.state


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), at_once=st.integers(1, 6))
def test_a_day_of_webhooks_in_any_order_leads_to_one_state(seed: int, at_once: int) -> None:
    rng = random.Random(seed)

    async def both() -> tuple[ContactState, ContactState]:
        async with a_world() as world:
            now = world.clock.now().timestamp()
        day = Day(rng, now=now, events=rng.randint(1, 16))
        in_order = await live_through(day.webhooks, at_once=1, rng=rng)
        return in_order, await live_through(day.shuffled(rng), at_once=at_once, rng=rng)

    in_order, mixed = asyncio.run(both())
    assert mixed == in_order
