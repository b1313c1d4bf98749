"""A phone number that has changed hands is its new owner's, also for a process that finds both in the database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from gateway.calls.driver import CallDriver
from gateway.common.ids import OperatorId, UserRef
from gateway.store.store import PostgresStore
from policy.decision import Allow, Refusal
from policy.facts import PermissionGranted
from policy.reasons import Reason
from tests.support.fakes.clock import START
from tests.support.fakes.memory_store import MemoryStore
from tests.support.harness.world import NUMBER_ID, World, a_world

FORMER, OWNER = "BR.11111111111111111111", "BR.22222222222222222222"
NUMBER = "5511900000001"

once = pytest.mark.asyncio(loop_factories=["uvloop"])  # the loop makes no difference


@asynccontextmanager
async def a_process(dsn: str) -> AsyncIterator[World]:
    store = PostgresStore(dsn)
    try:
        async with a_world(store=cast(MemoryStore, store)) as world:
            await world.login()
            yield world
    finally:
        await store.aclose()


async def write_message(world: World, message_id: str, **names: str) -> None:
    at = str(int(world.clock.now().timestamp()))
    await world.deliver(messages=[{"id": message_id, "timestamp": at, "type": "text", **names}])


async def place_answer(world: World, to: str) -> Allow | Refusal:
    checked = await world.admission.check(NUMBER_ID, to)
    assert not isinstance(checked, Refusal)
    return checked.overview.place


async def the_number_changes_hands(world: World) -> None:
    """Its former owner allowed calls, and still writes without showing the new number."""
    former = await world.contacts.get(world.number, UserRef(wa_id=NUMBER, user_id=FORMER))
    grant = PermissionGranted(at=START, key="grant", permanent=True)
    await world.store.write(*world.contacts.apply(former, grant, seen_at=START))
    await write_message(world, "wamid.OWNER", **{"from": NUMBER, "from_user_id": OWNER})
    world.clock.advance(60.0)
    await write_message(world, "wamid.FORMER", from_user_id=FORMER)


async def check_whose_it_is(world: World) -> None:
    no = await place_answer(world, f"+{NUMBER}")
    assert isinstance(no, Refusal)
    assert no.reason is Reason.NO_PERMISSION
    owner = await world.contacts.get(world.number, UserRef(wa_id=NUMBER))
    assert owner.user == UserRef(wa_id=NUMBER, user_id=OWNER)
    assert isinstance(await place_answer(world, FORMER), Allow)
    former = await world.contacts.get(world.number, UserRef(user_id=FORMER))
    assert former.user == UserRef(user_id=FORMER)


@once
async def test_the_process_that_sees_it_and_the_next_one_say_the_same(database: str) -> None:
    async with a_process(database) as world:
        await the_number_changes_hands(world)
        await check_whose_it_is(world)
    async with a_process(database) as world:
        await check_whose_it_is(world)


@once
async def test_it_changes_hands_also_if_the_former_owner_was_known_to_an_earlier_process_only(database: str) -> None:
    async with a_process(database) as world:
        former = await world.contacts.get(world.number, UserRef(wa_id=NUMBER, user_id=FORMER))
        grant = PermissionGranted(at=START, key="grant", permanent=True)
        await world.store.write(*world.contacts.apply(former, grant, seen_at=START))
    async with a_process(database) as world:
        await write_message(world, "wamid.OWNER", **{"from": NUMBER, "from_user_id": OWNER})
        await check_whose_it_is(world)


@once
async def test_a_number_that_comes_back_is_its_first_owners_again(database: str) -> None:
    async with a_process(database) as world:
        await the_number_changes_hands(world)
        await write_message(world, "wamid.BACK", **{"from": NUMBER, "from_user_id": FORMER})
    async with a_process(database) as world:
        assert isinstance(await place_answer(world, f"+{NUMBER}"), Allow)
        owner = await world.contacts.get(world.number, UserRef(user_id=OWNER))
        assert owner.user == UserRef(user_id=OWNER)


@once
async def test_a_dial_to_the_former_owner_does_not_ring_the_new_one(database: str) -> None:
    async with a_process(database) as world:
        await the_number_changes_hands(world)
        driver = await world.admission.place(NUMBER_ID, FORMER, operator=OperatorId("ana"))
        assert isinstance(driver, CallDriver)
        assert driver.origin.user == UserRef(user_id=FORMER)
        assert driver.contact_keys == {f"{NUMBER_ID}/{FORMER}"}
