"""Row 2: a whole day's webhooks come again, ten times, also after a restart: no call, no fact, no other change."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from gateway.calls.driver import CallDriver
from gateway.common.ids import CallId, OperatorId
from gateway.intake.inbox import REMEMBERED
from gateway.store.records import EndOwed
from gateway.store.store import PostgresStore
from tests.support.fakes.clock import FakeClock
from tests.support.fakes.memory_store import MemoryStore
from tests.support.generators.webhook_day import DAY_S, Day, Webhook, deliver_all
from tests.support.harness.chaos import Chaos
from tests.support.harness.postgres import execute
from tests.support.harness.world import ANA, NUMBER_ID, World, a_world

TIMES = 10
TABLES = ("calls", "contacts", "facts", "decisions", "events", "numbers", "idempotency")


async def everything(database: str) -> dict[str, list[str]]:
    """Return every row of every table as text, the instants at which they were stored included."""
    return {
        table: sorted(row["t"] for row in await execute(database, f"select t::text as t from {table} as t"))
        for table in TABLES
    }


@asynccontextmanager
async def a_process(database: str, clock: FakeClock | None = None) -> AsyncIterator[World]:
    """A gateway's signalling on a real database, from its start to its end."""
    store = PostgresStore(database)
    try:
        async with a_world(store=cast(MemoryStore, store), clock=clock) as world:
            world.inbox.remember(await store.recent_event_keys(world.clock.now() - REMEMBERED))
            (await world.recovery()).close()
            yield world
    finally:
        await store.aclose()


class Recorder:
    """Keeps every webhook that a world is given."""

    def __init__(self, world: World) -> None:
        self.webhooks: list[Webhook] = []
        deliver = world.deliver

        async def kept(**webhook: Any) -> None:
            self.webhooks.append(webhook)
            await deliver(**webhook)

        world.deliver = kept  # type: ignore[method-assign]


async def live(world: World, rng: random.Random, *, events: int) -> list[Webhook]:
    """Live through a day: there are calls that ring, and what happened earlier comes late and in any order."""
    recorder = Recorder(world)
    phone, _ = await world.login()
    driver = await world.user_calls("wacid.THEIRS")
    assert driver is not None
    await world.until(lambda: driver.call.state.value == "ringing")
    driver.claim(phone.operator)
    world.hub.take(phone, driver.call.call_id)
    await world.until(lambda: driver.call.state.value == "active")
    await world.meta_terminates("wacid.THEIRS", talked_s=20)
    await world.ended(driver)
    await world.allow_calls()
    ours = await world.admission.place(NUMBER_ID, "+5511900000001", operator=OperatorId("ana"))
    assert isinstance(ours, CallDriver), ours
    await world.until(lambda: ours.call.meta_call_id is not None)
    wacid = str(ours.call.meta_call_id)
    for event in ("connect", "RINGING", "ACCEPTED"):
        await world.meta_says(event, wacid)
    await world.meta_terminates(wacid, talked_s=9, direction="BUSINESS_INITIATED")
    await world.ended(ours)
    day = Day(rng, now=world.clock.now().timestamp(), events=events)
    await deliver_all(world, day.shuffled(rng))
    return list(recorder.webhooks)


async def replay(world: World, webhooks: Sequence[Webhook], rng: random.Random, *, times: int) -> int:
    """Deliver all of them so many times, mixed each time; return how many calls and requests came of it."""
    calls, requests = len(world.drivers), len(world.graph.sent)
    for _ in range(times):
        mixed = list(webhooks)
        rng.shuffle(mixed)
        await deliver_all(world, mixed, at_once=rng.randint(1, 8))
        world.clock.advance(rng.choice([0.0, 3_600.0, DAY_S / 2]))
    return len(world.drivers) - calls + len(world.graph.sent) - requests


@pytest.mark.row(2, "replayed webhooks take no effect: no call, no state change, also after a restart")
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_day_that_comes_again_changes_nothing(chaos: Chaos, database: str) -> None:
    rng, events = random.Random(chaos.seed), chaos.size(test=20, short=300, long=2_000)
    async with a_process(database) as first:
        webhooks = await live(first, rng, events=events)
        clock = first.clock
        await _settled(first)
        before = await everything(database)
        began = await replay(first, webhooks, rng, times=TIMES // 2)
        await _settled(first)
        changed = _differences(before, await everything(database))
        state = (await first.contacts.get(first.number, ANA)).state
    async with a_process(database, clock) as second:
        began += await replay(second, webhooks, rng, times=TIMES // 2)
        await _settled(second)
        changed += _differences(before, await everything(database))
        state_changed = (await second.contacts.get(second.number, ANA)).state != state
        slots = second.number.incoming.in_use + second.number.outgoing.in_use
    chaos.note("webhooks of the day", len(webhooks))
    chaos.note("webhooks replayed", TIMES * len(webhooks))
    chaos.promise("calls and requests that came of it", began, at_most=0)
    chaos.promise("rows changed", changed, at_most=0)
    chaos.promise("states of a contact changed", int(state_changed), at_most=0)
    chaos.promise("slots taken", slots, at_most=0)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_an_inbox_that_forgets_would_be_seen(chaos: Chaos, database: str) -> None:
    rng = random.Random(chaos.seed)
    async with a_process(database) as first:
        webhooks = await live(first, rng, events=20)
        await _settled(first)
        before, clock = await everything(database), first.clock
    clock.advance(DAY_S)
    async with a_process(database, clock) as second:
        second.inbox._may_be_known = lambda event, now: False  # type: ignore[method-assign]
        await replay(second, webhooks, rng, times=2)
        await _settled(second)
        assert _differences(before, await everything(database)) > 0


async def _settled(world: World) -> None:
    """Wait until everything is written: a write comes after all that was handed over before, so one more tells."""
    await world.store.write(EndOwed(call_id=CallId("nobody"), owed=False))


def _differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> int:
    return sum(len(set(before[table]) ^ set(after[table])) for table in TABLES)
