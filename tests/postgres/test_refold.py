"""Every snapshot in the database is the fold of its facts; what is not is found and corrected."""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
import pytest

from gateway.common.errors import StoreError
from gateway.common.ids import UserRef
from gateway.contacts.refold import Rebuilt, rebuild
from gateway.store.migrations import bundled, migrate
from gateway.store.queries import QUERIES
from gateway.store.store import PostgresStore
from policy.contact import fold, state_from_dict, state_to_dict
from policy.facts import CallConnected, CallRejected, Direction, PermissionGranted, fact_to_dict
from tests.support.fakes.memory_store import MemoryStore
from tests.support.generators import records as make
from tests.support.generators.records import T0, at
from tests.support.generators.webhook_day import Day, deliver_all
from tests.support.harness.postgres import Server, execute, temporary_database
from tests.support.harness.world import ANA, World, a_world

once = pytest.mark.asyncio(loop_factories=["uvloop"])  # the loop makes no difference
GRANT = PermissionGranted(at=T0, key="grant")
CALL = CallConnected(at=at(60), key="connected/1", direction=Direction.BUSINESS_INITIATED)


@asynccontextmanager
async def store_on(dsn: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(dsn)
    await store.start()
    try:
        yield store
    finally:
        await store.aclose()


async def fill(dsn: str, count: int = 1) -> list[str]:
    """Write contacts with two facts each; return their ids."""
    ids = []
    async with store_on(dsn) as store:
        for n in range(count):
            contact = make.contact(
                user=UserRef(wa_id=f"55119{n:08}"), state=state_to_dict(fold([GRANT, CALL])), name=None
            )
            facts = [
                make.fact(contact.contact_id, fact.key, at=fact.at, fact=fact_to_dict(fact)) for fact in (GRANT, CALL)
            ]
            await store.write(contact, *facts)
            ids.append(contact.contact_id)
    return ids


async def spoil(dsn: str, contact_id: str, state: dict[str, object]) -> None:
    text = orjson.dumps(state).decode()
    await execute(dsn, "update contacts set state = $2::text::jsonb where contact_id = $1", contact_id, text)


async def state_of(dsn: str, contact_id: str) -> Any:
    found = await execute(dsn, "select state::text as state from contacts where contact_id = $1", contact_id)
    return orjson.loads(found[0]["state"])


@once
async def test_what_is_right_stays(database: str) -> None:
    await fill(database, 5)
    steps: list[tuple[int, int]] = []
    found = await rebuild(database, page=2, progress=lambda done, total: steps.append((done, total)))
    assert found == Rebuilt(contacts=5, facts=10)
    assert steps == [(2, 5), (4, 5), (5, 5)]


@once
async def test_a_snapshot_that_forgot_a_call_is_found_and_corrected(database: str) -> None:
    ids = await fill(database, 3)
    await spoil(database, ids[1], state_to_dict(fold([GRANT])))
    assert await rebuild(database, check=True) == Rebuilt(contacts=3, facts=6, differing=1)
    assert state_from_dict(await state_of(database, ids[1])) == fold([GRANT])  # only looked at
    assert (await rebuild(database)).corrected == 1
    assert state_from_dict(await state_of(database, ids[1])) == fold([GRANT, CALL])
    assert await rebuild(database, check=True) == Rebuilt(contacts=3, facts=6)


@once
async def test_a_snapshot_of_another_version_is_made_anew(database: str) -> None:
    (contact_id,) = await fill(database)
    await spoil(database, contact_id, {"version": 0, "facts": []})
    found = await rebuild(database)
    assert (found.differing, found.outdated, found.corrected) == (1, 1, 1)
    assert state_from_dict(await state_of(database, contact_id)) == fold([GRANT, CALL])


@once
async def test_an_empty_database_is_right(database: str) -> None:
    assert await rebuild(database) == Rebuilt()


@once
async def test_nothing_is_corrected_under_a_running_gateway_but_it_may_be_compared(database: str) -> None:
    await fill(database)
    async with store_on(database):
        with pytest.raises(StoreError, match="running"):
            await rebuild(database)
        assert (await rebuild(database, check=True)).contacts == 1


@once
async def test_the_command_says_what_differs_and_fails_with_check_only(database: str) -> None:
    (contact_id,) = await fill(database)
    await spoil(database, contact_id, state_to_dict(fold([])))

    async def command(*args: str) -> tuple[int | None, str]:
        environ = os.environ | {
            "GATEWAY_APP_SECRET": "s",
            "GATEWAY_VERIFY_TOKEN": "v",
            "GATEWAY_ACCESS_TOKEN": "t",
            "GATEWAY_PHONE_NUMBER_ID": "200000000000002",
            "GATEWAY_PHONE_NUMBER": "+551155550100",
            "GATEWAY_OPERATORS": '{"ana": "key-of-ana"}',
            "GATEWAY_API_KEY": "key-of-the-api",
            "GATEWAY_DATABASE_URL": database,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "gateway", "rebuild", *args),
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    assert await command("--check") == (1, "1 contacts with 2 facts: 1 stored states differ.\n")
    assert await command() == (0, "1 contacts with 2 facts: 1 stored states differ.\n1 corrected.\n")
    assert await command("--check") == (0, "1 contacts with 2 facts: 0 stored states differ.\n")


# --- what the gateway writes -------------------------------------------------------------------------


@asynccontextmanager
async def world_on(dsn: str) -> AsyncIterator[World]:
    store = PostgresStore(dsn)
    try:
        async with a_world(store=cast(MemoryStore, store)) as world:
            yield world
    finally:
        await store.aclose()


async def in_order(day: Day, world: World) -> Any:
    await deliver_all(world, day.webhooks)
    return (await world.contacts.get(world.number, ANA)).state


@once
@pytest.mark.parametrize("seed", range(6))
async def test_a_day_of_webhooks_in_any_order_and_under_both_names_leaves_snapshots_that_are_right(
    database: str, seed: int
) -> None:
    rng = random.Random(seed)
    async with a_world() as world:
        day = Day(rng, now=world.clock.now().timestamp(), events=20)
        expected = await in_order(day, world)
    async with world_on(database) as world:
        mixed = day.shuffled(rng)
        await deliver_all(world, mixed, at_once=5)
        assert (await world.contacts.get(world.number, ANA)).state == expected
        found = await rebuild(database, check=True)
        assert (found.contacts, found.differing) == (1, 0)
        assert found.facts > 0
    async with world_on(database) as world:
        assert (await world.contacts.get(world.number, ANA)).state == expected  # after a restart
        await deliver_all(world, mixed[::-1], at_once=3)  # all of it again
        assert (await rebuild(database, check=True)).differing == 0
        assert (await world.contacts.get(world.number, ANA)).state == expected


# --- SQL ---------------------------------------------------------------------------------------------


@once
async def test_both_names_are_found_by_index(database: str) -> None:
    await execute(
        database,
        """insert into contacts (contact_id, phone_number_id, wa_id, user_id, state, seen_at)
        select 'c' || n, '1', (551190000000 + n)::text, case when n % 2 = 0 then 'BR.' || n end, '{}', now()
        from generate_series(1, 20000) n""",
    )
    await execute(database, "analyze contacts")
    plan = await execute(database, "explain " + QUERIES["find_contacts"], "1", "BR.4", "551190000005")
    text = "\n".join(row[0] for row in plan)
    assert "Seq Scan" not in text, text
    assert "contacts_user_id" in text
    assert "contacts_wa_id" in text


@once
async def test_declined_calls_of_an_older_program_get_keys_of_their_own(postgres_server: Server) -> None:
    async with temporary_database(postgres_server, template="template0") as dsn:
        await migrate(dsn, bundled()[:2])
        contact = "contacts (contact_id, phone_number_id, wa_id, state, seen_at) values ('c', '1', '2', '{}', now())"
        await execute(dsn, f"insert into {contact}")
        for key, fact in (("unanswered/a", CallRejected(at=T0, key="unanswered/a")), ("grant", GRANT)):
            text = orjson.dumps(fact_to_dict(fact)).decode()
            sql = "insert into facts (contact_id, key, at, fact) values ('c', $1, $2, $3::text::jsonb)"
            await execute(dsn, sql, key, T0, text)
        await migrate(dsn)
        async with store_on(dsn) as store:
            found = {fact.key: fact.fact for fact in await store.facts("c")}
        assert found == {
            "rejected/a": fact_to_dict(CallRejected(at=T0, key="rejected/a")),
            "grant": fact_to_dict(GRANT),
        }
