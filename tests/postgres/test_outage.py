"""The store while its database is cut off, gone, silent, and back."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from msgspec import structs

from gateway.common.errors import StoreDown, StoreError
from gateway.store.embedded import EmbeddedServer, embedded_postgres
from gateway.store.group_commit import WriterLimits
from gateway.store.postgres import driver, store_error_from
from gateway.store.store import PostgresStore, StoreLimits
from tests.support.generators import records as make
from tests.support.generators.records import NUMBER, T0
from tests.support.harness.postgres import execute
from tests.support.harness.proxy import Proxy, proxy_to

TIMEOUT_S = 0.4
LIMITS = StoreLimits(
    timeout_s=TIMEOUT_S,
    start_timeout_s=2.0,
    writer=WriterLimits(timeout_s=TIMEOUT_S, retry_s=0.05, heartbeat_s=0.2, flush_s=0.5),
)


async def until(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


async def seconds_of(error: type[Exception], store: PostgresStore) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(error):
        await store.write(make.event())
    return loop.time() - started


async def keys_in_order(dsn: str) -> list[str]:
    return [row[0] for row in await execute(dsn, "select dedupe_key from events order by seq")]


@pytest_asyncio.fixture
async def proxy(database: str) -> AsyncIterator[Proxy]:
    async with proxy_to(database) as opened:
        yield opened


@pytest_asyncio.fixture
async def store(proxy: Proxy) -> AsyncIterator[PostgresStore]:
    made = PostgresStore(proxy.dsn, LIMITS)
    await made.start()
    yield made
    await made.aclose()


async def test_a_cut_connection_is_repaired_without_anybody_noticing(store: PostgresStore, proxy: Proxy) -> None:
    for n in range(5):
        proxy.cut()
        await store.write(make.event(f"k{n}"))
        assert store.up
    assert await store.recent_event_keys(T0) == {f"k{n}" for n in range(5)}


@pytest.mark.parametrize("words", [b"select distinct dedupe_key", b"save_changes", b'"dedupe_key"'])
async def test_a_connection_that_is_cut_in_the_middle_is_repaired_too(
    store: PostgresStore, proxy: Proxy, words: bytes
) -> None:
    before = proxy.connections
    proxy.cut_at(words)
    await store.write(make.event("k"))
    assert await store.recent_event_keys(T0) == {"k"}
    assert store.up
    assert before < proxy.connections <= before + 3  # the writer again, a reader, the reader again


async def test_a_terminated_backend_is_replaced(store: PostgresStore, database: str) -> None:
    await asyncio.gather(*(store.recent_event_keys(T0) for _ in range(9)))  # so that all readers are connected, too
    await execute(
        database,
        "select pg_terminate_backend(pid, 1000) from pg_stat_activity where datname = current_database() "
        "and pid <> pg_backend_pid()",
    )
    await store.write(make.event("after"))
    assert await store.recent_event_keys(T0) == {"after"}
    assert store.up


async def test_a_backend_that_is_terminated_in_the_middle_of_a_write_repeats_it(
    store: PostgresStore, database: str
) -> None:
    """Somebody holds the table; our transaction waits for it, is killed, and is done again."""
    async with asyncio.TaskGroup() as tasks:
        holder = tasks.create_task(execute(database, "do $$ begin lock table events; perform pg_sleep(0.2); end $$"))
        await asyncio.sleep(0.05)
        writing = tasks.create_task(store.write(make.event("k")))
        await asyncio.sleep(0.05)
        await execute(database, "select pg_terminate_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'")
        await writing
        await holder
    assert await keys_in_order(database) == ["k"]


async def test_a_database_that_is_gone_is_noticed_at_once_and_comes_back_by_itself(
    store: PostgresStore, proxy: Proxy
) -> None:
    await proxy.refuse()
    await until(lambda: not store.up, timeout_s=0.5)  # without a write
    assert await seconds_of(StoreDown, store) < 0.05
    assert not await store.healthy()
    with pytest.raises(StoreDown):
        await store.facts("anybody")
    await proxy.open()
    await until(lambda: store.up)
    await store.write(make.event("after"))
    assert await store.recent_event_keys(T0) == {"after"}
    assert await store.healthy()


async def test_a_silent_database_costs_a_writer_and_a_reader_the_time_limit_and_no_more(
    store: PostgresStore, proxy: Proxy
) -> None:
    await store.recent_event_keys(T0)
    proxy.silence()
    loop = asyncio.get_running_loop()
    assert await seconds_of(StoreDown, store) < TIMEOUT_S + 0.3
    await until(lambda: not store.up, timeout_s=0.5)
    started = loop.time()
    with pytest.raises(StoreDown):
        await store.recent_event_keys(T0)
    assert loop.time() - started < TIMEOUT_S + 0.3
    assert not await store.healthy(timeout_s=0.1)
    proxy.speak()
    await until(lambda: store.up)
    await store.write(make.event("after"))
    assert "after" in await store.recent_event_keys(T0)


async def test_silence_is_noticed_without_a_write(store: PostgresStore, proxy: Proxy) -> None:
    proxy.silence()
    await until(lambda: not store.up, timeout_s=TIMEOUT_S + 0.5)
    proxy.speak()
    await until(lambda: store.up)


async def test_what_is_written_soon_waits_and_arrives_in_order(
    store: PostgresStore, proxy: Proxy, database: str
) -> None:
    await store.write(make.event("k000"))
    await proxy.refuse()
    call = make.call(version=1)
    for n in range(1, 200):
        store.write_soon(make.event(f"k{n:03}"), structs.replace(call, version=n, state=f"state {n}"))
        if n % 50 == 0:
            await asyncio.sleep(0.02)  # some before it is noticed, some after
    await until(lambda: not store.up)
    assert store.backlog == 199
    await proxy.open()
    await until(lambda: store.up)
    await store.write(make.event("k200"))
    assert await keys_in_order(database) == [f"k{n:03}" for n in range(201)]
    found = await store.call(call.call_id)
    assert found is not None
    assert found.state == "state 199"
    assert store.dropped == 0


async def test_a_commit_whose_answer_is_lost_is_repeated_without_harm(
    store: PostgresStore, proxy: Proxy, database: str
) -> None:
    event, call = make.event("k"), make.call(version=3)
    proxy.silence_answer_to(b'"dedupe_key"')
    with pytest.raises(StoreDown):
        await store.write(event, call)
    assert await keys_in_order(database) == ["k"]
    await until(lambda: not store.up)
    proxy.speak()
    await until(lambda: store.up)
    await store.write(event, call)
    assert await keys_in_order(database) == ["k"]
    assert await store.call(call.call_id) == call


async def test_a_read_only_server_is_down(store: PostgresStore, database: str) -> None:
    """After a failover the old one may still be there to read."""
    name = database.partition("?")[0].rpartition("/")[2]
    await execute(database, f"alter database {name} set default_transaction_read_only to on")
    await execute(
        database,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
        "and pid <> pg_backend_pid()",
    )
    await until(lambda: not store.up)
    assert await seconds_of(StoreDown, store) < 0.05


async def test_many_callers_share_transactions(store: PostgresStore, database: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(640):
            tasks.create_task(store.write(make.event(f"k{n}")))
    rows = await execute(database, "select count(*), count(distinct xmin::text) from events")
    assert rows[0][0] == 640
    assert 10 <= rows[0][1] <= 12
    assert await keys_in_order(database) == [f"k{n}" for n in range(640)]


async def test_bad_data_fails_its_own_caller_only(store: PostgresStore, database: str) -> None:
    contact = make.contact()
    good = [store.write(make.event(f"k{n}")) for n in range(10)]
    bad = [
        store.write(make.event("x1"), make.fact("nobody")),
        store.write(make.event("x2"), make.call(state="\0")),
        store.write(make.event("x3"), make.contact(user=contact.user)),
        store.write(make.event("x4", received_at=T0.replace(tzinfo=None))),
        store.write(make.event("x5", kind=None)),
    ]
    results = await asyncio.gather(store.write(contact), *good[:5], *bad, *good[5:], return_exceptions=True)
    failed = [result for result in results if result is not None]
    assert len(failed) == 5
    assert all(isinstance(error, StoreError) and not isinstance(error, StoreDown) for error in failed)
    assert results[6:11] == failed
    assert await keys_in_order(database) == [f"k{n}" for n in range(10)]
    assert store.up


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (driver.InternalClientError("got result for unknown protocol state"), True),  # cut in the middle of an answer
        (driver.PostgresIOError("could not read block"), True),
        (driver.InternalServerError("bug"), False),
        (driver.DataError("bad"), False),
    ],
)
async def test_what_the_driver_says_of_a_server_that_is_gone_is_down_and_nothing_else_is(
    error: Exception, away: bool
) -> None:
    assert isinstance(store_error_from(error), StoreDown) is away


async def test_errors_quote_no_values(store: PostgresStore) -> None:
    contact = make.contact()
    await store.write(contact)
    with pytest.raises(StoreError, match="contacts_user_id") as caught:
        await store.write(make.contact(user=contact.user))
    assert str(contact.user.user_id) not in str(caught.value)
    with pytest.raises(StoreError) as caught:
        await store.write(make.call(version="5511900000001?"))
    assert "5511900000001" not in str(caught.value)


async def test_closing_writes_what_is_queued(database: str) -> None:
    store = PostgresStore(database, LIMITS)
    await store.start()
    for n in range(300):
        store.write_soon(make.event(f"k{n:03}"))
    await store.aclose()
    assert await keys_in_order(database) == [f"k{n:03}" for n in range(300)]
    assert store.dropped == 0


async def test_closing_while_the_database_is_away_ends_and_counts_what_is_lost(
    store: PostgresStore, proxy: Proxy
) -> None:
    await proxy.refuse()
    await until(lambda: not store.up)
    store.write_soon(make.event())
    loop = asyncio.get_running_loop()
    started = loop.time()
    await store.aclose()
    assert loop.time() - started < LIMITS.writer.flush_s + 0.3
    assert store.dropped == 1


async def test_a_start_waits_for_a_database_that_is_starting(database: str) -> None:
    async with proxy_to(database) as proxy:
        await proxy.refuse()
        store = PostgresStore(proxy.dsn, LIMITS)
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(store.start())
            await asyncio.sleep(0.2)
            await proxy.open()
            await starting
        assert store.up
        await store.aclose()


async def test_a_start_without_a_database_fails(database: str) -> None:
    async with proxy_to(database) as proxy:
        await proxy.refuse()
        store = PostgresStore(proxy.dsn, replace(LIMITS, start_timeout_s=0.1))
        with pytest.raises(StoreDown):
            await store.start()
        await store.aclose()


async def test_an_older_schema_is_not_healthy(store: PostgresStore, database: str) -> None:
    await execute(database, "delete from schema_migrations")
    assert not await store.healthy()
    await execute(database, "insert into schema_migrations values (99, 'newer', '')")
    assert await store.healthy()


async def test_a_cancelled_reader_leaves_the_others_alone(store: PostgresStore, database: str) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(10):  # more than there are readers
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(store.decisions(NUMBER))
            loop.call_later(0.0005, reading.cancel)
    assert await store.decisions(NUMBER) == []


async def test_many_readers_share_a_few_connections(store: PostgresStore, proxy: Proxy) -> None:
    before = proxy.connections
    for _ in range(2):
        await asyncio.gather(*(store.decisions(NUMBER) for _ in range(30)))
    assert proxy.connections == before + LIMITS.readers


async def test_a_query_that_fails_costs_no_connection(store: PostgresStore, proxy: Proxy) -> None:
    await store.decisions(NUMBER)
    before = proxy.connections
    with pytest.raises(StoreError) as caught:
        await store.decisions(NUMBER, limit=-1)
    assert not isinstance(caught.value, StoreDown)
    assert await store.decisions(NUMBER) == []
    assert proxy.connections == before


@pytest.mark.parametrize("connected", [True, False])
async def test_closing_leaves_no_reader_behind(
    store: PostgresStore, proxy: Proxy, database: str, connected: bool
) -> None:
    if connected:
        await store.decisions(NUMBER)
    proxy.delay_s = 0.05
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(seconds_until_down(store))
        await asyncio.sleep(0.02)
        await store.aclose()
        assert await reading < TIMEOUT_S + 0.3
    left = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    async with asyncio.timeout(5):
        while (await execute(database, left))[0][0]:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def seconds_until_down(store: PostgresStore) -> float:
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(StoreDown):
        await store.decisions(NUMBER)
    return loop.time() - started


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_killed_server_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged: set[str] = set()

    async def client(store: PostgresStore, name: int) -> None:
        for n in range(2000):
            try:
                await store.write(make.event(f"{name}/{n}"))
            except StoreDown:
                return
            acknowledged.add(f"{name}/{n}")

    async with embedded_postgres(tmp_path) as dsn:
        store = PostgresStore(dsn, LIMITS)
        await store.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in range(8):
                    tasks.create_task(client(store, name))
                await until(lambda: len(acknowledged) > 500)
                pid = EmbeddedServer(tmp_path).pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not store.up)
            await until(lambda: store.up, timeout_s=10)
            assert acknowledged <= await store.recent_event_keys(T0)
        finally:
            await store.aclose()
