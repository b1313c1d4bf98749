"""The spool empties into the database: in order, once, past what nobody can take, and without ringing the dead."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.callflow.call import CallState
from gateway.callflow.outcome import EndReason, Result
from gateway.common.errors import SpoolDown, StoreDown, StoreError
from gateway.intake import replay
from gateway.intake.intake import Intake
from gateway.intake.replay import Replay
from gateway.intake.spool import Spool
from gateway.intake.spool_file import Delivery
from gateway.meta.events import Event
from gateway.store.records import CallRecord, Change
from gateway.wiring import wire_replay
from tests.support.fakes.memory_store import MemoryStore
from tests.support.generators.deliveries import PickyStore, connect, messages, terminate
from tests.support.harness.world import ANA, NUMBER_ID, WACID, World, a_world

MB = 1_000_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "AGAIN_S", 0.01)
    monkeypatch.setattr(replay, "PROBE_S", 0.05)


def counted(world: World, name: str) -> float:
    return world.metrics.registry.get_sample_value(name) or 0.0


async def bodies(spool: Spool) -> list[bytes]:
    return [delivery.body for delivery in await spool.oldest(1_000, 100 * MB)]


class Emptied:
    """A world with a spool that is being emptied."""

    def __init__(self, world: World, spool: Spool, tasks: asyncio.TaskGroup) -> None:
        self.world, self.spool, self.tasks = world, spool, tasks
        self.intake = Intake(world.inbox, spool, world.metrics, world.clock)

    def replay(self, inbox: Any = None) -> Replay:
        made = wire_replay(self.world.ports, self.world.parts, self.spool)
        made._inbox = inbox or made._inbox
        return made

    def start(self, inbox: Any = None) -> None:
        self.task = self.tasks.create_task(self.replay(inbox).run())

    async def emptied(self) -> None:
        await self.world.until(lambda: self.spool.is_empty)


@asynccontextmanager
async def emptying(folder: Path, *, store: MemoryStore | None = None, start: bool = True) -> AsyncIterator[Emptied]:
    async with a_world(store=store) as world, asyncio.TaskGroup() as tasks:
        spool = Spool(folder, max_bytes=10 * MB)
        await spool.start()
        made = Emptied(world, spool, tasks)
        if start:
            made.start()
        try:
            yield made
        finally:
            made.task.cancel()
            await spool.aclose()


async def test_when_the_database_is_back_everything_is_written_in_order(tmp_path: Path) -> None:
    async with emptying(tmp_path) as e:
        e.world.store.fail_with()
        began = e.world.clock.now()
        for n in range(100):
            await e.intake.keep(messages(e.world, f"wamid.{n:03}"))
        assert e.spool.deliveries == 100
        e.world.clock.advance(30)
        e.world.store.heal()
        await e.emptied()
        keys = [event.dedupe_key for event in e.world.store.events]
        assert (len(keys), keys) == (100, sorted(keys))
        assert {event.received_at for event in e.world.store.events} == {began}
        contact = e.world.contacts.peek(NUMBER_ID, ANA)
        assert contact is not None
        assert len(await e.world.store.facts(contact.contact_id)) == 100


async def test_new_deliveries_go_straight_to_the_database_meanwhile(tmp_path: Path) -> None:
    async with emptying(tmp_path, start=False) as e:
        e.world.store.fail_with()
        await e.intake.keep(messages(e.world, "wamid.old"))
        e.world.store.heal()
        assert await e.intake.keep(messages(e.world, "wamid.new")) == "accepted"
        assert len(e.world.store.events) == 1
        e.start()
        await e.emptied()
        assert len(e.world.store.events) == 2


async def test_an_event_takes_effect_once_though_it_is_handed_in_twice(tmp_path: Path) -> None:
    async with emptying(tmp_path) as e:
        e.world.store.fail_with()
        with pytest.raises(StoreDown):
            await e.world.user_calls()
        assert len(e.world.registry) == 1
        await e.spool.append(connect(e.world), e.world.clock.now())
        e.world.store.heal()
        await e.emptied()
        assert len(e.world.registry) == 1
        assert [event.kind for event in e.world.store.events] == ["call.offered"]


async def test_what_came_while_the_database_was_away_again_stays_in_place(tmp_path: Path) -> None:
    async with emptying(tmp_path, start=False) as e:
        e.world.store.fail_with()
        for n in range(3):
            await e.intake.keep(messages(e.world, f"wamid.{n}"))
        before = await bodies(e.spool)

        class Flaky:
            """Writes the second, then the database is gone again."""

            async def deliver(self, events: Sequence[Event], *, received_at: datetime) -> None:
                if "wamid.1" not in events[0].dedupe_key:
                    raise StoreDown
                await e.world.inbox.deliver(events, received_at=received_at)

        e.world.store.heal()
        e.start(Flaky())
        await e.world.until(lambda: e.spool.deliveries == 2)
        assert await bodies(e.spool) == [before[0], before[2]]


async def test_what_nobody_can_take_is_set_apart_and_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    async with emptying(tmp_path, store=PickyStore()) as e:
        e.world.store.fail_with()
        for name in ("wamid.1", "wamid.poison", "wamid.3"):
            await e.intake.keep(messages(e.world, name))
        e.world.store.heal()
        await e.emptied()
        assert len(e.world.store.events) == 2
        assert counted(e.world, "wacg_spool_refused_total") == 1


async def test_a_bug_of_ours_holds_up_nothing_either(tmp_path: Path) -> None:
    class Broken:
        async def deliver(self, events: Sequence[Event], *, received_at: datetime) -> None:
            if "wamid.2" in events[0].dedupe_key:
                raise ZeroDivisionError

    async with emptying(tmp_path, start=False) as e:
        for n in range(5):
            await e.spool.append(messages(e.world, f"wamid.{n}"), e.world.clock.now())
        e.start(Broken())
        await e.emptied()
        assert counted(e.world, "wacg_spool_refused_total") == 1


async def test_a_spool_that_fails_in_the_middle_is_tried_again(tmp_path: Path) -> None:
    async with emptying(tmp_path) as e:
        e.world.store.fail_with()
        await e.intake.keep(messages(e.world, "wamid.1"))
        fails, remove = [SpoolDown("disk"), ZeroDivisionError()], e.spool.remove

        async def flaky(deliveries: Sequence[Delivery]) -> None:
            if fails:
                raise fails.pop()
            await remove(deliveries)

        e.spool.remove = flaky  # type: ignore[method-assign]
        e.world.store.heal()
        await e.emptied()
        assert not fails
        assert len(e.world.store.events) == 1


async def test_a_spool_that_takes_nothing_is_tried_now_and_then(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.write_text("")
    async with emptying(folder) as e:
        assert e.spool.problem is not None
        folder.unlink()
        await e.world.until(lambda: e.spool.problem is None)


# --- what an earlier process left --------------------------------------------------------------------


async def left_over(folder: Path, world: World, *deliveries: bytes) -> None:
    """An earlier process took these and died."""
    spool = Spool(folder, max_bytes=MB)
    await spool.start()
    for body in deliveries:
        await spool.append(body, world.clock.now())
    await spool.aclose()


@pytest.mark.parametrize("age_s", [5.0, 61.0, 400.0])
async def test_a_call_that_an_earlier_process_took_is_not_rung_but_ended_and_has_a_record(
    tmp_path: Path, age_s: float
) -> None:
    async with a_world() as gone:
        await left_over(tmp_path, gone, connect(gone, age_s=age_s))
    async with emptying(tmp_path) as e:
        await e.emptied()
        await e.world.until(lambda: e.world.graph.ops() == ["terminate"])
        assert not len(e.world.registry)
        record = await e.world.store.call_by_meta_id(WACID)
        assert record is not None
        assert (record.state, record.result, record.reason) == (CallState.ENDED, Result.GATEWAY, EndReason.INTERNAL)
        assert record.user == ANA
        await e.world.until(lambda: not len(e.world.owed_hangups))


async def test_one_that_the_database_will_never_take_is_ended_and_holds_up_nothing(tmp_path: Path) -> None:
    class Refusing(MemoryStore):
        async def write(self, *changes: Change) -> None:
            if any(isinstance(change, CallRecord) for change in changes):
                raise StoreError("bad data")
            await super().write(*changes)

    async with a_world() as gone:
        await left_over(tmp_path, gone, connect(gone), messages(gone, "wamid.1"))
    async with emptying(tmp_path, store=Refusing()) as e:
        await e.emptied()
        await e.world.until(lambda: e.world.graph.ops() == ["terminate"])
        assert len(e.world.store.events) == 2


async def test_one_that_is_over_by_what_the_spool_says_is_not_ended_again(tmp_path: Path) -> None:
    async with a_world() as gone:
        await left_over(tmp_path, gone, connect(gone), terminate(gone))
    async with emptying(tmp_path) as e:
        await e.emptied()
        record = await e.world.store.call_by_meta_id(WACID)
        assert record is not None
        assert (record.duration_s, record.meta_status) == (20, "COMPLETED")
        await asyncio.sleep(0.05)
        assert e.world.graph.ops() == []
        assert not await e.world.store.unfinished_calls()


async def test_one_whose_record_is_there_is_left_to_recovery(tmp_path: Path) -> None:
    store = MemoryStore()
    async with a_world(store=store) as gone:
        await gone.user_calls()
        await left_over(tmp_path, gone, connect(gone))
    async with emptying(tmp_path, store=store, start=False) as e:
        before = await store.call_by_meta_id(WACID)
        e.start()
        await e.emptied()
        assert await store.call_by_meta_id(WACID) == before
        assert e.world.graph.ops() == []


async def test_what_this_process_spools_while_it_empties_is_its_own(tmp_path: Path) -> None:
    async with a_world() as gone:
        await left_over(tmp_path, gone, connect(gone, "wacid.OLD"))
    async with emptying(tmp_path, start=False) as e:
        e.world.store.fail_with()
        mine = connect(e.world, "wacid.NEW")
        assert await e.intake.keep(mine) == "spooled"
        assert len(e.world.registry) == 1
        e.start()
        e.world.store.heal()
        await e.emptied()
        assert [str(driver.call.meta_call_id) for driver in e.world.registry] == ["wacid.NEW"]
        await e.world.until(lambda: "terminate" in e.world.graph.ops())


async def test_a_second_crash_in_between_forgets_no_end_that_is_owed(tmp_path: Path) -> None:
    store = MemoryStore()
    async with a_world() as gone:
        await left_over(tmp_path, gone, connect(gone))
    async with emptying(tmp_path, store=store, start=False) as e:
        made = e.replay()
        await made._find_left_calls(await e.spool.oldest(1, MB))
        e.start(e.world.inbox)
        e.task.cancel()
    (owed,) = await store.unfinished_calls()
    assert owed.meta_call_id == WACID


async def test_events_of_nobodys_calls_are_only_kept(tmp_path: Path) -> None:
    async with a_world() as gone:
        await left_over(tmp_path, gone, b"[" * 100, messages(gone, "wamid.1"), terminate(gone))
    async with emptying(tmp_path) as e:
        await e.emptied()
        assert len(e.world.store.events) == 3
        assert e.world.graph.ops() == []


async def test_the_events_of_one_batch_begin_in_their_order(tmp_path: Path) -> None:
    begun: list[str] = []

    class Slow:
        async def deliver(self, events: Sequence[Event], *, received_at: datetime) -> None:
            begun.append(events[0].dedupe_key)
            await asyncio.sleep(0)

    async with emptying(tmp_path, start=False) as e:
        for n in range(70):
            await e.spool.append(messages(e.world, f"wamid.{n:02}"), e.world.clock.now() + timedelta(seconds=n))
        e.start(Slow())
        await e.emptied()
        assert begun == sorted(begun)
        assert len(begun) == 70
