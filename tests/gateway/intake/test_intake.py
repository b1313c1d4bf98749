"""200 is true: what Meta was told is kept is in the database, or on the disk of the spool."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.common.errors import SpoolDown, StoreDown, StoreError
from gateway.common.ids import PhoneNumberId, UserRef
from gateway.intake.intake import Intake, Kept
from gateway.intake.spool import Spool
from gateway.store.records import Change, ContactRecord
from tests.support.fakes.memory_store import MemoryStore
from tests.support.generators.deliveries import PickyStore, joined, messages
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

MB = 1_000_000


class SlowStore(MemoryStore):
    """Takes its time to write."""

    write_s = 0.0

    async def write(self, *changes: Change) -> None:
        await asyncio.sleep(self.write_s)
        await super().write(*changes)


@asynccontextmanager
async def an_intake(
    folder: Path, store: MemoryStore | None = None, *, max_bytes: int = MB
) -> AsyncIterator[tuple[World, Spool, Intake]]:
    async with a_world(store=store) as world:
        spool = Spool(folder, max_bytes=max_bytes)
        await spool.start()
        try:
            yield world, spool, Intake(world.inbox, spool, world.metrics, world.clock, database_s=0.1)
        finally:
            await spool.aclose()


def counted(world: World, name: str) -> float:
    return world.metrics.registry.get_sample_value(name) or 0.0


async def bodies(spool: Spool) -> list[bytes]:
    return [delivery.body for delivery in await spool.oldest(100, 100 * MB)]


async def test_with_the_database_nothing_touches_the_spool(tmp_path: Path) -> None:
    async with an_intake(tmp_path) as (world, spool, intake):
        assert await intake.keep(messages(world, "wamid.1")) is Kept.ACCEPTED
        assert (len(world.store.events), spool.deliveries) == (1, 0)


async def test_without_the_database_the_body_is_spooled_as_it_came(tmp_path: Path) -> None:
    async with an_intake(tmp_path) as (world, spool, intake):
        world.store.fail_with()
        body = messages(world, "wamid.1") + b" "
        assert await intake.keep(body) is Kept.SPOOLED
        assert await bodies(spool) == [body]
        assert (await spool.oldest(1, MB))[0].received_at == world.clock.now()
        assert counted(world, "wacg_spooled_total") == 1


async def test_a_database_that_takes_too_long_is_not_waited_for(tmp_path: Path) -> None:
    store = SlowStore()
    async with an_intake(tmp_path, store) as (world, spool, intake):
        store.write_s = 30
        async with asyncio.timeout(2):
            assert await intake.keep(messages(world, "wamid.1")) is Kept.SPOOLED
        assert spool.deliveries == 1


async def test_neither_takes_it_and_meta_is_to_come_again(tmp_path: Path) -> None:
    async with an_intake(tmp_path, max_bytes=100) as (world, spool, intake):
        world.store.fail_with()
        with pytest.raises(SpoolDown):
            await intake.keep(messages(world, "wamid.1"))
        assert spool.deliveries == 0
        world.store.heal()
        assert await intake.keep(messages(world, "wamid.1")) is Kept.ACCEPTED


async def test_one_event_that_is_never_kept_costs_the_others_nothing(tmp_path: Path) -> None:
    """Else Meta would bring the whole delivery for seven days, and none of it would ever count."""
    async with an_intake(tmp_path, PickyStore()) as (world, spool, intake):
        body = messages(world, "wamid.1", "wamid.poison", "wamid.3")
        assert await intake.keep(body) is Kept.REFUSED
        assert len(world.store.events) == 2
        facts = await world.store.facts(world.contacts.peek(NUMBER_ID, ANA).contact_id)  # type: ignore[union-attr]
        assert len(facts) == 2
        assert (spool.deliveries, counted(world, "wacg_spool_refused_total")) == (0, 1)
        assert await intake.keep(body) is Kept.REFUSED  # once more, as Meta may
        assert len(world.store.events) == 2


async def test_a_contact_that_cannot_be_read_costs_the_others_nothing_either(tmp_path: Path) -> None:
    class Unreadable(MemoryStore):
        async def contact(self, phone_number_id: PhoneNumberId, user: UserRef) -> ContactRecord | None:
            if user.wa_id == "5511900000009":
                raise StoreError("bad row")
            return await super().contact(phone_number_id, user)

    async with an_intake(tmp_path, Unreadable()) as (world, spool, intake):
        both = joined(messages(world, "wamid.1", user="5511900000009"), messages(world, "wamid.2"))
        assert await intake.keep(both) is Kept.REFUSED
        assert [event.dedupe_key for event in world.store.events] == ["messages/wamid.2"]
        assert spool.is_empty


async def test_a_delivery_that_is_never_kept_and_cannot_be_set_apart_either_comes_again(tmp_path: Path) -> None:
    async with an_intake(tmp_path, PickyStore()) as (world, spool, intake):
        await spool.aclose()
        with pytest.raises(SpoolDown):
            await intake.keep(messages(world, "wamid.poison"))


# --- what counts meanwhile ---------------------------------------------------------------------------


async def test_what_is_said_about_a_warm_contact_counts_at_once_also_beside_a_cold_one(tmp_path: Path) -> None:
    async with an_intake(tmp_path) as (world, _, intake):
        warm = await world.contacts.get(world.number, ANA)
        world.store.fail_with()
        cold, known = messages(world, "wamid.1", user="5511900000009"), messages(world, "wamid.2")
        both = joined(cold, known)
        assert await intake.keep(both) is Kept.SPOOLED
        assert warm.state.window_opened is not None
        assert world.contacts.peek(NUMBER_ID, ANA) is warm


async def test_what_was_folded_while_the_database_was_away_is_written_with_whatever_comes_next(tmp_path: Path) -> None:
    async with an_intake(tmp_path) as (world, _, intake):
        warm = await world.contacts.get(world.number, ANA)
        world.store.fail_with()
        await intake.keep(messages(world, "wamid.1"))
        world.store.heal()
        world.clock.advance(5)
        await intake.keep(messages(world, "wamid.2"))
        assert len(await world.store.facts(warm.contact_id)) == 2


async def test_a_write_that_is_given_up_is_owed(tmp_path: Path) -> None:
    store = SlowStore()
    async with an_intake(tmp_path, store) as (world, _, intake):
        warm = await world.contacts.get(world.number, ANA)
        store.write_s = 30
        await intake.keep(messages(world, "wamid.1"))
        assert len(warm.owed) == 1


async def test_a_call_rings_though_nothing_can_be_kept_in_time(tmp_path: Path) -> None:
    async with an_intake(tmp_path) as (world, _, _):
        world.store.fail_with()
        with pytest.raises(StoreDown):
            await world.user_calls()
        assert len(world.registry) == 1
