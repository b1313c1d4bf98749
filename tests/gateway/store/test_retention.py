"""What only guards against repetition goes when nobody repeats any more; everything else stays."""

import asyncio
from datetime import timedelta

import pytest

from gateway.store.retention import EVENTS_FOR, Retention
from tests.support.fakes.clock import START, FakeClock
from tests.support.fakes.memory_store import MemoryStore
from tests.support.generators import records as make

SECOND = timedelta(seconds=1)


async def a_store() -> MemoryStore:
    store = MemoryStore()
    await store.start()
    return store


async def test_old_events_and_keys_go_and_the_rest_stays() -> None:
    store = await a_store()
    young, old = START - EVENTS_FOR, START - EVENTS_FOR - SECOND
    call, contact = make.call(created_at=old), make.contact(seen_at=old)
    fact = make.fact(contact.contact_id, at=old)
    await store.write(make.event("old", received_at=old), make.event("young", received_at=young), call, contact, fact)
    await store.idempotent("old", "f", START - timedelta(hours=24) - SECOND)
    await store.idempotent("young", "f", START - timedelta(hours=24))
    assert await Retention(store, FakeClock()).clean() == 2
    assert [event.dedupe_key for event in store.events] == ["young"]
    assert await store.call(call.call_id) == call
    assert await store.facts(contact.contact_id) == [fact]
    assert await store.idempotent("young", "f", START - timedelta(hours=1)) is not None


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_it_takes_some_at_a_time_and_breathes_in_between() -> None:
    store = await a_store()
    await store.write(*(make.event(f"k{n}", received_at=START - 2 * EVENTS_FOR) for n in range(25)))
    began = asyncio.get_running_loop().time()
    assert await Retention(store, FakeClock(), batch=10).clean() == 25
    assert asyncio.get_running_loop().time() - began >= 0.2
    assert store.events == []


@pytest.mark.looptime
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_it_comes_back_every_hour_also_after_a_database_that_was_away() -> None:
    store, clock = await a_store(), FakeClock()
    store.fail_with()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(Retention(store, clock).run())
        await asyncio.sleep(1)
        store.heal()
        await store.write(make.event("old", received_at=START - 2 * EVENTS_FOR))
        await asyncio.sleep(3598)
        assert len(store.events) == 1
        await asyncio.sleep(2)
        assert store.events == []
        running.cancel()
