"""The switches of the double: what the contract cannot ask of both."""

import pytest

from gateway.common.errors import StoreDown
from tests.support.fakes.memory_store import MemoryStore
from tests.support.generators import records as make


async def test_a_store_that_was_not_started_is_down() -> None:
    store = MemoryStore()
    assert not store.up
    with pytest.raises(StoreDown):
        await store.write(make.event())


async def test_taken_away_it_raises_everywhere_and_keeps_what_is_written_soon() -> None:
    store = MemoryStore()
    await store.start()
    await store.write(make.event("before"))
    store.fail_with()
    assert not store.up
    assert not await store.healthy()
    with pytest.raises(StoreDown):
        await store.write(make.event("refused"))
    with pytest.raises(StoreDown):
        await store.recent_event_keys(make.T0)
    store.write_soon(make.event("waits 1"))
    store.write_soon(make.event("waits 2"))
    assert [event.dedupe_key for event in store.events] == ["before"]
    store.heal()
    assert [event.dedupe_key for event in store.events] == ["before", "waits 1", "waits 2"]
    assert store.waiting == []
    assert len(store.written) == 3


async def test_it_can_fail_with_any_error() -> None:
    store = MemoryStore()
    await store.start()
    store.fail_with(RuntimeError("invented"))
    with pytest.raises(RuntimeError, match="invented"):
        await store.write(make.event())
