"""Migrations: what they make, once, whoever starts; and when they refuse."""

import asyncio
import difflib
from enum import StrEnum
from pathlib import Path

import pytest

from gateway.callflow.outcome import EndReason, Result
from gateway.common.errors import StoreDown, StoreError
from gateway.store.migrations import Migration, bundled, migrate, parse, pending
from policy.facts import Direction
from tests.support.harness.postgres import Server, execute, temporary_database
from tests.support.harness.proxy import proxy_to

EXPECTED = Path(__file__).with_name("schema.txt")

ONE = Migration(version=1, name="one", sql="create table one (x integer)")
TWO = Migration(version=2, name="two", sql="create table two (x integer); select pg_sleep(0.05)")

_DESCRIBE = """
select 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
    || case when a.attnotnull then ' not null' else '' end
    || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
    || coalesce(' -- ' || col_description(c.oid, a.attnum), '') as line
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
union all
select 'table ' || relname || coalesce(' -- ' || obj_description(oid), '')
from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'
union all
select 'constraint ' || conrelid::regclass || '.' || conname || ' ' || pg_get_constraintdef(oid)
from pg_constraint where connamespace = 'public'::regnamespace and contype <> 'n'
union all
select 'index ' || indexdef from pg_indexes where schemaname = 'public'
union all
select 'function ' || oid::regprocedure || coalesce(' -- ' || obj_description(oid), '')
from pg_proc where pronamespace = 'public'::regnamespace
order by 1
"""


async def describe(dsn: str) -> list[str]:
    return [row["line"] for row in await execute(dsn, _DESCRIBE)]


async def versions(dsn: str) -> list[int]:
    return [row[0] for row in await execute(dsn, "select version from schema_migrations order by version")]


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_all_migrations_make_the_expected_schema(database: str) -> None:
    """A new migration changes `schema.txt` too: the difference is then what a reviewer reads."""
    expected, found = EXPECTED.read_text("utf-8").splitlines(), await describe(database)
    assert found == expected, "\n".join(difflib.unified_diff(expected, found, "schema.txt", "database", "", "", 0))


@pytest.mark.parametrize(("column", "words"), [("direction", Direction), ("result", Result), ("reason", EndReason)])
@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_the_database_knows_every_word_of_ours(database: str, column: str, words: type[StrEnum]) -> None:
    found = await execute(
        database,
        "select pg_get_constraintdef(oid) from pg_constraint where conname = $1",
        f"calls_{column}",
    )
    stored = {part for index, part in enumerate(found[0][0].split("'")) if index % 2}
    assert stored == set(words)


async def test_migrating_again_does_nothing(database: str) -> None:
    before = await describe(database)
    assert await migrate(database) == []
    assert await describe(database) == before


async def test_ten_that_start_together_migrate_once(postgres_server: Server) -> None:
    async with temporary_database(postgres_server, template="template0") as dsn:
        applied = await asyncio.gather(*(migrate(dsn, [ONE, TWO]) for _ in range(10)))
        assert sorted(map(len, applied)) == [0] * 9 + [2]
        assert await versions(dsn) == [1, 2]


async def test_only_what_is_new_is_applied(postgres_server: Server) -> None:
    async with temporary_database(postgres_server, template="template0") as dsn:
        assert await migrate(dsn, [ONE]) == [ONE]
        assert await migrate(dsn, [ONE, TWO]) == [TWO]


async def test_a_migration_that_fails_leaves_nothing_of_itself(postgres_server: Server) -> None:
    broken = Migration(version=2, name="broken", sql="create table two (x integer); create table one ()")
    async with temporary_database(postgres_server, template="template0") as dsn:
        with pytest.raises(StoreError, match="0002_broken"):
            await migrate(dsn, [ONE, broken])
        assert await versions(dsn) == [1]
        assert await migrate(dsn, [ONE, TWO]) == [TWO]


async def test_a_changed_migration_stops_the_start(postgres_server: Server) -> None:
    changed = Migration(version=1, name="one", sql="create table one (y integer)")
    async with temporary_database(postgres_server, template="template0") as dsn:
        await migrate(dsn, [ONE])
        with pytest.raises(StoreError, match="0001_one was changed"):
            await migrate(dsn, [changed])


async def test_a_newer_database_stops_the_start(postgres_server: Server) -> None:
    async with temporary_database(postgres_server, template="template0") as dsn:
        await migrate(dsn, [ONE, TWO])
        with pytest.raises(StoreError, match="run the newer version"):
            await migrate(dsn, [ONE])


async def test_a_lock_that_never_comes_free_is_no_endless_wait(postgres_server: Server) -> None:
    slow = Migration(version=1, name="slow", sql="select pg_sleep(30)")
    async with temporary_database(postgres_server, template="template0") as dsn:
        with pytest.raises(StoreDown):
            await migrate(dsn, [slow], timeout_s=0.2)


async def test_a_database_that_is_away_is_down(database: str) -> None:
    async with proxy_to(database) as proxy:
        await proxy.refuse()
        with pytest.raises(StoreDown):
            await migrate(proxy.dsn)


# --- without a database ----------------------------------------------------------------------------


def test_files_are_ordered_by_number_and_line_ends_do_not_count() -> None:
    two, one = parse({"0002_b_c.sql": "two", "0001_a.sql": "x\r\ny"})[::-1]
    assert (one.version, one.name, one.sql) == (1, "a", "x\ny")
    assert (two.version, two.name) == (2, "b_c")
    assert one.checksum == Migration(version=9, name="z", sql="x\ny").checksum


@pytest.mark.parametrize(
    "names", [["0002_a.sql"], ["0001_a.sql", "0003_c.sql"], ["0001_a.sql", "0001_b.sql"], ["1_a.sql"]]
)
def test_gaps_repetitions_and_odd_names_are_refused(names: list[str]) -> None:
    with pytest.raises(StoreError):
        parse(dict.fromkeys(names, ""))


def test_nothing_is_pending_when_all_is_applied() -> None:
    assert pending({1: ONE.checksum}, [ONE, TWO]) == [TWO]
    assert pending({1: ONE.checksum, 2: TWO.checksum}, [ONE, TWO]) == []


def test_the_program_brings_its_migrations() -> None:
    assert [migration.version for migration in bundled()] == list(range(1, len(bundled()) + 1))
    assert bundled()[0].name == "initial"
